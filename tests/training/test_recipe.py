import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeling_lle.training import Recipe, load_recipe, make_recipe

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relative output folders of the recipes lie in a temporary one."""
    monkeypatch.chdir(tmp_path)


def load(text: str, *settings: str) -> Recipe:
    path = Path("mine.yaml")
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, list(settings))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_recipes_of_the_repository_load(path: Path) -> None:
    assert load_recipe(path).training.output_dir == f"runs/{path.stem}"


def test_values_and_defaults() -> None:
    recipe = load("data: {source: here}\ntokenizer:\nmodel: {hidden_size: 8}\n")
    assert (recipe.data.source, recipe.data.text_column, recipe.data.streaming) == ("here", "text", False)
    assert (recipe.tokenizer.kind, recipe.model) == ("bpe", {"hidden_size": 8})
    assert (recipe.training.output_dir, recipe.training.segment_length) == ("runs/mine", 70)
    assert load("").data.source == ""


def test_numbers_as_people_write_them() -> None:
    recipe = load(
        "model: {input_dropout: 1e-1, history: {stream: {window: 5, recency: 2e-1, gate: [1e-1, 2, 3, 4]}}}\n"
        "training: {learning_rate: 2e-3, max_steps: 1e3, weight_decay: 0, num_train_epochs: 2}\n"
    )
    assert recipe.model["input_dropout"] == 0.1
    assert recipe.model["history"]["stream"] == {"window": 5, "recency": 0.2, "gate": [0.1, 2, 3, 4]}
    training = recipe.training
    assert (training.learning_rate, training.max_steps, training.num_train_epochs) == (0.002, 1000, 2)
    assert isinstance(training.max_steps, int)
    assert math.isinf(load("training: {learning_rate: .inf}").training.learning_rate)


@pytest.mark.parametrize(
    ("setting", "section", "expected"),
    [
        ("training.learning_rate=5e-4", "training", {"learning_rate": 0.0005}),
        ("training.precision=float32", "training", {"precision": "float32", "bf16": False}),
        ("training.report_to=[tensorboard]", "training", {"report_to": ["tensorboard"]}),
        ("data.source=a=b", "data", {"source": "a=b"}),
        ("data.name=null", "data", {"name": None}),
        ("tokenizer.vocab_size=300", "tokenizer", {"vocab_size": 300}),
        ("model.path=runs/other", "model", {"path": "runs/other"}),
        ("model.history.stream.window=7", "model", {"history": {"stream": {"window": 7, "recency": 0.5}}}),
    ],
)
def test_settings(setting: str, section: str, expected: dict[str, Any]) -> None:
    text = "data:\nmodel: {history: {stream: {recency: 0.5}}}\ntraining: {learning_rate: 1}\n"
    resolved = load(text, "training.seed=3", setting).resolved()
    assert expected.items() <= resolved[section].items()
    assert resolved["training"]["seed"] == 3


def test_names_of_labels_are_no_numbers() -> None:
    names = {0: "001", 1: "1e3", 2: "nan"}
    assert make_recipe({"model": {"id2label": names}}).model["id2label"] == names


def test_the_word_no_is_not_false() -> None:
    recipe = load("training: {eval_strategy: no, bf16: no}", "training.save_strategy=no")
    assert (recipe.training.save_strategy, recipe.training.eval_strategy, recipe.training.bf16) == ("no", "no", False)


def test_a_later_setting_overrules() -> None:
    assert load("", "training.seed=3", "training.seed=4").training.seed == 4


@pytest.mark.parametrize(
    ("text", "setting", "message"),
    [
        ("trainning: {}", None, r"unknown key in mine.yaml: 'trainning' \(did you mean 'training'\?\)"),
        ("data: {sorce: x}", None, r"section data of mine.yaml: 'sorce' \(did you mean 'source'\?\)"),
        ("tokenizer: {vocabsize: 9}", None, r"'vocabsize' \(did you mean 'vocab_size'\?\)"),
        ("model: {hiden_size: 8}", None, r"'hiden_size' \(did you mean 'hidden_size'\?\)"),
        ("model: {path: runs/other, hiden_size: 8}", None, r"'hiden_size' \(did you mean 'hidden_size'\?\)"),
        ("model: {history: {stream: {windw: 8}}}", None, r"'windw' \(did you mean 'window'\?\)"),
        ("training: {learning_rat: 1}", None, r"'learning_rat' \(did you mean 'learning_rate'\?\)"),
        ("", "training.learning_rat=1", r"'learning_rat' \(did you mean 'learning_rate'\?\)"),
        ("training: {learning_rate: fast}", None, "learning_rate in .* is 'fast': give a number"),
        ("training: {max_steps: 1.5}", None, "max_steps in .* is 1.5: give a whole number"),
        ("training: {seed: true}", None, "seed in .* is True: give a whole number"),
        ("training: {precision: half}", None, "is 'half': choose one of 'auto', 'float32', 'bfloat16'"),
        ("training: {precision: float32, bf16: true}", None, "precision is 'float32', but training.bf16 is True"),
        ("training: {precision: bfloat16, fp16: true}", None, "fp16 and bfloat16 exclude each other"),
        ("training: {seed: }", None, "seed in .* is None: give a whole number"),
        ("tokenizer: {kind: words}", None, "kind in .* is 'words': choose one of 'bpe', 'word'"),
        ("data: {sample_by: page}", None, "is 'page': choose one of 'line', 'document'"),
        ("data: [1", None, "mine.yaml is not valid YAML"),
        ("- data", None, "mine.yaml should hold keys with values"),
        ("training: 5", None, "the section training of mine.yaml should hold keys with values, got 5"),
        ("training: 5", "training.seed=1", "should hold keys with values, got 5"),
        ("", "seed=1", "cannot read the setting 'seed=1': write section.key=value"),
        ("", "training.seed", "cannot read the setting 'training.seed'"),
        ("", "data.source=[a", r"the setting 'data.source=\[a' is not valid YAML"),
    ],
)
def test_what_cannot_be_meant_is_an_error(text: str, setting: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(text, *([] if setting is None else [setting]))


def test_a_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"no recipe at nowhere.yaml: give a YAML file"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "data": {"source": "here", "streaming": True},
            "tokenizer": {"kind": "word"},
            "model": {"hidden_size": 8, "history": {"stream": {"window": 3}}},
            "training": {
                "bf16": True,
                "report_to": "tensorboard",
                "lr_scheduler_type": "cosine",
                "lr_scheduler_kwargs": {"num_cycles": 1},
                "warmup_steps": 0.1,
                "eval_strategy": "epoch",
                "save_strategy": "epoch",
                "load_best_model_at_end": True,
                "metric_for_best_model": "loss",
                "hub_token": "secret",
            },
        },
    ],
)
def test_a_resolved_recipe_gives_the_same_recipe(values: dict[str, Any]) -> None:
    recipe = make_recipe(values)
    text = yaml.safe_dump(recipe.resolved())
    assert "secret" not in text
    assert "TOKEN" not in text
    again = load(text)
    assert again.resolved() == recipe.resolved()
    assert (again.data, again.tokenizer, again.model) == (recipe.data, recipe.tokenizer, recipe.model)
    left, right = again.training.to_dict(), recipe.training.to_dict()
    assert {key for key in left if left[key] != right[key]} <= {"hub_token"}
