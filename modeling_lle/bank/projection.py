"""Projection: a map from the states of a model to shorter keys, learned once from the first entries of a bank.

Notable: the axes are the principal components of a sample of states about zero, not about their mean: of all maps to
as many numbers, these change inner products least, and cosines are what is searched by. They stay as they are when
entries come and go, so that the key of an entry depends on no other entry that is added or forgotten later.
Shapes: N states, D width of a state, W width of a key.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.precision import outside_autocast
from .manifest import BankError

SAMPLE = 20_000  # states that the axes are learned from, spread evenly over those that are given
CHUNK = 8192  # states that are projected at once


@dataclass(frozen=True)
class Projection:
    """The map x -> x axes / |x axes|.

    Attributes:
        axes: (D, W) float32.
    """

    axes: Tensor

    @classmethod
    @outside_autocast
    def learn(cls, states: Tensor, width: int) -> "Projection":
        """The first `width` principal components of states (N, D) floating, normalised; N is at least `width`."""
        sample = states[:: -(-len(states) // SAMPLE)].float()
        components = torch.linalg.eigh((sample.T @ sample).double()).eigenvectors.flip(1)
        return cls(components[:, :width].float().contiguous())

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], states: int, width: int) -> "Projection":
        """The projection in a file, from states of a width to keys of a width; raises a BankError if it is invalid."""
        axes = tensors.get("axes")
        if set(tensors) != {"axes"} or axes is None or axes.dtype != torch.float32:
            raise BankError("does not hold a projection of keys")
        if axes.shape != (states, width):
            raise BankError(f"does not project states of the width {states} to keys of the width {width}")
        if not bool(axes.isfinite().all()):
            raise BankError("holds a projection with values that are no numbers")
        return cls(axes)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for `of_tensors`."""
        return {"axes": self.axes}

    @outside_autocast
    def __call__(self, states: Tensor) -> Tensor:
        """Projects states (N, D) floating, normalised; returns normalised keys (N, W) float32."""
        parts = [part.float() @ self.axes for part in states.split(CHUNK)]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)
