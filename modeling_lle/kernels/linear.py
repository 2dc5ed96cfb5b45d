"""Linear maps: products of float32 matrices on a CPU, and the modules whose weights may be used past their forward.

Notable: torch gives these products to MKL, which uses half of what an AMD processor can do; oneDNN, which torch holds
as well, uses all of it, and is as fast as MKL elsewhere. Whoever reads the weight of a module asks `is_plain` first:
PEFT, quantisation, offloading and hooks change what a module does, not its weight.
"""

import torch
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: x (..., D), weight (N, D), bias (N,), all of one floating dtype; (..., N)."""
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32
    differentiate = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if (
        plain
        or differentiate
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or not torch.backends.mkldnn.is_available()
        or not torch.backends.mkldnn.enabled
        or x.numel() * weight.numel() == 0
    ):
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def is_plain(*modules: nn.Module) -> bool:
    """Whether each module is an `nn.Linear` as torch makes it: not wrapped, quantised, hooked or offloaded.

    Only then is what it gives `F.linear` of its weight and bias.
    """
    return all(_is_plain(module) for module in modules)


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in module.__dict__:  # the latter is how accelerate hooks it
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    # A quantised weight may be a tensor of its own kind; what a compiler puts in its place is one as well.
    weight = module.weight
    return torch.compiler.is_compiling() or (type(weight) in (nn.Parameter, Tensor) and not weight.is_meta)


def is_packed(module: nn.Module) -> bool:
    """Whether torch quantised a module, so that its weight is no tensor but a method, and it has no gradient."""
    return callable(getattr(module, "weight", None))


def apply_linear(module: nn.Module, x: Tensor) -> Tensor:
    """What a linear module gives for x (..., D), faster than its forward where it is plain."""
    return linear(x, module.weight, module.bias) if is_plain(module) else module(x)  # type: ignore[arg-type]
