"""Classifiers of intents on one data set: accuracy, calibration, rejection, intents that come later, speed and size.

Everything is fitted on train and validation data, nothing on a test split. A row has, where it exists,

    accuracy, macro_f1, ece      of the queries in scope, with none refused
    out_of_scope_recall          share of the queries out of scope that are refused; LLE has its own threshold, a peer
                                 that of the highest recall on validation data at which in-scope accuracy stays at
                                 `--floor`, and none where it is below that anyway
    out_of_scope_precision       share of what is refused that is out of scope
    in_scope_accuracy            what is left of accuracy with that threshold, a refused query being an error
    new_classes_accuracy         among all intents, when some were taught after the others had been learned
    taught_classes_accuracy      the same of the queries whose intent was taught
    old_classes_accuracy, drop   the same of the others, and how much higher it was before
    teach_seconds_per_1000       for so many queries of new intents
    forget_largest_difference    of a probability before teaching and after forgetting; 0 is equal bit for bit
    seconds_training             of the fit with the chosen numbers, without the search for them
    queries_per_second           one query at a time, all methods in turn in one run
    speed_over_encoder           the median ratio of these speeds, repetition by repetition
    bytes                        what weights, tokenizer and bank take on disk; of the encoder, the weights
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import typer

from modeling_lle.configuration_lle import check_keys
from modeling_lle.data.labelled import OUT_OF_SCOPE
from modeling_lle.evaluation import ClassificationMetric, OutOfScopeMetric
from modeling_lle.evaluation.results import this_command

from .classifier import LLEClassifier
from .history import describe
from .intents import SEED, Classifier, Examples, Intents, Learner, load_intents, old_and_new
from .peers.rejection import choose_threshold
from .timing import RESULTS, Row, queries_per_second, ratio, write_rows

LLE, ENCODER = "LLE", "small encoder"
MEASURES = (
    "accuracy",
    "macro_f1",
    "ece",
    "in_scope_accuracy",
    "out_of_scope_recall",
    "out_of_scope_precision",
    "new_classes_accuracy",
    "taught_classes_accuracy",
    "old_classes_accuracy",
    "old_classes_drop",
    "teach_seconds_per_1000",
    "forget_largest_difference",
    "seconds_training",
    "queries_per_second",
    "speed_over_encoder",
    "bytes",
)
Value = TypeVar("Value")


class Measured(NamedTuple):
    """A method, measured.

    Attributes:
        values: What it reached, of `MEASURES`.
        numbers: Those that were chosen for it.
        predict: Answers one query, for the comparison of speeds.
    """

    values: Row
    numbers: dict[str, Any]
    predict: Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the methods have in common.

    Args:
        intents: The data set.
        floor: In-scope validation accuracy that a peer's refusals must keep.
        new: Intents that are taught after the others.
        model: Folder of an LLE classifier of all intents, if one takes part.
        old_model: Folder of one that knows only the old intents, if teaching it is measured.
    """

    intents: Intents
    floor: float
    new: int
    model: Path | None = None
    old_model: Path | None = None

    def measure(self, classifier: Classifier, threshold: float | None = None) -> Row:
        """Reads the test split with a classifier; `threshold` is the least score that is refused, None: find it."""
        test, outside = self.intents.test, self.intents.outside_test
        answers = classifier.answer(test.texts)
        uncertain = answers.confidences is None
        values: Row = ClassificationMetric(keep_in_memory=True).compute(
            predictions=answers.labels,
            references=test.labels,
            probabilities=np.ones(len(test.labels)) if uncertain else answers.confidences,
        )
        if uncertain:
            del values["ece"]
        if outside and threshold is None:
            threshold = self._threshold(classifier)
        if outside and threshold != math.inf:
            refused = classifier.answer(outside)
            scores = np.concatenate([answers.out_of_scope, refused.out_of_scope])
            values |= OutOfScopeMetric(keep_in_memory=True).compute(
                predictions=np.concatenate([answers.labels, refused.labels]),
                references=np.concatenate([test.labels, [OUT_OF_SCOPE] * len(outside)]),
                accepted=scores < threshold,
            )
        return {**values, "bytes": classifier.bytes}

    def _threshold(self, classifier: Classifier) -> float:
        known = classifier.answer(self.intents.validation.texts)
        unknown = classifier.answer(self.intents.outside_validation)
        right = known.labels == self.intents.validation.labels
        return choose_threshold(known.out_of_scope, right, unknown.out_of_scope, self.floor)

    def teach(self, learner: Learner) -> Row:
        """Adds the new intents to a classifier that knows the others, and measures both on the test split."""
        test, (old, new) = self.intents.test, old_and_new(self.intents.names, self.new)
        before = accuracy(learner, test.of(old))
        added = self.intents.train.of(new)
        _, seconds = timed(lambda: learner.add(added))
        after = accuracy(learner, test.of(old))
        return {
            "new_classes_accuracy": accuracy(learner, test),
            "taught_classes_accuracy": accuracy(learner, test.of(new)),
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


def lle(comparison: Comparison) -> Measured:
    """The trained classifier, and another that is taught."""
    intents = comparison.intents
    assert comparison.model is not None
    classifier = LLEClassifier(comparison.model, intents.names)
    values = comparison.measure(classifier, classifier.threshold if intents.outside_test else None)
    if comparison.old_model is not None:
        old = LLEClassifier(comparison.old_model, old_and_new(intents.names, comparison.new)[0])
        before, _ = old.read(intents.test.texts)
        values |= comparison.teach(old)
        old.forget()
        after, _ = old.read(intents.test.texts)
        values["forget_largest_difference"] = float((after - before).abs().max())
    return Measured(values, classifier.numbers, classifier.predict)


def fitted(
    comparison: Comparison, fit: Callable[[Examples, float], Classifier], penalties: tuple[float, ...]
) -> Measured:
    """A peer that is fitted with the penalty that is best on validation data, the first of equals."""
    intents = comparison.intents
    penalty = max(penalties, key=lambda number: accuracy(fit(intents.tuning, number), intents.validation))
    peer, seconds = timed(lambda: fit(intents.train, penalty))
    values = {**comparison.measure(peer), "seconds_training": seconds}
    return Measured(values, {"C": penalty}, lambda text: peer.answer([text]))


def svm(comparison: Comparison) -> Measured:
    """A linear support vector machine on TF-IDF."""
    from .peers.linear_classifier import PENALTIES, LinearClassifier

    return fitted(comparison, LinearClassifier.fit, PENALTIES)


def embedding(comparison: Comparison) -> Measured:
    """A logistic regression on sentence embeddings."""
    from .peers.sentence_embedding import PENALTIES, EmbeddingClassifier, SentenceEmbedding

    embed = SentenceEmbedding()
    return fitted(comparison, lambda examples, penalty: EmbeddingClassifier.fit(embed, examples, penalty), PENALTIES)


def embedding_neighbours(comparison: Comparison) -> Measured:
    """The nearest of sentence embeddings, whose numbers are chosen before the new intents come."""
    from .peers.sentence_embedding import EmbeddingNeighbours, SentenceEmbedding

    intents = comparison.intents
    old, _ = old_and_new(intents.names, comparison.new)
    peer = EmbeddingNeighbours.tuned(SentenceEmbedding(), intents.tuning.of(old), intents.validation.of(old))
    _, seconds = timed(lambda: peer.add(intents.train.of(old)))
    values = {**comparison.teach(peer), "seconds_training": seconds, **comparison.measure(peer)}
    numbers = {"neighbours": peer.neighbours, "sharpness": peer.sharpness}
    return Measured(values, numbers, lambda text: peer.answer([text]))


def small_encoder(comparison: Comparison) -> Measured:
    """An untrained encoder, for its speed and size."""
    from .peers.small_encoder import SmallEncoder

    peer = SmallEncoder(len(comparison.intents.names))
    return Measured({"bytes": peer.bytes}, {}, peer.predict)


METHODS: dict[str, Callable[[Comparison], Measured]] = {
    LLE: lle,
    "SVM": svm,
    "embedding": embedding,
    "embedding neighbours": embedding_neighbours,
    ENCODER: small_encoder,
}


def classification(
    source: Annotated[str, typer.Argument(help="Queries with intents, such as Banking77 or CLINC150.")],
    model: Annotated[Path | None, typer.Option(help="Folder of an LLE classifier of the same intents.")] = None,
    old_model: Annotated[
        Path | None, typer.Option(help="Folder of one that knows only the old intents, and is taught the others.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Its name in the results; else that of its folder.")] = None,
    floor: Annotated[float, typer.Option(help="In-scope validation accuracy that a peer's refusals keep.")] = 0.88,
    new_classes: Annotated[int, typer.Option(help="Intents that are taught after the others.")] = 20,
    queries: Annotated[int, typer.Option(help="Test queries that speed is measured on, one at a time.")] = 200,
    repetitions: Annotated[int, typer.Option(help="Repetitions of that measurement.")] = 9,
    method: Annotated[list[str] | None, typer.Option(help="Only this one; can be repeated.")] = None,
    output: Annotated[Path, typer.Option(help="Results file; rows of other data sets in it are kept.")] = (
        RESULTS / "classification.json"
    ),
) -> None:
    """LLE, TF-IDF with an SVM, sentence embeddings and a small encoder on a data set of intents."""
    chosen = method or [name for name in METHODS if name != LLE or model is not None]
    check_keys(chosen, METHODS, "--method")
    if (LLE in chosen) != (model is not None) or (old_model is not None and model is None):
        raise ValueError(f"the method {LLE!r} reads --model, and --old-model beside it: give both or neither")
    comparison = Comparison(load_intents(source), floor, new_classes, model, old_model)
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
        about = {"dataset": dataset or Path(source).name, "method": name}
        rows.append({**about, **measures, "numbers": describe(found.numbers)})
        typer.echo(rows[-1])
    write_rows(output, this_command(), source, rows, flat_metrics)


def flat_metrics(rows: list[Row]) -> dict[str, float]:
    """What was measured, by names of data set, method (LLE goes without) and measure."""
    return {
        "_".join([row["dataset"], *([] if row["method"] == LLE else [row["method"]]), measure])
        .lower()
        .replace(" ", "_")
        .replace("-", "_"): row[measure]
        for row in rows
        for measure in MEASURES
        if row[measure] is not None
    }
