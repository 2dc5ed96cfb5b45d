"""The precision of a training run, on hardware with and without bfloat16."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from modeling_lle.common import precision as precision_module
from modeling_lle.training import ClassificationArguments, LLETrainingArguments, TranslationArguments, load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(params=[True, False], ids=["with", "without"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    lack = None if request.param else "this processor is old"
    monkeypatch.setattr(precision_module, "lack_of_bfloat16", lambda device: lack)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    return request.param


def used(kind: type = LLETrainingArguments, **options: Any) -> tuple[str, Any, str]:
    made = kind(output_dir="unused", use_cpu=True, **options)
    assert (made.precision == "bfloat16") == made.bf16
    return made.precision, made.bf16_full_eval, made.mixed_precision


@pytest.mark.parametrize("kind", [LLETrainingArguments, ClassificationArguments, TranslationArguments])
def test_auto_is_what_the_hardware_is_fast_at(
    kind: type, fast: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    auto = ("bfloat16", False, "bf16") if fast else ("float32", False, "no")
    with caplog.at_level(logging.WARNING):
        assert used(kind) == used(kind, precision="auto") == auto
        assert used(kind, precision="float32") == used(kind, bf16=False) == ("float32", False, "no")
    assert not caplog.records


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"precision": "bfloat16"}, {"bf16": True, "precision": "bfloat16"}], ids=str
)
def test_bfloat16_that_the_hardware_lacks_is_float32_with_a_warning(
    options: dict[str, Any], fast: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert used(**options)[::2] == (("bfloat16", "bf16") if fast else ("float32", "no"))
    assert ("this processor is old: computing in float32" in caplog.text) != fast


def test_evaluation_in_bfloat16_and_the_launcher(
    fast: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert used(precision="float32", bf16_full_eval=True) == ("float32", fast, "no")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # accelerate launch --mixed_precision bf16
    assert used() == (("bfloat16", False, "bf16") if fast else ("float32", False, "no"))
    assert used(precision="float32") == ("float32", False, "no")
    assert "this processor is old" in caplog.text or fast


def test_made_again_with_other_values_it_is_the_same_precision(fast: bool, caplog: pytest.LogCaptureFixture) -> None:
    first = LLETrainingArguments(output_dir="unused", use_cpu=True, precision="bfloat16")
    caplog.clear()
    assert dataclasses.replace(first, max_steps=3).precision == first.precision == ("bfloat16" if fast else "float32")
    assert not caplog.records


@pytest.mark.parametrize("recipe", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_leaves_the_precision_to_the_hardware(recipe: Path, fast: bool) -> None:
    assert load_recipe(recipe).training.bf16 == fast


def test_fp16_is_left_as_it_is() -> None:
    made = LLETrainingArguments(output_dir="unused", use_cpu=True, fp16=True)
    assert (made.fp16, made.bf16, made.mixed_precision) == (True, False, "fp16")
