"""Linear maps: fast products on a CPU, and checks on modules whose weights are read directly.

Notable: torch computes these products with MKL, which reaches half of the speed of an AMD processor; oneDNN, which is
part of torch, reaches all of it and is as fast as MKL elsewhere. With a few rows, as in a step of generation, neither
reads the matrix as fast as memory gives it: then a kernel of our own does, or W x^T, and nothing is kept between calls
that a write to the weights could make stale. Code that reads the weight of a module must check `is_plain` first: PEFT,
quantisation, offloading and hooks change the module's function, not its weight.
"""

import torch
from torch import Tensor, nn

from ..common.precision import has_fast_bfloat16
from .available import takes_numba

FEW = 16  # rows up to which W x^T is faster than x W^T
FEW_NARROW = 8  # rows up to which the kernel reads bfloat16 weights faster than torch, without such instructions
LARGE = 1 << 17  # elements of a matrix from which on reading it takes longer than choosing how


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes `torch.nn.functional.linear` of x (..., D), weight (O, D) and bias (O,), floating, as (..., O).

    The weight and the bias of a float32 input may also be bfloat16.
    """
    if (
        x.device.type != "cpu"
        or is_differentiated(x, weight, bias)
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or x.numel() * weight.numel() == 0
    ):
        return _plain(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    if takes_products(x, weight, bias, rows):
        from .products_numba import products

        return products(x.reshape(rows, -1), weight, bias).view(*x.shape[:-1], -1)
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return _plain(x, weight, bias)
    if rows <= FEW:
        if rows == 1 or weight.numel() < LARGE:
            return _plain(x, weight, bias)
        product = weight @ x.reshape(rows, -1).t()
        turned = product.t() if bias is None else product.t() + bias
        return turned.contiguous().view(*x.shape[:-1], -1)
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return _plain(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def is_differentiated(*tensors: Tensor | None) -> bool:
    """Whether what is computed from these tensors must have a gradient."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.dtype == torch.float32 and weight.dtype == torch.bfloat16 and not torch.is_autocast_enabled(x.device.type):
        weight, bias = weight.float(), None if bias is None else bias.float()
    return torch.nn.functional.linear(x, weight, bias)


def takes_products(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> bool:
    """Whether a kernel that reads the matrix once computes a product with `rows` vectors faster than torch."""
    narrow = weight.dtype == torch.bfloat16
    if rows > (FEW_NARROW if narrow else 1) or weight.numel() < LARGE or not weight.is_contiguous():
        return False
    if x.dtype != weight.dtype and not (narrow and x.dtype == torch.float32):
        return False
    if (narrow and has_fast_bfloat16(x.device)) or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    return takes_numba(x) and (bias is None or bias.dtype == weight.dtype)


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
