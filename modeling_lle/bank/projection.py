"""Projection: a map from the states of a model to shorter keys, onto random orthonormal axes.

Notable: cosines of keys are those of the states up to an error that falls with their width (Johnson and Lindenstrauss
1984). The axes follow from the two widths and from no text, so that an entry that is forgotten leaves nothing in them.
Shapes: N states, D width of a state, W width of a key.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..common.precision import outside_autocast
from .manifest import BankError

CHUNK = 8192  # states that are projected at once


def check_key_width(key_width: int | None, width: int) -> None:
    """Raises a ValueError unless states of a width can be projected to keys of another one; None: they are not."""
    if key_width is not None and not 2 <= key_width <= width:
        raise ValueError(f"keys have a width between 2 and that of the model's states, {width}; got {key_width}")


@dataclass(frozen=True)
class Projection:
    """The map x -> x axes / |x axes|.

    Attributes:
        axes: (D, W) float32.
    """

    axes: Tensor

    @classmethod
    def random(cls, states: int, width: int) -> "Projection":
        """The random orthonormal axes that belong to these widths, from D = `states` to W = `width` <= D."""
        drawn = np.random.Generator(np.random.PCG64([states, width])).standard_normal((states, width))
        axes, triangle = np.linalg.qr(drawn)
        axes *= np.sign(np.diagonal(triangle))  # libraries differ in the signs that they choose
        return cls(torch.from_numpy(np.ascontiguousarray(axes, dtype=np.float32)))

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
