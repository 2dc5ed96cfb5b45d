"""Classifiers of intents on one data set: accuracy, calibration, rejection, intents that come later, speed and size.

Everything is fitted on train and validation data, nothing on a test split. LLE is trained by a recipe, with several
seeds; its row has the median of theirs, and a row of each seed follows. A row has, where it exists,

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
    """A method, measured.

    Attributes:
        values: What it reached, of `MEASURES`.
        numbers: Those that were chosen for it.
        predict: Answers one query, for the comparison of speeds.
        seeds: The values of each seed, of which `values` has the medians; empty if there is only one.
    """

    values: Row
    numbers: dict[str, Any]
    predict: Callable[[str], Any]
    seeds: Sequence[Row] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the methods have in common.

    Args:
        intents: The data set.
        floor: In-scope validation accuracy that a peer's refusals must keep.
        new: Intents that are taught after the others; 0: none.
        models: For each seed the folder of an LLE classifier of all intents, and that of one of the old intents, if
            teaching it is measured.
    """

    intents: Intents
    floor: float
    new: int
    models: Sequence[tuple[Path, Path | None]] = ()

    @property
    def old_and_new(self) -> tuple[list[str], list[str]]:
        """The intents that are learned first, and those that are taught afterwards."""
        return old_and_new(self.intents.names, self.new) if self.new else (self.intents.names, [])

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
        """Adds the new intents to a classifier that knows the others, and measures both on the test split."""
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
    """The share of right labels."""
    return float((classifier.answer(examples.texts).labels == examples.labels).mean())


def timed(call: Callable[[], Value]) -> tuple[Value, float]:
    """What a call returns, and its seconds."""
    begin = time.perf_counter()
    value = call()
    return value, time.perf_counter() - begin


def lle(comparison: Comparison) -> Measured:
    """The trained classifiers, and others that are taught."""
    intents = comparison.intents
    seeds, first = [], None
    for folder, old_folder in comparison.models:
        classifier = LLEClassifier(folder, intents.names)
        trained = json.loads((folder / "metrics.json").read_text())
        values = comparison.measure(classifier, classifier.threshold if intents.outside_test else None)
        values |= {"seconds_training": 60 * trained["train_minutes"], "parameters": trained["parameters"]}
        if old_folder is not None:
            old = LLEClassifier(old_folder, comparison.old_and_new[0])
            before, _ = old.read(intents.test.texts)
            values |= comparison.teach(old)
            old.forget()
            after, _ = old.read(intents.test.texts)
            values["forget_largest_difference"] = float((after - before).abs().max())
        seeds.append(values)
        first = first or classifier
    assert first is not None
    medians = {measure: statistics.median(row[measure] for row in seeds) for measure in seeds[0]}
    return Measured(medians, first.numbers, first.predict, seeds if len(seeds) > 1 else ())


def train(recipe: Path, source: str, names: tuple[Path, Path | None], seed: int, left_out: Sequence[str]) -> None:
    """Trains a classifier of all intents, and one of those that are not left out, unless they are there already.

    Args:
        recipe: The recipe.
        source: The data set.
        names: Folders of both; None: there is only the first.
        seed: The seed of both.
        left_out: Intents that the second does not get to see.
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
    """A split without the queries of some intents."""
    return load_labelled(source, split=split).filter(lambda label: label not in left_out, input_columns="label")


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
    seeds: Annotated[int, typer.Option(min=1, help="How often it is trained.")] = 3,
    folder: Annotated[Path, typer.Option(help="Where to; what is there already is not trained again.")] = Path("runs"),
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; else that of its folder.")] = None,
    floor: Annotated[float, typer.Option(help="In-scope validation accuracy that a peer's refusals keep.")] = 0.88,
    new_classes: Annotated[int, typer.Option(min=0, help="Intents that are taught after the others.")] = 20,
    queries: Annotated[int, typer.Option(help="Test queries that speed is measured on, one at a time.")] = 200,
    repetitions: Annotated[int, typer.Option(help="Repetitions of that measurement.")] = 9,
    method: Annotated[list[str] | None, typer.Option(help="Only this one; can be repeated.")] = None,
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
