"""Projection: a map from the states of a model to shorter keys, learned once from the first entries of a bank.

Notable: the axes are the principal components of a sample of states. They stay as they are when entries come and go,
so that the key of an entry depends on no other entry that is added or forgotten later.
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
_NAMES = {"mean", "axes"}


@dataclass(frozen=True)
class Projection:
    """The map x -> (x - mean) axes / |(x - mean) axes|.

    Attributes:
        mean: (D,) float32.
        axes: (D, W) float32.
    """

    mean: Tensor
    axes: Tensor

    @classmethod
    @outside_autocast
    def learn(cls, states: Tensor, width: int) -> "Projection":
        """The first `width` principal components of states (N, D) floating, normalised; N is at least `width`."""
        sample = states[:: -(-len(states) // SAMPLE)].float()
        components = torch.linalg.eigh(torch.cov(sample.T, correction=0).double()).eigenvectors.flip(1)
        return cls(sample.mean(0), components[:, :width].float().contiguous())

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], states: int, width: int) -> "Projection":
        """The projection in a file, from states of a width to keys of a width; raises a BankError if it is invalid."""
        if set(tensors) != _NAMES or any(tensor.dtype != torch.float32 for tensor in tensors.values()):
            raise BankError("does not hold a projection of keys")
        projection = cls(**tensors)
        if projection.mean.shape != (states,) or projection.axes.shape != (states, width):
            raise BankError(f"does not project states of the width {states} to keys of the width {width}")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise BankError("holds a projection with values that are no numbers")
        return projection

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for `of_tensors`."""
        return {"mean": self.mean, "axes": self.axes}

    @outside_autocast
    def __call__(self, states: Tensor) -> Tensor:
        """Projects states (N, D) floating, normalised; returns normalised keys (N, W) float32."""
        parts = [(part.float() - self.mean) @ self.axes for part in states.split(CHUNK)]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)
