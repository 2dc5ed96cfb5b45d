"""The numba kernels of the LSTM's step and of the cross entropy; imported on first use, see kernels_lle.py."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from .kernels_lle import _as_array, _compile, _exp, _load, _run, _sigmoid, _store

as_array = _as_array
LANES = 64


@_compile()
def lstm_forward(gates: Any, before: Any, cell: Any, state: Any) -> None:
    """Turns pre-activations (B, 4H) into gates, in place, and writes the new cell and state (B, H)."""
    B, H = cell.shape
    one, two = cell.dtype.type(1), cell.dtype.type(2)
    for b in range(B):
        i, f, g, o = gates[b, :H], gates[b, H : 2 * H], gates[b, 2 * H : 3 * H], gates[b, 3 * H :]
        c, h = cell[b], state[b]
        for d in range(H):
            i[d] = _store(_sigmoid(_load(i[d])), i[d])
        for d in range(H):
            f[d] = _store(_sigmoid(_load(f[d])), f[d])
        for d in range(H):
            g[d] = _store(two * _sigmoid(two * _load(g[d])) - one, g[d])
        for d in range(H):
            o[d] = _store(_sigmoid(_load(o[d])), o[d])
        for d in range(H):
            c[d] = _load(f[d]) * before[b, d] + _load(i[d]) * _load(g[d])
        for d in range(H):
            h[d] = _store(_load(o[d]) * (two * _sigmoid(two * c[d]) - one), h[d])


@_compile()
def lstm_backward(gates: Any, before: Any, cell: Any, d_output: Any, d_state: Any, d_cell: Any, d_gates: Any) -> None:
    """Gradients of the pre-activations (B, 4H), and in place of `d_cell` that of the cell before (B, H)."""
    B, H = cell.shape
    one, two = cell.dtype.type(1), cell.dtype.type(2)
    for b in range(B):
        i, f, g, o = gates[b, :H], gates[b, H : 2 * H], gates[b, 2 * H : 3 * H], gates[b, 3 * H :]
        di, df, dg, do = d_gates[b, :H], d_gates[b, H : 2 * H], d_gates[b, 2 * H : 3 * H], d_gates[b, 3 * H :]
        c, dc, before_c, dy, dh = cell[b], d_cell[b], before[b], d_output[b], d_state[b]
        for d in range(H):
            squashed = two * _sigmoid(two * c[d]) - one
            slope = _load(dy[d]) + _load(dh[d])
            out = _load(o[d])
            do[d] = _store(slope * squashed * out * (one - out), do[d])
            dc[d] += slope * out * (one - squashed * squashed)
        for d in range(H):
            gate = _load(i[d])
            di[d] = _store(dc[d] * _load(g[d]) * gate * (one - gate), di[d])
        for d in range(H):
            candidate = _load(g[d])
            dg[d] = _store(dc[d] * _load(i[d]) * (one - candidate * candidate), dg[d])
        for d in range(H):
            gate = _load(f[d])
            df[d] = _store(dc[d] * before_c[d] * gate * (one - gate), df[d])
            dc[d] *= gate


@_compile()
def _softmax_slope(logits: Any, targets: Any, nats: Any) -> None:
    N, V = logits.shape
    exps, lanes = np.empty(V, nats.dtype), np.empty(LANES, nats.dtype)
    one, whole = nats.dtype.type(1), V - V % LANES
    for n in range(N):
        row, target = logits[n], targets[n]
        for v in range(V):
            exps[v] = _load(row[v])
        # Lanes side by side vectorise without reordering what is added or compared.
        lanes[:] = exps[0]
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                value = exps[start + lane]
                lanes[lane] = value if value > lanes[lane] else lanes[lane]
        for v in range(whole, V):
            lanes[0] = exps[v] if exps[v] > lanes[0] else lanes[0]
        top = lanes.max()
        at_target = exps[target] if target >= 0 else top
        for v in range(V):
            exps[v] = _exp(exps[v] - top)
        lanes[:] = 0
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                lanes[lane] += exps[start + lane]
        for v in range(whole, V):
            lanes[0] += exps[v]
        total = lanes.sum()
        scale = one / total if target >= 0 else one - one
        nats[n] = math.log(total) + top - at_target if target >= 0 else scale
        if target >= 0:
            exps[target] -= total
        for v in range(V):
            row[v] = _store(exps[v] * scale, row[v])


def softmax_slope(logits: Tensor, targets: Tensor, nats: Tensor) -> None:
    """Replaces logits (N, V) by the slope of the cross entropy, and fills the nats (N,) of the targets (N,) int64.

    Rows whose target is negative get zeros. float32 and bfloat16 logits take float32 nats, float64 float64.
    """
    _run(_softmax_slope, logits, targets, nats)
