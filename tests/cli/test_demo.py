"""The demonstration, on a data set of a few documents."""

from pathlib import Path

import pytest

from modeling_lle.cli import demo as demo_module
from modeling_lle.training import make_recipe


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


@pytest.mark.parametrize(
    ("seconds", "tokens", "words"),
    [
        (1e6, 100_000, "reads 100,000 tokens 2 times, its maximum"),
        (60.0, 17_280, "reads 17,280 tokens 2 times, what fits 1.0 minutes of training"),  # 0.9 * 60 s / 0.1 s / 2
        (0.1, 1_280, "2 times, its minimum, in more than 0.0 minutes"),  # 20 steps an epoch
    ],
)
def test_it_reads_what_fits_the_time(
    small: None, monkeypatch: pytest.MonkeyPatch, seconds: float, tokens: int, words: str
) -> None:
    monkeypatch.setattr(demo_module, "seconds_of_a_step", lambda recipe, patience: 0.1)
    monkeypatch.setattr(demo_module, "lack_of_bfloat16", lambda device: "this processor is old")
    said: list[str] = []
    recipe = make_recipe(
        {**demo_module.RECIPE, "training": {**demo_module.RECIPE["training"], "precision": "float32"}}
    )
    assert demo_module.choose_tokens(recipe, 100_000, seconds, said.append) == tokens
    assert words in said[0]
    assert "64 tokens takes 0.10 s on this machine, in float32, as this processor is old:" in said[0]


@pytest.mark.parametrize(("patience", "steps"), [(1e6, demo_module.MEASURED_STEPS), (0.0, 1)])
def test_a_step_is_measured_after_a_warm_up(
    small: None, monkeypatch: pytest.MonkeyPatch, patience: float, steps: int
) -> None:
    # Steps take 900 s, 800 s, then 1 s, 2 s, 3 s ...
    ends = [900.0, 800.0, *range(1, steps + 1)]
    clock = iter([time for index, taken in enumerate(ends) for time in (1e4 * index, 1e4 * index + taken)])
    monkeypatch.setattr(demo_module.time, "perf_counter", lambda: next(clock))
    recipe = make_recipe(
        {**demo_module.RECIPE, "training": {**demo_module.RECIPE["training"], "precision": "float32"}}
    )
    assert demo_module.seconds_of_a_step(recipe, patience) == (steps + 1) / 2
    assert next(clock, None) is None


def test_default_corpus_is_split_by_package() -> None:
    texts = demo_module._texts(None, None, "text", train_tokens=30_000)
    packages = [set(texts[split]["package"]) for split in ("train", "validation", "test")]
    assert not packages[0] & packages[1]
    assert not packages[0] & packages[2]
    assert not packages[1] & packages[2]
