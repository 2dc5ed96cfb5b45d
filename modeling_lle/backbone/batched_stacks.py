"""Runs several QRNN stacks as one batch; on short texts call overhead dominates.

Notable: only the matrix products are computed per stack, with the weights in place, so nothing is cached between calls
that a write through `.data` could make stale. W x^T takes a third less time than x W^T here. `RecurrentStack`, one
stack after another, is the reference and the fallback.
Shapes: G stacks (each direction of each member), B batch, T time, D width, M members.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.linear import is_plain
from ..kernels.scan import gated_scan
from .recurrence import QRNN, Members, RecurrentLayer, RecurrentStack, ResidualLayer, Seen

LONGEST = 64  # largest B T for which it is faster on a CPU; beyond, larger tensors cost more than the calls


def single_stacks(stack: RecurrentStack | Members) -> list[RecurrentStack]:
    """Returns the stacks of one direction, one per member."""
    return [stack] if isinstance(stack, RecurrentStack) else list(cast(Iterable[RecurrentStack], stack.members))


def is_read_together(directions: tuple[RecurrentStack | Members, ...], x: Tensor) -> bool:
    """Whether `read_together` gives the results of the stacks for texts like `x` (B, T, M D), and is faster.

    Gradients, autocast, compilers, hooks and modules that were wrapped, quantised or replaced need the layers as they
    are.
    """
    if (
        x.shape[0] * x.shape[1] > LONGEST
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        return False
    if _is_hooked(*directions):
        return False
    for stack in (stack for direction in directions for stack in single_stacks(direction)):
        if type(stack.norm) is not nn.RMSNorm or _is_hooked(stack.norm):
            return False
        for layer in stack.layers:
            if type(layer) is not ResidualLayer or layer.mlp is not None:
                return False
            mixer, norm = layer.mixer, layer.mixer_norm
            if type(mixer) is not QRNN or type(norm) is not nn.RMSNorm or _is_hooked(layer, mixer, norm):
                return False
            if layer.training or mixer.training or not is_plain(mixer.gates):
                return False
            if mixer.gates.weight.dtype != x.dtype or mixer.gates.weight.device != x.device:
                return False
    return True


def _is_hooked(*modules: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in modules)


def read_together(stacks: list[RecurrentStack], x: Tensor, seen: Seen = None) -> Tensor:
    """Runs each stack over its own texts, from the initial state and without padding: x to y, (G, B, T, D) float32.

    The output of each layer is added to `seen` if that is a list.
    """
    G, B, T, D = x.shape
    depth = len(stacks[0].layers)
    every = zip(*(cast(Iterable[RecurrentLayer], stack.layers) for stack in stacks), strict=True)
    for number, layers in enumerate(every, start=1):
        each = cast(tuple[ResidualLayer, ...], layers)
        normed = _normalise([layer.mixer_norm for layer in each], x)
        pairs = torch.cat([F.pad(normed, (0, 0, 1, -1)), normed], dim=-1)  # a step and the one before it
        mixers = [cast(QRNN, layer.mixer) for layer in each]
        products = [torch.mm(m.gates.weight, own.t()).t() for own, m in zip(pairs.flatten(1, 2), mixers, strict=True)]
        gates = torch.stack(products).add_(torch.stack([mixer.gates.bias for mixer in mixers])[:, None])
        y, _ = gated_scan(gates.view(G * B, T, -1), x.new_zeros(G * B, D))
        x = x + y.view_as(x)
        if number == depth:
            x = _normalise([cast(nn.RMSNorm, stack.norm) for stack in stacks], x)
        if seen is not None:
            seen.append(x)
    return x


def _normalise(norms: list[nn.RMSNorm], x: Tensor) -> Tensor:
    """Applies each norm to its own part of x (G, B, T, D)."""
    weights = torch.stack([norm.weight for norm in norms])
    return F.rms_norm(x, norms[0].normalized_shape, eps=norms[0].eps) * weights[:, None, None]
