"""Classifiers of intents on one data set: accuracy, calibration, rejection, intents that come later, speed and size.

Everything is fitted on train and validation data; the test splits are read once. A row has, where it exists,

    accuracy, macro_f1, ece      of the queries in scope, with none rejected
    out_of_scope_recall          share of the queries out of scope that are rejected; the threshold is that of the
                                 highest recall on validation data at which in-scope accuracy stays at `--floor`
    in_scope_accuracy            what is left of accuracy with that threshold, a rejected query being an error
    new_classes_accuracy         of the intents that were added after the others had been learned, among all intents
    old_classes_accuracy, drop   of the others, and how much higher it was before
    teach_seconds_per_1000       for so many queries of new intents
    seconds_training             of the fit with the chosen numbers, without the search for them
    queries_per_second           one query at a time, all methods in turn in one run
    speed_over_encoder           the median ratio of these speeds, repetition by repetition
    bytes                        what the method takes on disk
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import typer

from modeling_lle.configuration_lle import check_keys
from modeling_lle.evaluation.out_of_scope import choose_threshold
from modeling_lle.evaluation.results import this_command

from .history import describe
from .intents import (
    SEED,
    Answers,
    Classifier,
    Examples,
    Intents,
    Learner,
    best_number,
    calibration_error,
    load_intents,
    macro_f1,
    old_and_new,
)
from .timing import RESULTS, Row, queries_per_second, ratio, write_rows

ENCODER = "small encoder"
LLE = "LLE"  # the method that reads --model
MEASURES = (
    "accuracy",
    "macro_f1",
    "ece",
    "in_scope_accuracy",
    "out_of_scope_recall",
    "new_classes_accuracy",
    "old_classes_accuracy",
    "old_classes_drop",
    "teach_seconds_per_1000",
    "seconds_training",
    "queries_per_second",
    "speed_over_encoder",
    "bytes",
)
Value = TypeVar("Value")


class Measured(NamedTuple):
    """A method, measured.

    Attributes:
        values: What it reached, of `MEASURES`, and `numbers`, those that were chosen for it.
        predict: Answers one query, for the comparison of speeds.
    """

    values: Row
    predict: Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the methods have in common.

    Args:
        intents: The data set.
        floor: In-scope validation accuracy that rejecting must keep.
        new: Intents that are added after the others.
        model: Folder of an LLE classifier, if one takes part.
    """

    intents: Intents
    floor: float
    new: int
    model: Path | None = None

    def measure(self, classifier: Classifier, seconds: float | None, numbers: dict[str, Any]) -> Measured:
        """Reads the test splits with a classifier, which took so many seconds to fit with some chosen numbers."""
        test = self.intents.test
        answers = classifier.answer(test.texts)
        right = answers.labels == test.labels
        confidences = answers.confidences
        values = {
            "accuracy": float(right.mean()),
            "macro_f1": macro_f1(test.labels, answers.labels, len(self.intents.names)),
            "ece": None if confidences is None else calibration_error(confidences, right),
            "seconds_training": seconds,
            "bytes": classifier.bytes,
            "numbers": describe(numbers),
        }
        return Measured(values | self._reject(classifier, answers, right), lambda text: classifier.answer([text]))

    def _reject(self, classifier: Classifier, answers: Answers, right: np.ndarray) -> Row:
        """What a threshold gives that is fitted on validation data; nothing if the classifier is below the floor."""
        validation = self.intents.validation
        if not self.intents.out_validation:
            return {}
        known = classifier.answer(validation.texts)
        right_known = known.labels == validation.labels
        if right_known.mean() < self.floor:
            typer.echo(f"no rejection: validation accuracy is {right_known.mean():.4f}, below --floor {self.floor}")
            return {}
        unknown = classifier.answer(self.intents.out_validation)
        threshold = choose_threshold(known.scores, right_known, unknown.scores, self.floor)
        outside = classifier.answer(self.intents.out_test)
        return {
            "in_scope_accuracy": float((right & (answers.scores >= threshold)).mean()),
            "out_of_scope_recall": float((outside.scores < threshold).mean()),
        }

    def teach(self, learner: Learner) -> Row:
        """Adds the new intents to a classifier that knows the others, and measures both on the test split."""
        intents, (old, new) = self.intents, old_and_new(len(self.intents.names), self.new)
        before = accuracy(learner, intents.test.of(old))
        added = intents.train.of(new)
        _, seconds = timed(lambda: learner.add(added))
        after = accuracy(learner, intents.test.of(old))
        return {
            "new_classes_accuracy": accuracy(learner, intents.test.of(new)),
            "old_classes_accuracy": after,
            "old_classes_drop": before - after,
            "teach_seconds_per_1000": 1000 * seconds / len(added.texts),
        }


def accuracy(classifier: Classifier, examples: Examples) -> float:
    """The share of right labels."""
    return float((classifier.answer(examples.texts).labels == examples.labels).mean())


def timed(call: Callable[[], Value]) -> tuple[Value, float]:
    """What a call returns, and its seconds."""
    begin = time.perf_counter()
    value = call()
    return value, time.perf_counter() - begin


def svm(comparison: Comparison) -> Measured:
    """A linear support vector machine on TF-IDF."""
    from .peers.linear_classifier import PENALTIES, LinearClassifier

    intents = comparison.intents
    penalty = best_number(PENALTIES, lambda number: LinearClassifier.fit(intents.tuning, number), intents.validation)
    peer, seconds = timed(lambda: LinearClassifier.fit(intents.train, penalty))
    return comparison.measure(peer, seconds, {"C": penalty})


def embedding(comparison: Comparison) -> Measured:
    """A logistic regression on sentence embeddings."""
    from .peers.sentence_embedding import PENALTIES, EmbeddingClassifier, SentenceEmbedding

    intents, embed = comparison.intents, SentenceEmbedding()

    def fit(examples: Examples, penalty: float) -> EmbeddingClassifier:
        return EmbeddingClassifier.fit(embed, examples, penalty)

    penalty = best_number(PENALTIES, lambda number: fit(intents.tuning, number), intents.validation)
    peer, seconds = timed(lambda: fit(intents.train, penalty))
    return comparison.measure(peer, seconds, {"C": penalty})


def embedding_neighbours(comparison: Comparison) -> Measured:
    """The nearest of sentence embeddings, whose numbers are chosen before the new intents come."""
    from .peers.sentence_embedding import EmbeddingNeighbours, SentenceEmbedding

    intents = comparison.intents
    old, _ = old_and_new(len(intents.names), comparison.new)
    peer = EmbeddingNeighbours.tuned(
        SentenceEmbedding(), len(intents.names), intents.tuning.of(old), intents.validation.of(old)
    )
    _, seconds = timed(lambda: peer.add(intents.train.of(old)))
    taught = comparison.teach(peer)
    measured = comparison.measure(peer, seconds, {"neighbours": peer.neighbours, "sharpness": peer.sharpness})
    return measured._replace(values=measured.values | taught)


def small_encoder(comparison: Comparison) -> Measured:
    """An untrained encoder, for its speed and size."""
    from .peers.small_encoder import SmallEncoder

    peer = SmallEncoder(len(comparison.intents.names))
    return Measured({"bytes": peer.bytes, "numbers": "random weights"}, peer.predict)


METHODS: dict[str, Callable[[Comparison], Measured]] = {
    "SVM": svm,
    "embedding": embedding,
    "embedding neighbours": embedding_neighbours,
    ENCODER: small_encoder,
}


def classification(
    source: Annotated[str, typer.Argument(help="Folder of Banking77 or CLINC150.")],
    model: Annotated[Path | None, typer.Option(help="Folder of an LLE classifier of the same intents.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Its name in the results; else that of its folder.")] = None,
    floor: Annotated[float, typer.Option(help="In-scope validation accuracy that rejecting must keep.")] = 0.88,
    new_classes: Annotated[int, typer.Option(help="Intents that are added after the others.")] = 20,
    queries: Annotated[int, typer.Option(help="Test queries that speed is measured on, one at a time.")] = 200,
    repetitions: Annotated[int, typer.Option(help="Repetitions of that measurement.")] = 9,
    method: Annotated[list[str] | None, typer.Option(help="Only this one; can be repeated.")] = None,
    output: Annotated[Path, typer.Option(help="Results file; rows of other data sets in it are kept.")] = (
        RESULTS / "classification.json"
    ),
) -> None:
    """TF-IDF with an SVM, sentence embeddings and a small encoder on a data set of intents."""
    if model is not None and LLE not in METHODS:
        raise ValueError(f"--model {model}: there is no method {LLE!r} that would read it; leave the option out")
    chosen = method or [name for name in METHODS if name != LLE or model is not None]
    check_keys(chosen, METHODS, "--method")
    comparison = Comparison(load_intents(source), floor, new_classes, model)
    measured: dict[str, Measured] = {}
    for name in chosen:
        typer.echo(f"{source}: {name}")
        measured[name] = METHODS[name](comparison)
    texts = comparison.intents.test.texts
    asked = [texts[place] for place in np.random.default_rng(SEED).permutation(len(texts))[:queries]]
    speeds = queries_per_second({name: found.predict for name, found in measured.items()}, asked, repetitions)
    rows = []
    for name, found in measured.items():
        values = found.values | {"queries_per_second": statistics.median(speeds[name])}
        if ENCODER in speeds:
            values["speed_over_encoder"] = ratio(speeds[name], speeds[ENCODER])
        measures = {measure: values.get(measure) for measure in MEASURES}
        rows.append(
            {"dataset": dataset or Path(source).name, "method": name, **measures, "numbers": values["numbers"]}
        )
        typer.echo(rows[-1])
    write_rows(output, this_command(), source, rows, flat_metrics)


def flat_metrics(rows: list[Row]) -> dict[str, float]:
    """What was measured, by names of data set, method and measure."""
    return {
        f"{row['dataset']}_{row['method']}_{measure}".lower().replace(" ", "_").replace("-", "_"): row[measure]
        for row in rows
        for measure in MEASURES
        if row[measure] is not None
    }
