"""The model that a test-time update changes, and its gradients.

Shapes: B batch, T time, D width, V vocabulary, E tokens of a step.
"""

from collections.abc import Iterator
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..bank.protocol import Encoder
from ..configuration import LLEConfig
from ..configuration_sections import UpdateConfig
from ..kernels.linear import is_packed, is_plain
from .cache import LLECache


class Updatable(Encoder, Protocol):
    """A language model of a backbone and an output layer, as an nn.Module."""

    update_statistics: dict[str, Tensor] | None
    update_statistics_fault: str | None

    @property
    def config(self) -> LLEConfig:
        """The configuration."""
        ...

    @property
    def model(self) -> nn.Module:
        """The backbone."""
        ...

    @property
    def lm_head(self) -> nn.Module:
        """The output layer, a linear one with weight (V, D) and bias (V,)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As in torch."""
        ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As in torch."""
        ...

    def get_parameter(self, target: str) -> nn.Parameter:
        """As in torch."""
        ...


def change_sizes(model: Updatable, numbers: UpdateConfig) -> dict[str, torch.Size]:
    """Names and shapes of what an update of this scope changes."""
    V, D = model.config.vocab_size, model.config.hidden_size
    if numbers.scope == "head":
        return {"weight": torch.Size([V, D]), "bias": torch.Size([V])}
    if numbers.scope == "low-rank":
        return {"map": torch.Size([D, min(numbers.rank, D)]), "bias": torch.Size([V])}
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def check_updatable(model: Updatable, numbers: UpdateConfig) -> None:
    """Raises a ValueError where a module was changed so that an update of this scope would pass it by."""
    if numbers.scope == "all" and model.config.wrapped is not None:
        raise ValueError(
            f"history.update.scope 'all' changes the weights of each row, and a backbone of the type "
            f"{model.config.wrapped.model_type!r} of transformers reads its rows together: set the scope 'head' or "
            "'low-rank'"
        )
    for name, module in model.named_modules():
        if any(weight.is_meta for weight in module.parameters(recurse=False)):
            raise ValueError(f"the test-time update needs the weights of {name} in memory: load it without offloading")
        opaque = is_packed(module) or (module is model.lm_head and not is_plain(module))
        if numbers.scope == "all" and opaque:
            raise ValueError(
                f"history.update.scope 'all' changes the weights themselves, but {name} was wrapped, quantised or "
                "hooked: merge its adapters into it, or set the scope 'head'"
            )


def pull_back(head: nn.Module, states: Tensor, slopes: Tensor) -> Tensor:
    """Slopes (E, D) in the states (E, D), of those in their logits (E, V)."""
    if is_plain(head):
        return slopes @ head.weight.to(slopes.dtype)  # type: ignore[operator]
    if is_packed(head):
        raise ValueError(
            "a quantised output layer has no gradient, which history.update.scope 'low-rank' and statistics need: "
            "collect statistics before quantising it, and set the scope 'head'"
        )
    with torch.enable_grad():
        leaf = states.detach().requires_grad_()
        logits = head(leaf)
        return torch.autograd.grad(logits, leaf, slopes.to(logits.dtype))[0].to(slopes.dtype)


def summed_gradients(
    model: Updatable, weights: dict[str, Tensor], tokens: Tensor, outcomes: Tensor, cache: LLECache
) -> tuple[float, dict[str, Tensor]]:
    """The summed nats of the outcomes (T,) after the tokens (T,), and their gradient in each of the weights."""
    given = {"shift_labels": outcomes[None], "past_key_values": cache, "use_cache": True, "use_history": False}
    with torch.enable_grad():
        more = {**given, "return_logits": False, "num_items_in_batch": 1}
        loss = functional_call(cast(nn.Module, model), weights, (tokens[None],), more).loss
        gradients = torch.autograd.grad(loss, list(weights.values()))
    return float(loss.detach()), dict(zip(weights, gradients, strict=True))
