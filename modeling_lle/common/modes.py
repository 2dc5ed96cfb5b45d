"""Evaluation mode for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol


class Trainable(Protocol):
    """A module of torch, as far as its mode goes."""

    training: bool

    def eval(self) -> Any:
        """As in torch."""
        ...

    def train(self, mode: bool = True) -> Any:
        """As in torch."""
        ...


@contextlib.contextmanager
def evaluating(model: Trainable) -> Iterator[None]:
    """Puts a model in evaluation mode, and back in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
