"""Linear maps: fast float32 products on a CPU, and checks on modules whose weights are read directly.

Notable: torch computes these products with MKL, which reaches half of the speed of an AMD processor; oneDNN, which is
part of torch, reaches all of it and is as fast as MKL elsewhere. Code that reads the weight of a module must check
`is_plain` first: PEFT, quantisation, offloading and hooks change the module's function, not its weight.
"""

import torch
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes `torch.nn.functional.linear` of x (..., D), weight (O, D) and bias (O,), floating, as (..., O)."""
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
    """Whether each module is an unmodified `nn.Linear`: not wrapped, quantised, hooked or offloaded.

    Only then does its forward equal `F.linear` with its weight and bias.
    """
    return all(_is_plain(module) for module in modules)


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in module.__dict__:  # the latter is how accelerate hooks it
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    # Quantised weights may be tensor subclasses; so are the stand-ins of a compiler.
    weight = module.weight
    return torch.compiler.is_compiling() or (type(weight) in (nn.Parameter, Tensor) and not weight.is_meta)


def is_packed(module: nn.Module) -> bool:
    """Whether torch quantised a module: its weight is then a method, and it has no gradient."""
    return callable(getattr(module, "weight", None))


def apply_linear(module: nn.Module, x: Tensor) -> Tensor:
    """Applies a linear module to x (..., D); faster than its forward if it is plain."""
    return linear(x, module.weight, module.bias) if is_plain(module) else module(x)  # type: ignore[arg-type]
