"""Numba kernels of one LSTM step; imported on first use.

The fallback is torch.nn.LSTM (backbone/recurrence.py). Shapes: B batch, H state width.
"""

from typing import Any

import numpy as np

from .numba_tools import jit, jit_sums, load, sigmoid, store


@jit_sums()
def lstm_gates(from_input: Any, from_state: Any, input_bias: Any, state_bias: Any, gates: Any, x: Any, h: Any) -> None:
    """Writes pre-activations, (4H, B) or some rows of it, from both matrices, each of which is read once."""
    for o in range(len(gates)):
        input_row, state_row, own = from_input[o], from_state[o], gates[o]
        bias = load(input_bias[o]) + load(state_bias[o])
        for b in range(len(x)):
            inputs, state, of_input, of_state = x[b], h[b], np.float32(0.0), np.float32(0.0)
            for i in range(len(inputs)):
                of_input += load(input_row[i]) * inputs[i]
            for i in range(len(state)):
                of_state += load(state_row[i]) * state[i]
            own[b] = of_input + of_state + bias


@jit()
def lstm_forward(gates: Any, before: Any, cell: Any, state: Any) -> None:
    """Turns pre-activations (B, 4H) into gates, in place, and writes the new cell and state (B, H)."""
    B, H = cell.shape
    one, two = cell.dtype.type(1), cell.dtype.type(2)
    for b in range(B):
        i, f, g, o = gates[b, :H], gates[b, H : 2 * H], gates[b, 2 * H : 3 * H], gates[b, 3 * H :]
        c, h = cell[b], state[b]
        for d in range(H):
            i[d] = store(sigmoid(load(i[d])), i[d])
        for d in range(H):
            f[d] = store(sigmoid(load(f[d])), f[d])
        for d in range(H):
            g[d] = store(two * sigmoid(two * load(g[d])) - one, g[d])
        for d in range(H):
            o[d] = store(sigmoid(load(o[d])), o[d])
        for d in range(H):
            c[d] = load(f[d]) * before[b, d] + load(i[d]) * load(g[d])
        for d in range(H):
            h[d] = store(load(o[d]) * (two * sigmoid(two * c[d]) - one), h[d])


@jit()
def lstm_backward(gates: Any, before: Any, cell: Any, d_output: Any, d_state: Any, d_cell: Any, d_gates: Any) -> None:
    """Gradients of the pre-activations (B, 4H), and in place of `d_cell` that of the cell before (B, H)."""
    B, H = cell.shape
    one, two = cell.dtype.type(1), cell.dtype.type(2)
    for b in range(B):
        i, f, g, o = gates[b, :H], gates[b, H : 2 * H], gates[b, 2 * H : 3 * H], gates[b, 3 * H :]
        di, df, dg, do = d_gates[b, :H], d_gates[b, H : 2 * H], d_gates[b, 2 * H : 3 * H], d_gates[b, 3 * H :]
        c, dc, before_c, dy, dh = cell[b], d_cell[b], before[b], d_output[b], d_state[b]
        for d in range(H):
            squashed = two * sigmoid(two * c[d]) - one
            slope = load(dy[d]) + load(dh[d])
            out = load(o[d])
            do[d] = store(slope * squashed * out * (one - out), do[d])
            dc[d] += slope * out * (one - squashed * squashed)
        for d in range(H):
            gate = load(i[d])
            di[d] = store(dc[d] * load(g[d]) * gate * (one - gate), di[d])
        for d in range(H):
            candidate = load(g[d])
            dg[d] = store(dc[d] * load(i[d]) * (one - candidate * candidate), dg[d])
        for d in range(H):
            gate = load(f[d])
            df[d] = store(dc[d] * before_c[d] * gate * (one - gate), df[d])
            dc[d] *= gate
