"""Classifiers of intents on one data set: accuracy, calibration, rejection, intents that come later, speed and size.

Everything is fitted on train and validation data, nothing on a test split. LLE is trained by a recipe, with several
seeds; its row has the median of theirs, and a row of each seed follows. A row has, where it exists,

    accuracy, macro_f1, ece      of the queries in scope, with none refused
    out_of_scope_recall          refused share of out-of-scope queries; LLE uses its own threshold, a peer the one with
                                 the highest recall on validation data that keeps in-scope accuracy at `--floor`, or
                                 none if accuracy is below it anyway
    out_of_scope_precision       out-of-scope share of refused queries
    in_scope_accuracy            accuracy at that threshold, with refused queries as errors
    new_classes_accuracy         among all intents, after some were taught later than the others
    taught_classes_accuracy      the same for queries of taught intents
    old_classes_accuracy, drop   the same for the others, and its loss by teaching
    teach_seconds_per_1000       for 1,000 queries of new intents
    forget_largest_difference    between probabilities before teaching and after forgetting; 0: equal bit for bit
    seconds_training             of the fit with the chosen parameters, without their search
    queries_per_second           one query at a time, all methods in turn in one run
    speed_over_encoder           the median ratio of these speeds, repetition by repetition
    bytes                        weights, tokenizer and bank on disk; for the encoder, weights
    parameters                   of LLE
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import typer

from modeling_lle.configuration_fields import check_keys
from modeling_lle.data import load_labelled
from modeling_lle.data.labelled import OUT_OF_SCOPE_LABEL
from modeling_lle.evaluation import ClassificationMetric, OutOfScopeMetric, write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.training import load_recipe, run

from .classifier import LLEClassifier
from .history import describe
from .intents import SEED, Classifier, Examples, Intents, Learner, load_intents, old_and_new
from .peers.rejection import choose_threshold
from .timing import RESULTS, Row, queries_per_second, ratio

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
    "parameters",
)
Value = TypeVar("Value")


class Measured(NamedTuple):
    """Measurements of a method.

    Attributes:
        values: Values of `MEASURES`.
        numbers: Chosen parameters.
        predict: Answers one query, for the comparison of speeds.
        seeds: Values of each seed, with medians in `values`; empty for a single seed.
    """

    values: Row
    numbers: dict[str, Any]
    predict: Callable[[str], Any]
    seeds: Sequence[Row] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Setting shared by all methods.

    Args:
        intents: Data set.
        floor: In-scope validation accuracy that a peer must keep when refusing.
        new: Number of intents taught after the others; 0: none.
        models: For each seed, the folders of an LLE classifier of all intents and, if teaching is measured, of one of
            the old intents.
    """

    intents: Intents
    floor: float
    new: int
    models: Sequence[tuple[Path, Path | None]] = ()

    @property
    def old_and_new(self) -> tuple[list[str], list[str]]:
        """Intents learned first, and intents taught afterwards."""
        return old_and_new(self.intents.names, self.new) if self.new else (self.intents.names, [])

    def measure(self, classifier: Classifier, threshold: float | None = None) -> Row:
        """Evaluates a classifier on the test split; `threshold` is the least refused score, None: choose it."""
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
                references=np.concatenate([test.labels, [OUT_OF_SCOPE_LABEL] * len(outside)]),
                accepted=scores < threshold,
            )
        return {**values, "bytes": classifier.bytes}

    def _threshold(self, classifier: Classifier) -> float:
        known = classifier.answer(self.intents.validation.texts)
        unknown = classifier.answer(self.intents.outside_validation)
        right = known.labels == self.intents.validation.labels
        return choose_threshold(known.out_of_scope, right, unknown.out_of_scope, self.floor)

    def teach(self, learner: Learner) -> Row:
        """Teaches the new intents to a classifier of the others, and evaluates it on the test split."""
        test, (old, new) = self.intents.test, self.old_and_new
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
    """Share of correct labels."""
    return float((classifier.answer(examples.texts).labels == examples.labels).mean())


def timed(call: Callable[[], Value]) -> tuple[Value, float]:
    """Result of a call, and its seconds."""
    begin = time.perf_counter()
    value = call()
    return value, time.perf_counter() - begin


def taught_later(old: LLEClassifier, comparison: Comparison) -> Row:
    """Teaches the new intents to a classifier of the others, and makes it forget them."""
    texts = comparison.intents.test.texts
    before, _ = old.read(texts)
    values = comparison.teach(old)
    old.forget()
    after, _ = old.read(texts)
    return {**values, "forget_largest_difference": float((after - before).abs().max())}


def lle(comparison: Comparison) -> Measured:
    """Trained LLE classifiers, and teaching of new intents."""
    intents = comparison.intents
    seeds, first = [], None
    for folder, old_folder in comparison.models:
        classifier = LLEClassifier(folder, intents.names)
        trained = json.loads((folder / "metrics.json").read_text())
        values = comparison.measure(classifier, classifier.threshold if intents.outside_test else None)
        values |= {"seconds_training": 60 * trained["train_minutes"], "parameters": trained["parameters"]}
        if old_folder is not None:
            old = LLEClassifier(old_folder, comparison.old_and_new[0])
            values |= taught_later(old, comparison)
        seeds.append(values)
        first = first or classifier
    assert first is not None
    medians = {measure: statistics.median(row[measure] for row in seeds) for measure in seeds[0]}
    return Measured(medians, first.numbers, first.predict, seeds if len(seeds) > 1 else ())


def train(recipe: Path, source: str, names: tuple[Path, Path | None], seed: int, left_out: Sequence[str]) -> None:
    """Trains a classifier of all intents, and one without some of them, unless their folders exist.

    Args:
        recipe: Recipe.
        source: Data set.
        names: Folders of both; None: only the first.
        seed: Seed of both.
        left_out: Intents left out of the second.
    """
    for output, without in zip(names, ((), left_out), strict=True):
        if output is None or (output / "metrics.json").is_file():
            continue
        settings = [f"data.source={source}", f"training.seed={seed}", f"training.output_dir={output}"]
        loaded = load_recipe(recipe, settings)
        splits = ["train"] if loaded.data.held_out else ["train", "validation"]
        typer.echo(f"{source}: training {output}")
        run(loaded, {split: _read_without(source, split, without) for split in splits})


def _read_without(source: str, split: str, left_out: Sequence[str]) -> Any:
    """Split without the queries of some intents."""
    return load_labelled(source, split=split).filter(lambda label: label not in left_out, input_columns="label")


def fitted(
    comparison: Comparison, fit: Callable[[Examples, float], Classifier], penalties: tuple[float, ...]
) -> Measured:
    """A peer fitted with the penalty that is best on validation data."""
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
    from .peers.logistic_regression import PENALTIES, EmbeddingClassifier
    from .peers.sentence_embedding import SentenceEmbedding

    embed = SentenceEmbedding()
    return fitted(comparison, lambda examples, penalty: EmbeddingClassifier.fit(embed, examples, penalty), PENALTIES)


def embedding_neighbours(comparison: Comparison) -> Measured:
    """Nearest sentence embeddings, with parameters chosen before the new intents."""
    from .peers.sentence_embedding import EmbeddingNeighbours, SentenceEmbedding

    intents = comparison.intents
    old, _ = comparison.old_and_new
    peer = EmbeddingNeighbours.tuned(SentenceEmbedding(), intents.tuning.of(old), intents.validation.of(old))
    _, seconds = timed(lambda: peer.add(intents.train.of(old)))
    values = {**(comparison.teach(peer) if comparison.new else {}), "seconds_training": seconds}
    values |= comparison.measure(peer)
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
    recipe: Annotated[Path | None, typer.Option(help="Recipe of an LLE classifier of these intents.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of training runs.")] = 3,
    folder: Annotated[Path, typer.Option(help="Output folder; existing models are reused.")] = Path("runs"),
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; by default its folder's.")] = None,
    floor: Annotated[float, typer.Option(help="In-scope validation accuracy for peers to keep.")] = 0.88,
    new_classes: Annotated[int, typer.Option(min=0, help="Number of intents taught after the others.")] = 20,
    queries: Annotated[int, typer.Option(help="Test queries for measuring speed, one at a time.")] = 200,
    repetitions: Annotated[int, typer.Option(help="Repetitions of the speed measurement.")] = 9,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; repeatable.")] = None,
    output: Annotated[Path | None, typer.Option(help="Results file; else model_cards/results/DATASET.json.")] = None,
) -> None:
    """LLE, TF-IDF with an SVM, sentence embeddings and a small encoder on a data set of intents."""
    chosen = method or [name for name in METHODS if name != LLE or recipe is not None]
    check_keys(chosen, METHODS, "--method")
    if (LLE in chosen) != (recipe is not None):
        raise ValueError(f"the method {LLE!r} is trained by --recipe: give both or neither")
    dataset = dataset or Path(source).name
    trained = [folder / f"{dataset}-{seed}" for seed in range(seeds)] if recipe is not None else []
    models = [(path, path.with_name(f"{path.name}-old") if new_classes else None) for path in trained]
    comparison = Comparison(load_intents(source), floor, new_classes, models)
    for seed, names in enumerate(models):
        assert recipe is not None
        train(recipe, source, names, seed, comparison.old_and_new[1])
    measured: dict[str, Measured] = {}
    for name in chosen:
        typer.echo(f"{source}: {name}")
        measured[name] = METHODS[name](comparison)
    texts = comparison.intents.test.texts
    asked = [texts[place] for place in np.random.default_rng(SEED).permutation(len(texts))[:queries]]
    speeds = queries_per_second({name: found.predict for name, found in measured.items()}, asked, repetitions)
    rows = []
    metrics: dict[str, float] = {}
    for name, found in measured.items():
        values = found.values | {"queries_per_second": statistics.median(speeds[name])}
        if ENCODER in speeds:
            values["speed_over_encoder"] = ratio(speeds[name], speeds[ENCODER])
        rows.append({**_row(name, values), "numbers": describe(found.numbers)})
        typer.echo(rows[-1])
        rows += [_row(f"{name}, seed {seed}", own) for seed, own in enumerate(found.seeds)]
        prefix = "" if name == LLE else name.lower().replace(" ", "_") + "_"
        metrics |= {prefix + measure: values[measure] for measure in MEASURES if values.get(measure) is not None}
    write_results(output or RESULTS / f"{dataset}.json", this_command(), metrics, rows)


def _row(method: str, values: Row) -> Row:
    return {"method": method, **{measure: values.get(measure) for measure in MEASURES}}
