"""The benchmark of banks in Milvus compares both banks in every setting."""

from pathlib import Path

import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from modeling_lle.evaluation import read_results
from scripts.benchmark.bank_milvus import bank_milvus
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_texts, make_word_tokenizer


def test_both_banks_are_measured_in_every_setting(tmp_path: Path) -> None:
    make_language_model(window=0).save_pretrained(tmp_path / "model")
    make_word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text").mkdir()
    for split, rows in (("train", 30), ("validation", 9), ("test", 9)):
        (tmp_path / "text" / f"{split}.txt").write_text("\n".join(make_texts(rows, 8, seed=rows)) + "\n")
    sizes = {"bank_tokens": 100, "tokens": 20, "test_tokens": 20, "queries": 10, "output": tmp_path / "results.json"}
    bank_milvus(str(tmp_path / "model"), str(tmp_path / "text"), f"milvus+file:{tmp_path}/lite.db", **sizes)
    found = read_results(tmp_path / "results.json")
    settings = ("exact", "balanced", "fast")
    assert [(row["bank"], row["search"]) for row in found["rows"]] == [
        (bank, how) for bank in ("folder", "Milvus") for how in settings
    ]
    assert found["metrics"]["recall"] > 0.9
    assert abs(found["metrics"]["ppl_ratio_to_exact"] - 1) < 0.01
