"""Numba kernels of the linear recurrence: serial over time, vectorised over channels, threaded over batch rows.

Notable: only the inputs are saved between forward and backward, since recomputing a gate takes a fifth of a nanosecond
while a large buffer costs page faults. Imported by kernels/scan.py on first use, which holds the fallback.
Shapes: B batch, T time, D width.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, sizes
from .numba_tools import jit, load, run, sigmoid, store


@jit()
def _forward(gates: Any, state: Any, output: Any, final: Any) -> None:
    one, two = final.dtype.type(1), final.dtype.type(2)
    B, T, D = output.shape
    for b in range(B):
        final[b] = state[b]
        for t in range(T):
            for d in range(D):
                z = two * sigmoid(two * load(gates[b, t, d])) - one
                f = sigmoid(load(gates[b, t, D + d]))
                o = sigmoid(load(gates[b, t, 2 * D + d]))
                c = f * final[b, d] + (one - f) * z
                final[b, d] = c
                output[b, t, d] = store(o * c, output[b, t, d])


@jit()
def _backward(gates: Any, state: Any, d_output: Any, d_final: Any, d_gates: Any, d_state: Any) -> None:
    # LLVM vectorises a loop only while few pairs of its arrays might overlap: hence the short loops and the slices.
    one, two = state.dtype.type(1), state.dtype.type(2)
    B, T, D = d_output.shape
    zs, fs, cs = np.empty((T, D), state.dtype), np.empty((T, D), state.dtype), np.empty((T + 1, D), state.dtype)
    for b in range(B):
        cs[0] = state[b]
        for t in range(T):
            for d in range(D):
                zs[t, d] = two * sigmoid(two * load(gates[b, t, d])) - one
            for d in range(D):
                fs[t, d] = sigmoid(load(gates[b, t, D + d]))
            for d in range(D):
                cs[t + 1, d] = fs[t, d] * cs[t, d] + (one - fs[t, d]) * zs[t, d]
        dc = d_state[b]
        dc[:] = d_final[b]
        for back in range(T):
            t = T - 1 - back
            dz, df, do = d_gates[b, t, :D], d_gates[b, t, D : 2 * D], d_gates[b, t, 2 * D :]
            pre_o, dh, z, f, before, c = gates[b, t, 2 * D :], d_output[b, t], zs[t], fs[t], cs[t], cs[t + 1]
            for d in range(D):
                o = sigmoid(load(pre_o[d]))
                do[d] = store(load(dh[d]) * c[d] * o * (one - o), do[d])
                dc[d] += load(dh[d]) * o
            for d in range(D):
                dz[d] = store(dc[d] * (one - f[d]) * (one - z[d] * z[d]), dz[d])
            for d in range(D):
                df[d] = store(dc[d] * (before[d] - z[d]) * f[d] * (one - f[d]), df[d])
                dc[d] *= f[d]


def _check(gates: Tensor, state: Tensor) -> tuple[int, int, int]:
    """Checks the arguments of a scan; returns B, T and D."""
    (B, T, _), (_, D) = sizes(gates, "gates (B, T, 3D)", 3), sizes(state, "state (B, D)", 2)
    expect(state, "state (B, D)", (B, D), torch.promote_types(gates.dtype, torch.float32))
    expect(gates, "gates (B, T, 3D)", (B, T, 3 * D), torch.float32, torch.float64, torch.bfloat16)
    return B, T, D


def scan_forward(gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns output (B, T, D) in the dtype of `gates` (B, T, 3D), and final state (B, D) in that of `state`."""
    B, T, D = _check(gates, state)
    gates, state = gates.contiguous(), state.contiguous()
    output, final = gates.new_empty(B, T, D), torch.empty_like(state)
    run(_forward, gates, state, output, final)
    return output, final


def scan_backward(gates: Tensor, state: Tensor, d_output: Tensor, d_final: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `gates` and `state`, given those of the output and of the final state."""
    B, T, D = _check(gates, state)
    expect(d_output, "the gradient of the output (B, T, D)", (B, T, D), gates.dtype)
    expect(d_final, "the gradient of the final state (B, D)", (B, D), state.dtype)
    gates, state = gates.contiguous(), state.contiguous()
    d_gates, d_state = torch.empty_like(gates), torch.empty_like(state)
    run(_backward, gates, state, d_output.contiguous(), d_final.contiguous(), d_gates, d_state)
    return d_gates, d_state
