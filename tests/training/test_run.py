import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_lle import LLEForCausalLM, LLETokenizer
from modeling_lle.data import StreamDataset, collect, load_texts, tokenize
from modeling_lle.training import LLETrainer, Recipe, load_recipe, make_recipe, run
from scripts import train as script

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "dog"]
LINES = [" ".join(WORDS[(3 * line + place * place) % 10] for place in range(7)) for line in range(40)]
SMOKE = Path(__file__).parents[2] / "configs" / "lm" / "smoke.yaml"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from the Hub or from caches of earlier runs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for split, lines in {"train": LINES, "valid": LINES[:12]}.items():
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


def recipe(tmp_path: Path, source: Path | None = None, **sections: dict[str, Any]) -> Recipe:
    """A recipe of a few steps, on the text at `source`; `sections` are added to it."""
    values: dict[str, dict[str, Any]] = {
        "data": {} if source is None else {"source": str(source)},
        "tokenizer": {"kind": "word"},
        "model": {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "input_dropout": 0.2,
            "history": {"stream": {"window": 9}},
        },
        "training": {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 2,
            "segment_length": 6,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "calibration_tokens": 60,
            "precision": "float32",
            "disable_tqdm": True,
        },
    }
    return make_recipe({name: {**given, **sections.get(name, {})} for name, given in values.items()})


def rows(lines: list[str], column: str = "text") -> Dataset:
    return Dataset.from_dict({column: lines})


def texts(lines: list[str] = LINES, validation: list[str] = LINES[:12]) -> dict[str, Any]:
    return {"train": rows(lines), "validation": rows(validation)}


def losses(folder: Path, step: int) -> list[float]:
    history = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_the_folder_holds_all_of_it(tmp_path: Path, source: Path) -> None:
    given = recipe(tmp_path, source)
    metrics = run(given, resume=True)  # with nothing to resume from, it just starts
    folder = tmp_path / "out"
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["train_steps"] == 4
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert {"base_nats", "after_nats", "predictions"} <= set(metrics["calibration"])
    again = load_recipe(folder / "recipe.yaml")
    assert again.resolved() == given.resolved()

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(tokenizer) is LLETokenizer
    assert type(model) is LLEForCausalLM
    assert model.config.use_cache
    assert model.config.stream.gate != LLEForCausalLM.config_class().stream.gate
    assert metrics["parameters"] == model.num_parameters()
    tokens = collect(tokenize(load_texts(source, split="validation"), tokenizer), start=tokenizer.eos_token_id).ids
    trainer = LLETrainer(model=model, args=again.training, processing_class=tokenizer)
    assert trainer.evaluate(StreamDataset(tokens, 2, 50, evaluation=True))["eval_loss"] == pytest.approx(
        metrics["eval_loss"], abs=1e-6
    )


def test_training_begins_at_the_frequencies(tmp_path: Path, source: Path) -> None:
    run(recipe(tmp_path, source, training={"max_steps": 1, "learning_rate": 1e-9}))
    model = LLEForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    counts = dict.fromkeys(range(len(tokenizer)), 1)  # each type once more than it occurs
    for token in tokenizer(" ".join(LINES), add_special_tokens=False)["input_ids"]:
        counts[token] += 1
    counts[tokenizer.eos_token_id] += len(LINES) + 1  # the start, and the end of every line
    expected = torch.tensor([counts[token] for token in range(len(tokenizer))]).float()
    torch.testing.assert_close(model.lm_head.bias.data, (expected / expected.sum()).log(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_resuming_is_exact(tmp_path: Path, source: Path, streaming: bool) -> None:
    """An epoch has 14 steps; the training goes on from the newest checkpoint, of step 16, in the second one."""
    training = {"max_steps": 20, "save_steps": 8, "calibration_tokens": 0}
    given = recipe(tmp_path, source, data={"streaming": streaming}, training=training)
    first = run(given)
    folder = tmp_path / "out"
    weights = LLEForCausalLM.from_pretrained(folder).state_dict()
    expected = losses(folder, 20)
    (folder / "checkpoint-20").rename(tmp_path / "away")
    torch.manual_seed(5)
    second = run(recipe(tmp_path, source, data={"streaming": streaming}, training=training), resume=True)
    assert losses(folder, 20) == expected
    assert second["eval_loss"] == first["eval_loss"]
    for name, weight in LLEForCausalLM.from_pretrained(folder).state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_the_minutes_before_a_resumption_count(tmp_path: Path, source: Path) -> None:
    training = {"max_steps": 8, "save_steps": 4}
    first = run(recipe(tmp_path, source, training=training))
    clock = tmp_path / "out" / "checkpoint-4" / "train_minutes.json"
    assert 0 < json.loads(clock.read_text()) < first["train_minutes"]
    for minutes in ("60.0", None):
        (tmp_path / "out" / "checkpoint-8").rename(tmp_path / f"away-{minutes}")
        clock.unlink() if minutes is None else clock.write_text(minutes)
        again = run(recipe(tmp_path, source, training=training), resume=True)
        assert again.get("train_minutes", 0) == pytest.approx(60 if minutes else 0, abs=1)


def test_going_on_from_a_trained_model_with_history_in_the_loss(tmp_path: Path, source: Path) -> None:
    run(recipe(tmp_path, source, model={"history": {"stream": {"window": 9, "sharpness": 4.5}}}))
    first = LLEForCausalLM.from_pretrained(tmp_path / "out")
    model = {"path": str(tmp_path / "out"), "input_dropout": 0.1, "history": {"training": {"window": 7}}}
    options = {"learning_rate": 1e-9, "history_learning_rate": 0.1, "calibration_tokens": 0}
    training = {"output_dir": str(tmp_path / "more"), **options}
    given = recipe(tmp_path, source, training=training)
    given.model = model
    metrics = run(given)
    again = LLEForCausalLM.from_pretrained(tmp_path / "more")
    assert load_recipe(tmp_path / "more" / "recipe.yaml").model == model
    assert metrics["parameters"] == first.num_parameters()
    assert (again.config.input_dropout, again.config.training.window, again.config.stream.window) == (0.1, 7, 9)
    assert again.config.stream.sharpness != first.config.stream.sharpness
    assert again.config.stream.sharpness == pytest.approx(first.config.stream.sharpness, rel=0.5)
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight)
    calibrated = run(recipe(tmp_path, source, training={"output_dir": str(tmp_path / "last")}, model=model))
    assert "after_nats" in calibrated["calibration"]


def test_texts_in_memory_and_a_saved_tokenizer(tmp_path: Path) -> None:
    """Also one that cannot pad."""
    tokenizer = LLETokenizer.train(LINES, kind="word")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    given = recipe(tmp_path, tokenizer={"path": str(tmp_path / "tokenizer"), "kind": "bpe"})
    assert run(given, texts())["train_steps"] == 4
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(recipe(tmp_path, training={"report_to": "tensorboard", "calibration_tokens": 0}), texts())
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_a_missing_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == tracker else find(name, *more)
    )
    with pytest.raises(ImportError, match=rf"{tracker}: pip install modeling_lle\[tracking\]"):
        run(recipe(tmp_path, training={"report_to": tracker}), texts())


def test_the_stream_is_off(tmp_path: Path) -> None:
    assert "calibration" not in run(recipe(tmp_path, model={"history": {"stream": {"window": 0}}}), texts())


@pytest.mark.parametrize(
    ("sections", "given", "message"),
    [
        ({}, None, "the recipe has no data.source: set it"),
        ({}, texts([]), "there is no text"),
        ({}, texts([""]), "the texts hold no words|the texts are empty"),
        ({}, texts(["a"]), "2 tokens are too few|3 tokens are too few"),
        ({}, texts(validation=[]), "there is no text"),
        ({"tokenizer": {"kind": "bpe"}}, texts(), "vocab_size of at least"),
        ({}, texts(validation=[""]), "2 tokens are too few for 2 rows"),
        ({}, {"train": rows(LINES)}, "has no split 'validation'; it has: train"),
        ({"data": {"text_column": "txt"}}, texts(), r"no column 'txt' \(did you mean 'text'\?\)"),
        ({"model": {"vocab_size": 5}}, texts(), "model.vocab_size is 5, but the tokenizer has 1[0-9] types"),
        ({"data": {"streaming": True}, "training": {"max_steps": -1}}, texts(), "set training.max_steps"),
    ],
)
def test_bad_input(tmp_path: Path, sections: dict, given: dict | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(recipe(tmp_path, **sections), given)


def test_a_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(recipe(tmp_path, tmp_path / "nowhere.txt"))


def test_a_learning_rate_that_is_too_high(tmp_path: Path) -> None:
    training = {"learning_rate": math.inf, "lr_scheduler_type": "constant"}
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        run(recipe(tmp_path, training=training), texts())


def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The smoke recipe, as its docstring shows it."""
    monkeypatch.chdir(SMOKE.parents[2])
    settings = [f"training.output_dir={tmp_path}", "training.max_steps=3", "training.calibration_tokens=50"]
    flags = [part for setting in settings for part in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", ["train", str(SMOKE), *flags])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "3 steps." in said
    assert f"lle evaluate {tmp_path} FILES" in said
    assert (tmp_path / "metrics.json").is_file()
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), transformers.PreTrainedModel)
