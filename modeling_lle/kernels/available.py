"""Whether optional packages and the fused CPU kernels can be used; no other module asks whether numba is installed."""

import functools
import importlib.util

import torch
from torch import Tensor


@functools.cache
def installed(package: str) -> bool:
    """Whether an optional package can be imported."""
    return importlib.util.find_spec(package) is not None


def takes_numba(tensor: Tensor) -> bool:
    """Whether numba kernels can read a tensor: it is on a CPU, and numba is installed."""
    return tensor.device.type == "cpu" and installed("numba")


def fused(tensor: Tensor) -> bool:
    """Whether a fused kernel computes from a tensor: `takes_numba`, not empty, without gradients and compilers."""
    return (
        tensor.numel() > 0 and not tensor.requires_grad and not torch.compiler.is_compiling() and takes_numba(tensor)
    )
