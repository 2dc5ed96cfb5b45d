"""Steps that every run of a recipe shares: configuration, tokenizer, first bias, trackers, minutes of training."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modeling_lle.training import steps
from modeling_lle.training.recipe import make_recipe
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER


def test_the_bias_begins_at_the_frequencies() -> None:
    bias = torch.zeros(4)
    steps.begin_at_frequencies(bias, np.array([0, 0, 0, 2]))
    torch.testing.assert_close(bias.exp(), torch.tensor([4, 1, 2, 1]) / 8)


def test_a_new_configuration_takes_its_sizes_from_the_tokenizer() -> None:
    config, path = steps.make_config({"hidden_size": 6}, WORD_TOKENIZER)
    assert path is None
    assert (config.vocab_size, config.hidden_size) == (len(WORD_TOKENIZER), 6)
    assert config.eos_token_id == WORD_TOKENIZER.eos_token_id


def test_a_trained_model_keeps_what_the_recipe_does_not_change(tmp_path: Path) -> None:
    make_language_model(window=5).save_pretrained(tmp_path)
    changes = {"path": str(tmp_path), "hidden_dropout": 0.25, "history": {"stream": {"recency": 0.75}}}
    config, path = steps.make_config(changes, WORD_TOKENIZER)
    assert path == str(tmp_path)
    assert (config.hidden_dropout, config.hidden_size) == (0.25, 6)
    assert (config.stream.window, config.stream.recency) == (5, 0.75)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.vocab_size is 3, but the tokenizer has \d+ types"):
        steps.make_config({"vocab_size": 3}, WORD_TOKENIZER)


def test_a_recipe_trains_loads_or_inherits_its_tokenizer(tmp_path: Path) -> None:
    WORD_TOKENIZER.save_pretrained(tmp_path)
    training = {"output_dir": str(tmp_path / "run")}
    for sections in ({"tokenizer": {"path": str(tmp_path)}}, {"model": {"path": str(tmp_path)}}):
        recipe = make_recipe({**sections, "training": training})
        assert steps.make_tokenizer(recipe, ["other words"]).get_vocab() == WORD_TOKENIZER.get_vocab()
    recipe = make_recipe({"tokenizer": {"kind": "word"}, "training": training})
    assert "other" in steps.make_tokenizer(recipe, ["other words"]).get_vocab()


def test_a_missing_tracker_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    arguments: Any = SimpleNamespace(report_to=["trackio"])
    with pytest.raises(ImportError, match=r"trackio needs trackio: pip install modeling_lle\[tracking\]"):
        steps.check_trackers(arguments)
    arguments.report_to = ["none"]
    steps.check_trackers(arguments)


def test_a_checkpoint_keeps_the_minutes_before_it(tmp_path: Path) -> None:
    clock = steps._Clock(None, 2.0)
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    arguments: Any = SimpleNamespace(output_dir=str(tmp_path))
    state: Any = SimpleNamespace(global_step=3, is_world_process_zero=True)
    clock.on_save(arguments, state, SimpleNamespace())  # type: ignore[arg-type]
    saved = json.loads((folder / clock.FILE).read_text())
    assert saved == pytest.approx(2.0, abs=0.1)
    assert steps._Clock(str(folder), 9.0).before == saved
    assert steps._Clock(str(tmp_path), 9.0).minutes is None  # of a checkpoint that does not say it
