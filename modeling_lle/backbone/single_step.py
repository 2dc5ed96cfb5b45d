"""One step of one text by the weights of a stack, without a call of a module for each layer.

Notable: a step of generation reads all weights, which leaves nothing in the processor's caches, so that every line of
Python costs several times what it costs elsewhere. Arrays of the weights are views, which see what is written into
them; where a weight has been replaced by another tensor, the step is prepared anew. Shapes: D width.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ..kernels.available import takes_numba
from ..kernels.linear import is_plain, takes_products
from ..kernels.lstm import LayerWeights, lstm_layer_step
from .cells import State
from .recurrence import RecurrentLayer, RecurrentStack, ResidualLayer, TorchRecurrence


class SingleStep:
    """The step of a stack of LSTM layers in float32, without gradients.

    Args:
        stack: The stack, for which `can_step` holds.
    """

    def __init__(self, stack: nn.Module) -> None:
        self.stack = cast(RecurrentStack, stack)
        self.layers = [cast(RecurrentLayer, layer) for layer in self.stack.layers]
        self.weights = [LayerWeights(_mixer(layer).weights) for layer in self.layers]

    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns y (1, 1, D) float32 and the new state, for x (1, 1, D) float32 and the state before."""
        x, new = x[0], []
        for place, (layer, weights) in enumerate(zip(self.layers, self.weights, strict=True)):
            if not weights.are_current():
                weights = self.weights[place] = LayerWeights(_mixer(layer).weights)
            residual = layer if isinstance(layer, ResidualLayer) else None
            read = x if residual is None else residual.mixer_norm(x)
            h, c = lstm_layer_step(read, state[2 * place], state[2 * place + 1], weights)
            new += [h, c]
            x = h if residual is None else x + h
            if residual is not None and residual.mlp is not None:
                x = x + residual.mlp(residual.mlp_norm(x))
        return self.stack.norm(x)[None], tuple(new)


def can_step(stack: nn.Module, x: Tensor, state: State | None) -> bool:
    """Whether a `SingleStep` of the stack gives what its call gives, from this state on and for inputs like x.

    Args:
        stack: A stack in evaluation mode.
        x: (1, 1, D), an input.
        state: The state after some text.
    """
    if type(stack) is not RecurrentStack or state is None or not takes_numba(x):
        return False
    if x.dtype != torch.float32 or x.shape[:2] != (1, 1) or torch.is_autocast_enabled("cpu"):
        return False
    if any(part.dtype != torch.float32 or len(part) != 1 for part in state):
        return False
    return all(_can_step(layer, x[0]) for layer in cast(Iterable[nn.Module], stack.layers))


def _can_step(layer: nn.Module, x: Tensor) -> bool:
    if type(layer) not in (RecurrentLayer, ResidualLayer):
        return False
    mixer = cast(RecurrentLayer, layer).mixer
    if type(mixer) is not TorchRecurrence or mixer.num_states != 2 or is_hooked(layer) or is_hooked(mixer):
        return False
    if not is_plain(mixer.from_input, mixer.from_state):
        return False
    return all(
        own.weight.dtype == torch.float32 and takes_products(x, own.weight, own.bias, 1)
        for own in (mixer.from_input, mixer.from_state)
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _mixer(layer: RecurrentLayer) -> TorchRecurrence:
    return cast(TorchRecurrence, layer.mixer)
