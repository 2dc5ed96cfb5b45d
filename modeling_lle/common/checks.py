"""Argument checks for code that does not check for itself: kernels, which do no bounds checking, and file writers.

Notable: checking shape, dtype and device takes less than a microsecond per tensor; indices into another array are
checked by their minimum and maximum.
"""

import json
from typing import Any

import torch
from torch import Tensor


def expect(tensor: Tensor, name: str, shape: tuple[int, ...], *dtypes: torch.dtype, in_place: bool = False) -> None:
    """Raises a ValueError unless a tensor has the shape, dtype, device and layout that a CPU kernel assumes.

    Args:
        tensor: The tensor.
        name: Its name in messages, with the letters of its shape, such as "queries (Q, D)".
        shape: The required shape.
        dtypes: The allowed dtypes.
        in_place: Whether the kernel writes into it, which requires a contiguous tensor.
    """
    if (
        tensor.shape == shape
        and tensor.dtype in dtypes
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and (not in_place or tensor.is_contiguous())
    ):
        return
    due = f"{tuple(shape)} in {' or '.join(str(dtype) for dtype in dtypes)}, on the CPU"
    given = f"{tuple(tensor.shape)} in {tensor.dtype}, on {tensor.device}"
    raise ValueError(f"{name} should be {due}{', and contiguous' if in_place else ''}; got {given}")


def expect_places(tensor: Tensor, name: str, stop: int, start: int | None = 0) -> None:
    """Raises a ValueError unless all integers are below `stop` and, unless `start` is None, at least `start`."""
    if not tensor.numel():
        return
    least, most = (int(end) for end in tensor.aminmax())
    if most >= stop or (start is not None and least < start):
        due = f"less than {stop}" if start is None else f"at least {start} and less than {stop}"
        raise ValueError(f"{name} should be {due}; got {least} to {most}")


def sizes(tensor: Tensor, name: str, dimensions: int) -> tuple[int, ...]:
    """Returns the shape of a tensor; raises a ValueError unless it has this number of dimensions."""
    if tensor.dim() != dimensions:
        raise ValueError(f"{name} should have {dimensions} dimensions; got {tuple(tensor.shape)}")
    return tensor.shape


def check_neighbours(number: int) -> None:
    """Raises a ValueError unless a search can return this number of neighbours."""
    if number < 1:
        raise ValueError(f"a search finds at least one neighbour; got {number}")


def check_unicode(value: Any, what: str) -> None:
    """Raises a ValueError if a value holds a lone surrogate, which neither files nor tokenizers accept."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} holds {text[error.start]!r}, which is no proper Unicode") from None
