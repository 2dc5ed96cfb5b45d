"""Products of float32 matrices on a CPU, where no gradient is asked for.

Notable: torch gives them to MKL, which uses half of what an AMD processor can do; oneDNN, which torch holds as well,
uses all of it, and is as fast as MKL elsewhere.
"""

import torch
from torch import Tensor


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
