"""What every kernel must hold: whatever it is given, it gives what its definition gives, or a ValueError.

So it never leaves its arrays. Each test module of a kernel lists its cases and calls `check`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor

Values = dict[str, Any]
KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16]
few_examples = settings(deadline=None, max_examples=30, derandomize=True, database=None, phases=[Phase.generate])


class Maker:
    """Makes the arguments of a kernel from sizes, such as B or T, that it draws when they are first asked for."""

    def __init__(self, data: Any) -> None:
        self.data, self.drawn = data, {}
        self.generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))

    def size(self, letter: str) -> int:
        if letter not in self.drawn:
            self.drawn[letter] = self.data.draw(st.sampled_from([0, 1, 2, 5]), label=letter)
        return self.drawn[letter]

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(dtype)

    def unit(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.nn.functional.normalize(self.floats(*shape), dim=-1).to(dtype)

    def places(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers in low, ..., high - 1."""
        return torch.randint(low, max(low + 1, high), shape, generator=self.generator)


@dataclasses.dataclass
class Case:
    """A function that calls a kernel, its arguments, and what it returns and then leaves in some of them."""

    function: Callable[..., Any]
    make: Callable[[Maker], Values]
    reference: Callable[..., Any]
    in_place: tuple[str, ...] = ()


def spoil(values: Values, maker: Maker) -> Values:
    """The arguments with one tensor changed as a caller might get it wrong, or only laid out otherwise in memory."""
    name = maker.data.draw(st.sampled_from([name for name, value in values.items() if isinstance(value, Tensor)]))
    tensor, change = values[name], maker.data.draw(st.sampled_from(["dtype", "size", "dim", "layout", "range"]))
    if change == "dtype":
        tensor = tensor.to(maker.data.draw(st.sampled_from([kind for kind in KINDS if kind != tensor.dtype])))
    elif change == "size":
        dim = maker.data.draw(st.integers(0, tensor.dim() - 1))
        shorter = maker.data.draw(st.booleans()) and tensor.shape[dim] > 0
        size = tensor.shape[dim] + (-1 if shorter else 2)
        longer = torch.cat([tensor, tensor.new_zeros(*tensor.shape[:dim], 2, *tensor.shape[dim + 1 :])], dim)
        tensor = longer.narrow(dim, 0, size)
    elif change == "dim":
        tensor = tensor[None] if maker.data.draw(st.booleans()) or tensor.dim() == 1 else tensor.flatten(0, 1)
    elif change == "layout":
        tensor = torch.stack([tensor, tensor], dim=-1)[..., 0]
    elif not tensor.dtype.is_floating_point and tensor.dtype != torch.bool and tensor.numel():
        tensor = tensor.clone()
        place = maker.data.draw(st.integers(0, tensor.numel() - 1))
        info = torch.iinfo(tensor.dtype)
        tensor.view(-1)[place] = maker.data.draw(st.sampled_from([info.min, -101, -1, 14, 651, 1 << 30, info.max]))
    return {**values, name: tensor}


def copied(values: Values) -> Values:
    """The arguments anew; a tensor keeps its strides."""
    return {
        name: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value)
        if isinstance(value, Tensor)
        else value
        for name, value in values.items()
    }


def parts(returned: Any) -> list[Tensor]:
    return [] if returned is None else [returned] if isinstance(returned, Tensor) else list(returned)


def check(case: Case, data: Any) -> None:
    """Compares a kernel with its definition on arguments that are drawn, half of the time with one of them spoilt."""
    maker = Maker(data)
    values = case.make(maker)
    spoilt = data.draw(st.booleans())
    values = copied(spoil(values, maker) if spoilt else values)
    try:
        due = parts(case.reference(**copied(values)))
    except (RuntimeError, IndexError, ValueError, AssertionError):
        due = None
    try:
        got = parts(case.function(*values.values()))
    except ValueError:
        if not spoilt and 0 not in maker.drawn.values():
            raise
        return
    got += [values[name] for name in case.in_place]
    if due is None and not any(part.numel() for part in got):
        return
    assert due is not None, "the definition refuses this"
    for part, want in zip(got, due, strict=True):
        tolerance = 2e-2 if part.dtype == torch.bfloat16 else 3e-5
        torch.testing.assert_close(part, want, atol=tolerance, rtol=1e-4, equal_nan=True)
