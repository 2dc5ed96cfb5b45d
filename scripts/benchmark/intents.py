"""Queries and their intents, Banking77 and CLINC150: their splits, and what is measured of the answers to them.

Notable: nothing is fitted on a test split. Banking77 has no validation split, so that a tenth of every intent's
training queries is held out for it: numbers are chosen with the rest, and what they are chosen for then learns from
all of them. CLINC150's out-of-scope training queries are not used, so that a classifier knows its intents only.
Shapes: N queries, C intents.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

SEED = 0
SPLITS = ("train", "val", "test", "oos_val", "oos_test")  # of CLINC150 that are used
BINS = 15  # of confidence, for the calibration error
Number = TypeVar("Number")


class Examples(NamedTuple):
    """Queries with their intents.

    Attributes:
        texts: N queries.
        labels: (N,) int64, places in the names of the intents.
    """

    texts: list[str]
    labels: np.ndarray

    def take(self, chosen: np.ndarray) -> "Examples":
        """Those at some places (n,) int64, or where a mask (N,) bool is true."""
        places = np.arange(len(self.texts))[chosen]
        return Examples([self.texts[place] for place in places], self.labels[places])

    def of(self, labels: np.ndarray) -> "Examples":
        """Those of some intents (c,) int64."""
        return self.take(np.isin(self.labels, labels))


@dataclasses.dataclass(frozen=True)
class Intents:
    """A data set.

    Attributes:
        names: The names of the C intents, sorted.
        train: What a classifier learns from.
        tuning: `train` without `validation`, for choosing numbers.
        validation: What they are chosen on.
        test: What is reported.
        out_validation: Queries of no intent, for choosing when to reject; empty if the data set has none.
        out_test: Those that are reported.
    """

    names: list[str]
    train: Examples
    tuning: Examples
    validation: Examples
    test: Examples
    out_validation: list[str]
    out_test: list[str]


class Answers(NamedTuple):
    """What a classifier says to N queries.

    Attributes:
        labels: (N,) int64, places in the names of the intents.
        scores: (N,) floats, higher is nearer to what was learned; the lowest are rejected as out of scope.
        confidences: (N,) floats from 0 to 1, the probability of the label; None if the classifier gives none.
    """

    labels: np.ndarray
    scores: np.ndarray
    confidences: np.ndarray | None = None


class Classifier(Protocol):
    """What can be measured."""

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        ...

    def answer(self, texts: list[str]) -> Answers:
        """Labels and scores of N queries."""
        ...


class Learner(Classifier, Protocol):
    """What can learn more intents later."""

    def add(self, examples: Examples) -> Any:
        """Learns from more queries, of intents that it knows or of others."""
        ...


def load_intents(folder: str | Path) -> Intents:
    """Reads a folder with CLINC150's data_full.json, or Banking77's train.csv and test.csv (columns text, category)."""
    folder = Path(folder)
    if (folder / "data_full.json").is_file():
        data = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
        missing = [split for split in SPLITS if split not in data]
        if missing:
            raise ValueError(
                f"{folder / 'data_full.json'} lacks the splits {', '.join(missing)}: get CLINC150's again"
            )
    elif (folder / "train.csv").is_file() and (folder / "test.csv").is_file():
        data = {split: _read_csv(folder / f"{split}.csv") for split in ("train", "test")}
    else:
        raise FileNotFoundError(
            f"{folder} holds neither data_full.json nor train.csv and test.csv: give the folder of CLINC150 or Banking77"
        )
    names = sorted({name for _, name in data["train"]})
    if len(names) < 3:
        raise ValueError(f"{folder} has {len(names)} intents in its training split: at least 3 are needed")
    places = {name: place for place, name in enumerate(names)}

    def examples(split: str) -> Examples:
        unknown = sorted({name for _, name in data[split]} - places.keys())
        if unknown:
            raise ValueError(f"the {split} split of {folder} has intents that its training split lacks: {unknown}")
        return Examples([text for text, _ in data[split]], np.array([places[name] for _, name in data[split]]))

    train, test = examples("train"), examples("test")
    if "val" in data:
        tuning, validation = train, examples("val")
    else:
        held_out = _tenth(train.labels)
        tuning, validation = train.take(~held_out), train.take(held_out)
    out_validation, out_test = ([text for text, _ in data.get(split, [])] for split in ("oos_val", "oos_test"))
    return Intents(names, train, tuning, validation, test, out_validation, out_test)


def _read_csv(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def _tenth(labels: np.ndarray) -> np.ndarray:
    """A mask (N,) bool of a tenth of every label's places, at least one of each, always the same ones."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        mask[own[: max(1, round(len(own) / 10))]] = True
    return mask


def old_and_new(intents: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The intents that are learned first, and the `new` ones that are added afterwards, (c,) int64 each.

    The old ones are the first of a permutation of the sorted names, which is always the same: of Banking77's, 57.
    """
    if not 0 < new < intents:
        raise ValueError(f"{new} of {intents} intents cannot be new: choose from 1 to {intents - 1}")
    order = np.random.default_rng(SEED).permutation(intents)
    return order[:-new], order[-new:]


def best_number(numbers: Sequence[Number], fit: Callable[[Number], Classifier], validation: Examples) -> Number:
    """The number whose classifier is most often right on validation data, the first of equals."""

    def accuracy(number: Number) -> float:
        return float((fit(number).answer(validation.texts).labels == validation.labels).mean())

    return max(numbers, key=accuracy)


def macro_f1(labels: np.ndarray, predicted: np.ndarray, intents: int) -> float:
    """The mean over all intents of F1, which is 0 for one that is neither there nor predicted; labels are (N,)."""
    hits = np.bincount(labels[labels == predicted], minlength=intents)
    sizes = np.bincount(labels, minlength=intents) + np.bincount(predicted, minlength=intents)
    return float((2 * hits / np.maximum(sizes, 1)).mean())


def calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 5), in 15 bins of equal width.

    Args:
        confidences: (N,) floats from 0 to 1, the probability of the predicted label.
        right: (N,) bool, whether it is the true one.
    """
    bins = np.minimum((confidences * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=confidences - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))
