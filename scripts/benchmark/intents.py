"""Queries with intents, and the interface of their classifiers.

Notable: nothing is fitted on a test split. Without a validation split, as in Banking77, a tenth of each intent's
training queries is held out: parameters are chosen with the rest, then the classifier learns from all queries.
CLINC150's out-of-scope training queries are not used, so that a classifier knows its intents only. Shapes: Q queries.
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
        texts: Q queries.
        labels: (Q,) str, names of their intents.
    """

    texts: list[str]
    labels: np.ndarray

    def take(self, chosen: np.ndarray) -> "Examples":
        """Queries where a mask (Q,) bool is true."""
        return Examples([text for text, taken in zip(self.texts, chosen, strict=True) if taken], self.labels[chosen])

    def of(self, names: Sequence[str]) -> "Examples":
        """Queries of some intents."""
        return self.take(np.isin(self.labels, names))


@dataclasses.dataclass(frozen=True)
class Intents:
    """A data set.

    Attributes:
        names: Sorted names of the intents.
        train: Training queries.
        tuning: `train` without `validation`, for choosing parameters.
        validation: Queries for choosing parameters.
        test: Queries for reported results.
        outside_validation: Out-of-scope queries for choosing thresholds; empty if there are none.
        outside_test: Out-of-scope queries for reported results.
    """

    names: list[str]
    train: Examples
    tuning: Examples
    validation: Examples
    test: Examples
    outside_validation: list[str]
    outside_test: list[str]


class Answers(NamedTuple):
    """Answers of a classifier to Q queries.

    Attributes:
        labels: (Q,) str, names of intents.
        out_of_scope: (Q,) floats, score of "none of these"; the highest are refused.
        confidences: (Q,) floats from 0 to 1, probability of the label; None without probabilities.
    """

    labels: np.ndarray
    out_of_scope: np.ndarray
    confidences: np.ndarray | None = None


class Classifier(Protocol):
    """A classifier to measure."""

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        ...

    def answer(self, texts: list[str]) -> Answers:
        """Labels and scores of Q queries."""
        ...


class Learner(Classifier, Protocol):
    """A classifier that can learn more intents later."""

    def add(self, examples: Examples) -> Any:
        """Learns from more queries of known or new intents."""
        ...


def load_intents(source: str) -> Intents:
    """Loads a data set for `load_labelled`, with splits train, test and optionally validation."""
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
        raise ValueError(f"{source} has {len(names)} intents in its training split: give at least 3")
    return Intents(names, train, tuning, validation, test, outside, outside_test)


def _read(source: str, split: str) -> tuple[Examples, list[str]]:
    """In-scope and out-of-scope queries of a split."""
    dataset = load_labelled(source, split=split)
    check_labelled(dataset, where=f"the {split} split of {source}")
    inside, outside = split_out_of_scope(dataset)
    return Examples(inside["text"][:], np.array(inside["label"][:])), outside["text"][:]


def _tenth(labels: np.ndarray) -> np.ndarray:
    """Fixed mask (Q,) bool of a tenth of the queries of each label, at least one."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        mask[own[: max(1, round(len(own) / 10))]] = True
    return mask


def old_and_new(names: Sequence[str], new: int) -> tuple[list[str], list[str]]:
    """Intents learned first, and the `new` ones taught afterwards.

    The old ones are the first of a fixed permutation of the sorted names: of Banking77's, 57.
    """
    if not 0 < new < len(names):
        raise ValueError(f"{new} of {len(names)} intents cannot be new: choose from 1 to {len(names) - 1}")
    shuffled = [sorted(names)[place] for place in np.random.default_rng(SEED).permutation(len(names))]
    return shuffled[:-new], shuffled[-new:]
