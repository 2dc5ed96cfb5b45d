"""Shared parts of the numba kernels: compilation, access to arrays, threads, and elementary functions.

Notable: bfloat16 is read and written as int16, since numpy lacks it; the threads are Python's own, because numba's
abort the process when two threads or a forked child start them. A kernel is compiled when it is first called, and
cached on disk; the cache notices changes of the kernel's own file only, so remove it after changing this file.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

try:
    import numpy as np
    from numba import njit, types
    from numba.extending import overload
except ImportError as error:
    raise ImportError("the numba kernels need numba: `pip install modeling_lle[fast]`") from error

LANES = 64  # partial sums that a loop keeps, so that it vectorises
MIN_PARALLEL = 1 << 16  # elements below which a thread costs more than it saves

# No "nnan" and "ninf": NaN and infinity keep their meaning. A division that cannot raise an exception vectorises.
_options = functools.partial(njit, nogil=True, cache=True, error_model="numpy")
jit = functools.partial(_options, fastmath={"contract", "nsz"})
jit_sums = functools.partial(_options, fastmath={"contract", "nsz", "reassoc"})  # sums are reordered, and vectorise


def load(value: Any) -> Any:
    """A stored value as a float; an int16 holds the bits of a bfloat16."""
    raise NotImplementedError


def store(value: Any, like: Any) -> Any:
    """A float as it is stored in an array that holds `like`; bfloat16 rounds to the nearest even."""
    raise NotImplementedError


def exp(value: Any) -> Any:
    """Exact for float64, to two units in the last place for float32, where it is limited to exp(+-87)."""
    raise NotImplementedError


def sigmoid(value: Any) -> Any:
    """Exact for float64, to two units in the last place for float32."""
    raise NotImplementedError


@overload(load, strict=False)
def _overload_load(value: Any) -> Callable[..., Any]:
    if value == types.int16:
        return lambda value: np.int32(np.int32(value) << 16).view(np.float32)
    return lambda value: value


@overload(store, strict=False)
def _overload_store(value: Any, like: Any) -> Callable[..., Any]:
    if like != types.int16:
        return lambda value, like: value

    def round_to_bfloat16(value: Any, like: Any) -> Any:
        bits = np.float32(value).view(np.int32)
        return np.int16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)

    return round_to_bfloat16


@overload(exp, strict=False)
def _overload_exp(value: Any) -> Callable[..., Any]:
    if value == types.float64:
        return lambda value: math.exp(value)

    def limited_exp(value: Any) -> Any:
        # exp(x) = 2^n exp(r), |r| <= log(2) / 2, with the polynomial of Cephes; LLVM does not vectorise math.exp.
        x = np.float32(-87.0) if value < np.float32(-87.0) else value  # min and max would swallow a NaN
        x = np.float32(87.0) if x > np.float32(87.0) else x
        shifted = x * np.float32(1.44269504) + np.float32(12582912.0)  # 1.5 * 2^23: n is in the low bits
        n = shifted - np.float32(12582912.0)
        r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
        p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + np.float32(5.0000001201e-1)
        p = p * r * r + r + np.float32(1.0)
        return p * np.int32((np.float32(shifted).view(np.int32) + 127) << 23).view(np.float32)

    return limited_exp


@overload(sigmoid, strict=False)
def _overload_sigmoid(value: Any) -> Callable[..., Any]:
    if value == types.float64:
        return lambda value: 1.0 / (1.0 + exp(-value))
    return lambda value: np.float32(1.0) / (np.float32(1.0) + exp(-value))


# Lanes vectorise without reordering comparisons or additions within a lane.
@jit()
def highest(row: Any, lanes: Any) -> Any:
    whole = len(row) - len(row) % LANES
    lanes[:] = row[0]
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            value = row[start + lane]
            lanes[lane] = value if value > lanes[lane] else lanes[lane]
    for i in range(whole, len(row)):
        lanes[0] = row[i] if row[i] > lanes[0] else lanes[0]
    return lanes.max()


@jit()
def total_of(row: Any, lanes: Any) -> Any:
    whole = len(row) - len(row) % LANES
    lanes[:] = 0
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += row[start + lane]
    for i in range(whole, len(row)):
        lanes[0] += row[i]
    return lanes.sum()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The threads of one process: those of its parent do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="lle-scan")


def run(kernel: Callable[..., None], *tensors: Tensor) -> None:
    """Calls `kernel` on the tensors (batch in dim 0) as arrays, split by rows over torch's number of threads.

    Raises:
        ValueError: They do not have the same number of rows. All other checks are the caller's.
    """
    run_arrays(kernel, *(as_array(tensor) for tensor in tensors))


def run_arrays(kernel: Callable[..., None], *arrays: Any) -> None:
    """`run` on arrays."""
    rows, threads = len(arrays[0]), torch.get_num_threads()
    if any(len(array) != rows for array in arrays):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"a kernel needs tensors with the same number of rows, got {shapes}")
    threads = min(threads, rows) if arrays[0].size >= MIN_PARALLEL else 1
    if threads == 1:
        return kernel(*arrays)
    cuts = [rows * i // threads for i in range(threads + 1)]
    slices = [[array[low:high] for array in arrays] for low, high in itertools.pairwise(cuts)]
    others = [_pool(os.getpid(), threads).submit(kernel, *part) for part in slices[1:]]
    kernel(*slices[0])
    for other in others:
        other.result()
    return None


def as_array(tensor: Tensor) -> Any:
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
