"""The demonstration, on a data set of a few documents."""

from pathlib import Path

import pytest

from modeling_lle.cli import demo as demo_module


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "segment_length": 16}
    training["calibration_tokens"] = 400
    recipe = {
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "model": {"hidden_size": 16, "history": {"stream": {"window": 200}}},
        "training": {**demo_module.RECIPE["training"], **training, "disable_tqdm": True},
    }
    monkeypatch.setattr(demo_module, "RECIPE", recipe)
    monkeypatch.setattr(demo_module, "NEW_TOKENS", 8)
    monkeypatch.setattr(demo_module, "CALIBRATION_TOKENS", 400)


def test_demonstration(small: None, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        lines = [f"def function_{split}_{n % 9}(argument): return argument + {n}" for n in range(120)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    said: list[str] = []
    metrics = demo_module.demonstrate(tmp_path / "run", str(tmp_path), say=said.append)
    assert metrics["history_ppl"] < metrics["base_ppl"]
    assert (tmp_path / "run" / "evaluation.png").is_file()
    text = "\n".join(said)
    assert text.count("without history") == text.count("with history:") == demo_module.PROMPTS
    assert "What to try next" in text
    assert "Done in" in said[-1]


def test_default_corpus_is_split_by_package() -> None:
    texts = demo_module._texts(None, None, "text", train_tokens=30_000)
    packages = [set(texts[split]["package"]) for split in ("train", "validation", "test")]
    assert not packages[0] & packages[1]
    assert not packages[0] & packages[2]
    assert not packages[1] & packages[2]
