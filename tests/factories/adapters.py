"""What PEFT and others do to linear modules, by hand: an adapter of low rank, and what it becomes when merged."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """A frozen linear module and a map of low rank beside it, as LoRA (Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        generator = torch.Generator().manual_seed(base.out_features)
        sizes = (rank, base.in_features), (base.out_features, rank)
        draws = (torch.randn(size, generator=generator) for size in sizes)
        self.down, self.up = (nn.Parameter(draw.to(base.weight) / 2) for draw in draws)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + (x @ self.down.T) @ self.up.T


def linear_names(model: nn.Module) -> list[str]:
    """The linear modules that PEFT's `all-linear` would find."""
    return [name for name, module in model.named_modules() if type(module) is nn.Linear]


def wrap_in_adapters(model: nn.Module, names: Iterable[str]) -> None:
    """Puts an adapter around each of these linear modules."""
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Adapter(model.get_submodule(name)))  # type: ignore[arg-type]


@torch.no_grad()
def merge_adapters(model: nn.Module, names: Iterable[str]) -> None:
    """Adds to the weights of these linear modules what `wrap_in_adapters` would put beside them."""
    for name in names:
        linear = model.get_submodule(name)
        adapter = Adapter(nn.Linear(linear.in_features, linear.out_features, dtype=linear.weight.dtype))
        linear.weight += adapter.up @ adapter.down
