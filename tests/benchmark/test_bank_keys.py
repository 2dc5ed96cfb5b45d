"""The benchmark of widths of keys measures every kind of keys of every model and text."""

from pathlib import Path

from modeling_lle.evaluation import read_results
from scripts.benchmark.bank_keys import bank_keys
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_texts, make_word_tokenizer


def test_every_kind_of_keys_is_measured(tmp_path: Path) -> None:
    make_language_model(window=0).save_pretrained(tmp_path / "model")
    make_word_tokenizer().save_pretrained(tmp_path / "model")
    for split, rows in (("train", 30), ("validation", 9), ("test", 9)):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{split}.txt").write_text("\n".join(make_texts(rows, 8, seed=rows)) + "\n")
    sizes = {"bank_tokens": 100, "tokens": 30, "test_tokens": 30, "output": tmp_path / "bank-keys.json"}
    bank_keys([str(tmp_path / "model")], [str(tmp_path / "text")], [2, 6], **sizes)
    rows = read_results(tmp_path / "bank-keys.json")["rows"]
    assert [(row["keys"], row["width"]) for row in rows] == [
        ("states", 6),
        ("projected", 2),
        ("projected", 6),
        ("principal components", 2),
        ("principal components", 6),
    ]
    assert rows[1]["bytes_per_entry"] < rows[0]["bytes_per_entry"]
    assert len({row["base_ppl"] for row in rows}) == 1 < len({row["bank_ppl"] for row in rows})
