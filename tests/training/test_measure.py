"""Measured speed, with a clock that is made up."""

from typing import Any

import pytest

from modeling_lle.training import make_recipe, measure

RECIPE: dict[str, Any] = {
    "tokenizer": {"kind": "bpe", "vocab_size": 300},
    "model": {"hidden_size": 16, "history": {"stream": {"window": 200}}},
    "training": {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "segment_length": 16,
        "precision": "float32",
        "disable_tqdm": True,
    },
}


@pytest.mark.parametrize(
    ("seconds", "tokens", "words"),
    [
        (1e6, 100_000, "reads 100,000 tokens 2 times, its maximum"),
        (60.0, 17_280, "reads 17,280 tokens 2 times, what fits 1.0 minutes of training"),  # 0.9 * 60 s / 0.1 s / 2
        (0.1, 1_280, "2 times, its minimum, in more than 0.0 minutes"),  # 20 steps an epoch
    ],
)
def test_it_reads_what_fits_the_time(monkeypatch: pytest.MonkeyPatch, seconds: float, tokens: int, words: str) -> None:
    monkeypatch.setattr(measure, "seconds_of_a_step", lambda recipe, patience: 0.1)
    monkeypatch.setattr(measure, "lack_of_bfloat16", lambda device: "this processor is old")
    said: list[str] = []
    recipe = make_recipe(RECIPE)
    assert measure.choose_tokens(recipe, 100_000, seconds, said.append) == tokens
    assert words in said[0]
    assert "64 tokens takes 0.10 s on this machine, in float32, as this processor is old:" in said[0]


@pytest.mark.parametrize(("patience", "steps"), [(1e6, measure.MEASURED_STEPS), (0.0, 1)])
def test_a_step_is_measured_after_a_warm_up(monkeypatch: pytest.MonkeyPatch, patience: float, steps: int) -> None:
    # Steps take 900 s, 800 s, then 1 s, 2 s, 3 s ...
    ends = [900.0, 800.0, *range(1, steps + 1)]
    clock = iter([time for index, taken in enumerate(ends) for time in (1e4 * index, 1e4 * index + taken)])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    recipe = make_recipe(RECIPE)
    assert measure.seconds_of_a_step(recipe, patience) == (steps + 1) / 2
    assert next(clock, None) is None
