"""The demonstration, on a data set of a few documents."""

from pathlib import Path

import pytest

from modeling_lle import demo


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "segment_length": 16}
    recipe = {
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "model": {"hidden_size": 16, "history": {"stream": {"window": 200}}},
        "training": {**demo.RECIPE["training"], **training, "disable_tqdm": True},
    }
    monkeypatch.setattr(demo, "RECIPE", recipe)
    monkeypatch.setattr(demo, "NEW_TOKENS", 8)


def test_demonstration(small: None, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        lines = [f"def function_{split}_{n % 9}(argument): return argument + {n}" for n in range(120)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    said: list[str] = []
    metrics = demo.demonstrate(tmp_path / "run", str(tmp_path), say=said.append)
    assert metrics["history_ppl"] < metrics["base_ppl"]
    assert (tmp_path / "run" / "evaluation.png").is_file()
    text = "\n".join(said)
    assert text.count("without history") == text.count("with history:") == demo.PROMPTS
    assert "What to try next" in text
    assert "Done in" in said[-1]


def test_default_corpus_is_split_by_package() -> None:
    texts = demo._texts(None, None, "text", train_tokens=30_000)
    packages = [set(texts[split]["package"]) for split in ("train", "validation", "test")]
    assert not packages[0] & packages[1]
    assert not packages[0] & packages[2]
    assert not packages[1] & packages[2]
