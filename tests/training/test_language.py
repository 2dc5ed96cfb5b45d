"""Training a language model by a recipe: the segments of a calibration, and runs that cannot begin."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_lle.training import make_recipe
from modeling_lle.training.language import calibrate, run_language, segments
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_ids

TOKENS = np.arange(100)


def test_segments_cover_each_target_once() -> None:
    parts = list(segments(TOKENS, 25, 10))
    assert [part["input_ids"].shape for part in parts] == [(1, 10), (1, 10), (1, 5)]
    assert torch.cat([part["input_ids"][0] for part in parts]).tolist() == list(range(25))
    assert torch.cat([part["shift_labels"][0] for part in parts]).tolist() == list(range(1, 26))


def test_a_calibration_shorter_than_the_stream_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = make_language_model(window=50)
    with caplog.at_level(logging.WARNING):
        calibrate(model, make_ids(1, 30)[0].numpy(), 29)
    assert "calibrating on 29 tokens, fewer than the window of the stream" in caplog.text


def test_a_streamed_text_needs_a_number_of_steps(tmp_path: Path) -> None:
    recipe = make_recipe({"data": {"source": "x", "streaming": True}, "training": {"output_dir": str(tmp_path)}})
    with pytest.raises(ValueError, match=r"set training\.max_steps with data\.streaming"):
        run_language(recipe)


def test_a_recipe_without_text_is_refused(tmp_path: Path) -> None:
    recipe = make_recipe({"training": {"output_dir": str(tmp_path)}})
    with pytest.raises(ValueError, match=r"has no data\.source: set it"):
        run_language(recipe)
