"""Queries and their intents, and what all classifiers of them have in common.

Notable: nothing is fitted on a test split. Where there is no validation split, as in Banking77, a tenth of every
intent's training queries is held out for it: numbers are chosen with the rest, and what they are chosen for then
learns from all of them. CLINC150's out-of-scope training queries are not used, so that a classifier knows its intents
only. Shapes: N queries.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from modeling_lle.data import check_labelled, load_labelled, split_out_of_scope
from modeling_lle.data.sources import local_files

SEED = 0


class Examples(NamedTuple):
    """Queries with their intents.

    Attributes:
        texts: N queries.
        labels: (N,) str, the names of their intents.
    """

    texts: list[str]
    labels: np.ndarray

    def take(self, chosen: np.ndarray) -> "Examples":
        """Those where a mask (N,) bool is true."""
        return Examples([text for text, taken in zip(self.texts, chosen, strict=True) if taken], self.labels[chosen])

    def of(self, names: Sequence[str]) -> "Examples":
        """Those of some intents."""
        return self.take(np.isin(self.labels, names))


@dataclasses.dataclass(frozen=True)
class Intents:
    """A data set.

    Attributes:
        names: The names of the intents, sorted.
        train: What a classifier learns from.
        tuning: `train` without `validation`, for choosing numbers.
        validation: What they are chosen on.
        test: What is reported.
        outside_validation: Queries of no intent, for choosing when to refuse; empty if the data set has none.
        outside_test: Those that are reported.
    """

    names: list[str]
    train: Examples
    tuning: Examples
    validation: Examples
    test: Examples
    outside_validation: list[str]
    outside_test: list[str]


class Answers(NamedTuple):
    """What a classifier says to N queries.

    Attributes:
        labels: (N,) str, the names of intents.
        out_of_scope: (N,) floats, the score of "none of these", as that of an LLE classifier: the highest are refused.
        confidences: (N,) floats from 0 to 1, the probability of the label; None if the classifier gives none.
    """

    labels: np.ndarray
    out_of_scope: np.ndarray
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


def load_intents(source: str) -> Intents:
    """Reads a data set that `load_labelled` reads, with splits train and test, and validation if it has one."""
    train, _ = _read(source, "train")
    outside: list[str] = []
    files = local_files(source) or {}
    if "test" in files and "validation" not in files:
        held_out = _tenth(train.labels)
        tuning, validation = train.take(~held_out), train.take(held_out)
    else:
        tuning, (validation, outside) = train, _read(source, "validation")
    test, outside_test = _read(source, "test")
    names = sorted(set(train.labels.tolist()))
    if len(names) < 3:
        raise ValueError(f"{source} has {len(names)} intents in its training split: at least 3 are needed")
    return Intents(names, train, tuning, validation, test, outside, outside_test)


def _read(source: str, split: str) -> tuple[Examples, list[str]]:
    """The queries of a split that have an intent, and those that have none."""
    dataset = load_labelled(source, split=split)
    check_labelled(dataset, where=f"the {split} split of {source}")
    inside, outside = split_out_of_scope(dataset)
    return Examples(inside["text"][:], np.array(inside["label"][:])), outside["text"][:]


def _tenth(labels: np.ndarray) -> np.ndarray:
    """A mask (N,) bool of a tenth of every label's places, at least one of each, always the same ones."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        mask[own[: max(1, round(len(own) / 10))]] = True
    return mask


def old_and_new(names: Sequence[str], new: int) -> tuple[list[str], list[str]]:
    """The intents that are learned first, and the `new` ones that are taught afterwards.

    The old ones are the first of a permutation of the sorted names, which is always the same: of Banking77's, 57.
    """
    if not 0 < new < len(names):
        raise ValueError(f"{new} of {len(names)} intents cannot be new: choose from 1 to {len(names) - 1}")
    shuffled = [sorted(names)[place] for place in np.random.default_rng(SEED).permutation(len(names))]
    return shuffled[:-new], shuffled[-new:]
