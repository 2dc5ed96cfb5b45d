"""Precision of matrix products: bfloat16 where the hardware multiplies it faster than float32, else float32.

Notable: every choice of precision is made here. On processors without bfloat16 instructions torch emulates them, up
to 20 times slower than float32 (measured on AVX2), and oneDNN has no LSTM. Intel's with AVX512_BF16 alone multiply
bfloat16 more slowly than float32 (seen on a Sapphire Rapids whose host hides AMX), AMD's faster. The choice depends on
the kernels that torch selects, so the variables that lower its instruction set, ONEDNN_MAX_CPU_ISA and
ATEN_CPU_CAPABILITY, are read.
"""

import contextlib
import functools
import logging
import os
import platform
from collections.abc import Callable, Iterator
from typing import Literal, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor, nn

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
NARROW = (torch.bfloat16, torch.float16)
# Limits of oneDNN without bfloat16 instructions. (AVX2_VNNI_2 converts bfloat16, but does not multiply it, and torch
# does not give bfloat16 products to oneDNN there.)
_ISA_WITHOUT = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
_ISA_WITHOUT_AMX = {"AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"}
_CAPABILITY_WITHOUT = {"DEFAULT", "NO AVX", "AVX2"}  # of torch's own kernels on x86


@functools.cache
def lack_of_bfloat16(device: torch.device) -> str | None:
    """Returns why bfloat16 products are slower than float32 ones on a device, as a clause for messages, or None.

    Accelerators other than CUDA's and Apple's are assumed to support every dtype that torch offers on them.
    """
    if device.type == "cuda":
        has = torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
        return None if has else f"{torch.cuda.get_device_name(device)} has no bfloat16 units (compute capability 8.0)"
    if device.type == "mps":
        return "not every Apple GPU has bfloat16 units"
    return _lack_of_cpu() if device.type == "cpu" else None


def _lack_of_cpu() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN, which multiplies bfloat16 on a CPU"
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        has = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # on ARM the processor's own flag
        return None if has else "this processor has no bfloat16 instructions (BF16)"
    # On x86, mkldnn's own answer is also yes for AVX512 without bfloat16 instructions.
    has_amx = torch.cpu._is_amx_tile_supported()
    if not (torch.cpu._is_avx512_bf16_supported() or has_amx):
        return "this processor has no bfloat16 instructions (AVX512_BF16 or AMX)"
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        limit = os.environ.get(variable, "")
        if limit.upper() in _ISA_WITHOUT:
            return f"{variable}={limit} switches the bfloat16 instructions off"
        has_amx = has_amx and limit.upper() not in _ISA_WITHOUT_AMX
    capability = torch.backends.cpu.get_cpu_capability()  # after ATEN_CPU_CAPABILITY
    if capability in _CAPABILITY_WITHOUT:
        return f"torch is limited to {capability} (ATEN_CPU_CAPABILITY), without bfloat16 instructions"
    if not has_amx and str(_capabilities().get("cpu_name", "")).startswith("Intel"):
        return "an Intel processor without AMX, as in many virtual machines, multiplies bfloat16 more slowly"
    return None


def _capabilities() -> dict[str, object]:
    """What torch knows of the processor; nothing before torch 2.10."""
    find = getattr(torch.cpu, "get_capabilities", dict)
    return dict(find())


@torch.compiler.assume_constant_result
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32 ones."""
    return lack_of_bfloat16(device) is None


def resolve_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Returns the precision of matrix products on a device, `torch.bfloat16` or `torch.float32`.

    Args:
        wanted: "auto" (bfloat16 where it is faster), "float32", or "bfloat16", which falls back to float32 with a
            warning if the hardware lacks it.
        device: The device.
    """
    if wanted not in PRECISIONS:
        raise ValueError(f"the precision is {wanted!r}: choose one of {', '.join(map(repr, PRECISIONS))}")
    if wanted == "float32":
        return torch.float32
    lack = lack_of_bfloat16(device)
    if lack is not None and wanted == "bfloat16":
        logger.warning("bfloat16 was asked for, but %s: computing in float32, which is faster here", lack)
    return torch.bfloat16 if lack is None else torch.float32


@contextlib.contextmanager
def in_precision(model: nn.Module, wanted: str) -> Iterator[None]:
    """Runs a model in the precision that `resolve_precision` returns for its device.

    Weights are kept in float32 inside the context; those that were loaded in 16 bits are narrowed again on exit.
    """
    device = next(model.parameters()).device
    dtype = resolve_precision(wanted, device)
    narrow = [(weight, weight.dtype) for weight in model.parameters() if weight.dtype in NARROW]
    for weight, _ in narrow:
        weight.data = weight.data.float()
    try:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        for weight, own in narrow:
            weight.data = weight.data.to(own)


def outside_autocast(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorates functions that must compute in the dtypes of their arguments: searches, fits, the mixture."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with contextlib.ExitStack() as stack:
            for device in filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps", "xpu")):
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return run


def recurrence_dtype(x: Tensor) -> torch.dtype | None:
    """Returns the dtype in which a recurrent layer with input `x` computes, or None for that of `x` or of autocast.

    On a CPU, 16-bit recurrences run in float32, except in bfloat16 where it is fast: torch is many times slower in
    other 16-bit dtypes, and oneDNN has no LSTM for them.
    """
    autocast = torch.is_autocast_enabled("cpu")
    if (x.dtype not in NARROW and not autocast) or x.device.type != "cpu" or x.dtype == torch.float64:
        return None
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    return None if dtype == torch.bfloat16 and has_fast_bfloat16(x.device) else torch.float32
