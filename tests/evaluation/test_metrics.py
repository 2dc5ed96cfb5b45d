import builtins
import doctest
import math
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lle.evaluation import (
    ClassificationMetric,
    LanguageModelMetric,
    OutOfScopeMetric,
    TranslationMetric,
    metrics,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: object, **kwargs: object) -> None:
        raise AssertionError("the metric needs no network")

    monkeypatch.setattr("socket.socket.connect", connect)


@pytest.fixture
def metric(tmp_path: Path) -> LanguageModelMetric:
    return LanguageModelMetric(cache_dir=str(tmp_path))


@pytest.fixture
def classification(tmp_path: Path) -> ClassificationMetric:
    pytest.importorskip("sklearn")
    return ClassificationMetric(cache_dir=str(tmp_path))


@pytest.fixture
def out_of_scope(tmp_path: Path) -> OutOfScopeMetric:
    return OutOfScopeMetric(cache_dir=str(tmp_path))


@pytest.mark.parametrize("kind", [LanguageModelMetric, ClassificationMetric, OutOfScopeMetric, TranslationMetric])
def test_examples_of_the_documentation(kind: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needed = {ClassificationMetric: "sklearn", TranslationMetric: "sacrebleu"}
    if kind in needed:
        pytest.importorskip(needed[kind])
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(kind, globs=vars(metrics))
    results = doctest.DocTestRunner().run(example)
    assert (results.failed, results.attempted > 1) == (0, True)


@pytest.mark.parametrize("container", [list, np.array, torch.tensor])
def test_values(metric: LanguageModelMetric, container: type) -> None:
    assert isinstance(metric, evaluate.Metric)
    values = metric.compute(nats=container([1.0, 2.0, 3.0]), words=2, bytes=9)
    expected = {"ppl": math.exp(2), "word_ppl": math.exp(3), "bits_per_byte": 6 / math.log(2) / 9}
    assert values == pytest.approx(expected)


def test_batches_and_single_tokens_add_up(metric: LanguageModelMetric) -> None:
    metric.add_batch(nats=[1.0, 2.0])
    metric.add(nats=6.0)
    assert metric.compute() == pytest.approx({"ppl": math.exp(3)})
    assert metric.compute(nats=[1.0]) == pytest.approx({"ppl": math.e})  # the object starts again


def test_combines_with_other_metrics(metric: LanguageModelMetric) -> None:
    assert evaluate.combine([metric]).compute(nats=[2.0]) == pytest.approx({"ppl": math.exp(2)})


def test_huge_nats_do_not_overflow(metric: LanguageModelMetric) -> None:
    assert metric.compute(nats=[900.0, 900.0], words=1)["word_ppl"] < math.inf


def test_documentation_reaches_the_methods(metric: LanguageModelMetric) -> None:
    assert "bits_per_byte" in (metric.compute.__doc__ or "")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"nats": []}, "no tokens"),
        ({"nats": [1.0, math.nan]}, "nats of token 1 are nan"),
        ({"nats": [math.inf]}, "nats of token 0 are inf"),
        ({"nats": [1.0], "words": 0}, "words must be at least 1, got 0"),
        ({"nats": [1.0], "bytes": -1}, "bytes must be at least 1, got -1"),
    ],
)
def test_errors(metric: LanguageModelMetric, inputs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric.compute(**inputs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("container", [list, np.array, torch.tensor])
def test_classification(classification: ClassificationMetric, container: type) -> None:
    values = classification.compute(
        predictions=["a", "a", "b", "c"],
        references=["a", "b", "b", "b"],
        probabilities=container([0.5, 0.5, 1.0, 0.0]),
    )
    # F1: a 2/3, b 1/2, c 0. Bins: two of 0.5, of which one is right; one of 1.0, right; one of 0.0, wrong.
    assert values == pytest.approx({"accuracy": 0.5, "macro_f1": 7 / 18, "ece": 0.0})
    classification.add_batch(predictions=["a"], references=["a"], probabilities=container([0.25]))
    classification.add(prediction="b", reference="a", probabilities=0.25)
    assert classification.compute() == pytest.approx({"accuracy": 0.5, "macro_f1": 1 / 3, "ece": 0.25})


def test_bins_are_open_below_and_closed_above(classification: ClassificationMetric) -> None:
    def ece(first: float, second: float) -> float:
        values = classification.compute(predictions=["x", "x"], references=["x", "y"], probabilities=[first, second])
        return values["ece"]

    assert ece(0.6, 0.65) == pytest.approx((0.4 + 0.65) / 2)  # 0.6 = 9/15 ends a bin
    assert ece(0.61, 0.65) == pytest.approx((1.26 - 1) / 2)
    assert ece(0.0, 0.05) == pytest.approx(0.95 / 2)
    assert ece(1.0, 0.95) == pytest.approx(0.95 / 2)


NAMES = st.sampled_from(["a", "b", "c", "oos"])
quick = settings(deadline=None, max_examples=60)


@quick
@given(st.lists(st.tuples(NAMES, NAMES, st.floats(0, 1)), min_size=1, max_size=30))
def test_classification_is_plain_counting(rows: list[tuple[str, str, float]]) -> None:
    pytest.importorskip("sklearn")
    predictions, references, probabilities = (list(column) for column in zip(*rows, strict=True))
    values = ClassificationMetric(keep_in_memory=True).compute(
        predictions=predictions, references=references, probabilities=probabilities
    )
    assert values["accuracy"] == pytest.approx(sum(p == r for p, r, _ in rows) / len(rows))
    scores = []
    for name in {*predictions, *references}:
        both = sum(p == r == name for p, r, _ in rows)
        scores.append(2 * both / (predictions.count(name) + references.count(name)))
    assert values["macro_f1"] == pytest.approx(sum(scores) / len(scores))
    error = 0.0
    for i in range(15):
        members = [(p == r, c) for p, r, c in rows if i < c * 15 <= i + 1 or i == c == 0]
        error += abs(sum(right for right, _ in members) - sum(c for _, c in members)) / len(rows)
    assert values["ece"] == pytest.approx(error)
    assert 0 <= values["ece"] <= 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"predictions": [], "references": [], "probabilities": []}, "no predictions to measure"),
        ({"probabilities": [0.5, 1.5]}, "probability of example 1 is 1.5: give a value between 0 and 1"),
        ({"probabilities": [-0.1, 0.5]}, "probability of example 0 is -0.1"),
        ({"probabilities": [0.5, math.nan]}, "probability of example 1 is nan"),
        ({"probabilities": [0.5, None]}, "probability of example 1 is nan"),
        ({"predictions": ["a", None]}, "the class of example 1 is missing in the predictions"),
        ({"references": ["a", None]}, "the class of example 1 is missing in the references"),
        ({"references": ["a"]}, r"number of predictions .2. and references .1."),
        ({"references": [0, 1], "predictions": [0, 1]}, "don't match the expected format"),
    ],
)
def test_classification_errors(classification: ClassificationMetric, inputs: dict, message: str) -> None:
    good = {"predictions": ["a", "b"], "references": ["a", "b"], "probabilities": [0.5, 0.5]}
    with pytest.raises(ValueError, match=message):
        classification.compute(**{**good, **inputs})


def test_rounding_of_a_softmax_is_no_error(classification: ClassificationMetric) -> None:
    values = classification.compute(predictions=["a"], references=["a"], probabilities=[1.000001])
    assert values == {"accuracy": 1.0, "macro_f1": 1.0, "ece": 0.0}


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install modeling_lle\[classification\]"):
        ClassificationMetric()


@pytest.mark.parametrize("container", [list, np.array, torch.tensor])
def test_out_of_scope(out_of_scope: OutOfScopeMetric, container: type) -> None:
    values = out_of_scope.compute(
        predictions=["a", "a", "b", "a", "a", "b", "oos"],
        references=["a", "b", "b", "b", "oos", "oos", "oos"],
        accepted=container([True, True, False, True, False, True, True]),
    )
    expected = {"out_of_scope_recall": 2 / 3, "out_of_scope_precision": 2 / 3, "in_scope_accuracy": 1 / 4}
    assert values == pytest.approx(expected)


def test_out_of_scope_has_any_name(out_of_scope: OutOfScopeMetric) -> None:
    inputs = {"predictions": ["a", "none"], "references": ["none", "a"], "accepted": [True, True]}
    values = out_of_scope.compute(**inputs, out_of_scope="none")
    assert values == {"out_of_scope_recall": 0.0, "out_of_scope_precision": 0.0, "in_scope_accuracy": 0.0}
    with pytest.raises(ValueError, match=r"no reference is 'oos': .* name the class of the latter with out_of_scope="):
        out_of_scope.compute(**inputs)


@quick
@given(st.lists(st.tuples(NAMES, NAMES, st.booleans()), min_size=1, max_size=30))
def test_out_of_scope_is_plain_counting(rows: list[tuple[str, str, bool]]) -> None:
    inside, outside = [("a", "a", True), ("b", "a", False)], [("a", "oos", False)]  # there is some of both
    rows = [*rows, *inside, *outside]
    predictions, references, accepted = (list(column) for column in zip(*rows, strict=True))
    values = OutOfScopeMetric(keep_in_memory=True).compute(
        predictions=predictions, references=references, accepted=accepted
    )
    answers = [prediction if taken else "oos" for prediction, _, taken in rows]
    both = sum(answer == reference == "oos" for answer, reference in zip(answers, references, strict=True))
    right = sum(a == r != "oos" for a, r in zip(answers, references, strict=True))
    assert values["out_of_scope_recall"] == pytest.approx(both / references.count("oos"))
    assert values["out_of_scope_precision"] == pytest.approx(both / answers.count("oos"))
    assert values["in_scope_accuracy"] == pytest.approx(right / sum(r != "oos" for r in references))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"predictions": [], "references": [], "accepted": []}, "no predictions to measure"),
        ({"references": ["oos", "oos"]}, "every reference is 'oos'"),
        ({"references": ["a", "a"]}, "no reference is 'oos'"),
        ({"references": ["oos", None]}, "the class of example 1 is missing in the references"),
        ({"accepted": [True, None]}, "accepted is None at example 1: give True or False"),
        ({"accepted": [0.7, 0.2]}, r"accepted is 0.7 at example 0"),
        ({"accepted": ["True", "False"]}, "could not convert string"),
    ],
)
def test_out_of_scope_errors(out_of_scope: OutOfScopeMetric, inputs: dict, message: str) -> None:
    good = {"predictions": ["a", "b"], "references": ["oos", "b"], "accepted": [False, True]}
    with pytest.raises(ValueError, match=message):
        out_of_scope.compute(**{**good, **inputs})
