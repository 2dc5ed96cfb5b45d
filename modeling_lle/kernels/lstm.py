"""Training step of an LSTM layer in bfloat16 on a CPU: one product for all inputs, then a product and kernel a step.

Notable: torch.nn.LSTM is the definition and the fallback; this form gives the same values and gradients (tests) in
about 0.6 of its time in bfloat16. Most of the gain is in the backward pass, where the gradient of each weight is one
product over all steps. In float32 oneDNN is faster. Shapes: B batch, T time, I input width, H state width; the gates
are ordered input, forget, cell, output.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, sizes

_WEIGHTS = "from_input (4H, I)", "from_state (4H, H)", "input_bias (4H,)", "state_bias (4H,)"


def _check(
    x: Tensor, h: Tensor | None, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None
) -> tuple[int, int, int]:
    """Checks the arguments of a layer, x (T, B, I); returns T, B and H."""
    (T, B, I), H = sizes(x, "x (T, B, I)", 3), sizes(weight_hh, "weight_hh (4H, H)", 2)[1]  # noqa: E741
    expect(x, "x (T, B, I)", (T, B, I), torch.float32, torch.bfloat16, torch.float64)
    expect(c, "c (B, H)", (B, H), torch.promote_types(x.dtype, torch.float32))
    expect(weight_ih, "weight_ih (4H, I)", (4 * H, I), x.dtype)
    expect(weight_hh, "weight_hh (4H, H)", (4 * H, H), x.dtype)
    if h is not None:
        expect(h, "h (B, H)", (B, H), x.dtype)
    if bias is not None:
        expect(bias, "bias (4H,)", (4 * H,), x.dtype)
    return T, B, H


@torch.library.custom_op("lle::lstm", mutates_args=())
def _lstm(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from .lstm_numba import lstm_forward
    from .numba_tools import as_array

    T, B, H = _check(x, h, c, weight_ih, weight_hh, bias)
    gates = torch.addmm(bias, x.reshape(T * B, x.shape[2]), weight_ih.T).view(T, B, 4 * H)
    states, cells = x.new_empty(T + 1, B, H), c.new_empty(T + 1, B, H)
    states[0], cells[0] = h, c
    arrays = as_array(gates), as_array(states), as_array(cells)
    for t in range(T):
        torch.addmm(gates[t], states[t], weight_hh.T, out=gates[t])
        lstm_forward(arrays[0][t], arrays[2][t], arrays[2][t + 1], arrays[1][t + 1])
    return states, cells, gates


@torch.library.custom_op("lle::lstm_backward", mutates_args=())
def _lstm_backward(
    d_states: Tensor,
    d_cell: Tensor,
    x: Tensor,
    states: Tensor,
    cells: Tensor,
    gates: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
) -> list[Tensor]:
    from .lstm_numba import lstm_backward
    from .numba_tools import as_array

    T, B, H = _check(x, h=None, c=d_cell, weight_ih=weight_ih, weight_hh=weight_hh, bias=None)
    expect(cells, "cells (T + 1, B, H)", (T + 1, B, H), d_cell.dtype)
    expect(gates, "gates (T, B, 4H)", (T, B, 4 * H), x.dtype)
    for part, name in ((states, "states (T + 1, B, H)"), (d_states, "gradient of the states (T + 1, B, H)")):
        expect(part, name, (T + 1, B, H), x.dtype)
    gates, cells = gates.contiguous(), cells.contiguous()
    d_gates, d_cell = torch.empty_like(gates), d_cell.clone(memory_format=torch.contiguous_format)
    d_state = torch.zeros_like(states[0])
    arrays = [as_array(tensor) for tensor in (gates, cells, d_states.contiguous(), d_state, d_cell, d_gates)]
    for t in range(T - 1, -1, -1):
        lstm_backward(
            arrays[0][t], arrays[1][t], arrays[1][t + 1], arrays[2][t + 1], arrays[3], arrays[4], arrays[5][t]
        )
        torch.mm(d_gates[t], weight_hh, out=d_state)
    rows = d_gates.view(T * B, 4 * H)
    return [
        (rows @ weight_ih).view_as(x),
        d_state + d_states[0],
        d_cell,
        rows.T @ x.reshape(T * B, x.shape[2]),
        rows.T @ states[:-1].reshape(T * B, H),
        rows.sum(0, dtype=cells.dtype).to(gates.dtype),
    ]


@_lstm.register_fake
def _(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    (T, B, _), H = x.shape, weight_hh.shape[1]
    return x.new_empty(T + 1, B, H), c.new_empty(T + 1, B, H), x.new_empty(T, B, 4 * H)


@_lstm_backward.register_fake
def _(
    d_states: Tensor,
    d_cell: Tensor,
    x: Tensor,
    states: Tensor,
    cells: Tensor,
    gates: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
) -> list[Tensor]:
    bias = weight_ih.new_empty(weight_ih.shape[0])
    return [torch.empty_like(t) for t in (x, states[0], d_cell, weight_ih, weight_hh, bias)]


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, _, _, weight_ih, weight_hh, _ = inputs
    states, cells, gates = output
    ctx.mark_non_differentiable(gates)
    ctx.save_for_backward(x, states, cells, gates, weight_ih, weight_hh)


def _differentiate(ctx: Any, d_states: Tensor, d_cells: Tensor, d_gates: Tensor) -> tuple[Tensor, ...]:
    return tuple(_lstm_backward(d_states, d_cells[-1], *ctx.saved_tensors))


_lstm.register_autograd(_differentiate, setup_context=_save)


def lstm(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs one LSTM layer (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000) over a batch.

    Args:
        x: (B, T, I), float32, bfloat16 or float64.
        h: (B, H), in the dtype of `x`.
        c: (B, H), float32, or float64 where `x` is.
        weight_ih: (4H, I), in the dtype of `x`; `weight_hh` (4H, H) and `bias` (4H,) likewise.
        weight_hh: See `weight_ih`.
        bias: The sum of torch.nn.LSTM's two biases.

    Returns:
        y (B, T, H) in the dtype of `x`, and h and c after the last step.
    """
    states, cells, _ = _lstm(x.transpose(0, 1).contiguous(), h, c, weight_ih, weight_hh, bias)
    return states[1:].transpose(0, 1), states[-1], cells[-1]


def lstm_step(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Ends one step of an LSTM layer, without gradients: returns the new h and c, (B, H) float32.

    Args:
        gates: (B, 4H) float32, the sum of all products and biases; it is overwritten.
        c: (B, H) float32, before the step.
    """
    from .lstm_numba import lstm_forward
    from .numba_tools import as_array

    B, H = sizes(c, "c (B, H)", 2)
    expect(c, "c (B, H)", (B, H), torch.float32)
    expect(gates, "gates (B, 4H)", (B, 4 * H), torch.float32, in_place=True)
    h, new = torch.empty(B, H), torch.empty(B, H)
    lstm_forward(as_array(gates), as_array(c.contiguous()), as_array(new), as_array(h))
    return h, new


class LayerWeights:
    """The weights of an LSTM layer as arrays, which are views of them.

    Args:
        weights: From the input (4H, I) and the state (4H, H), and their biases (4H,), float32 or bfloat16.
    """

    def __init__(self, weights: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        from .numba_tools import as_array

        (_, self.I), (_, self.H) = sizes(weights[0], _WEIGHTS[0], 2), sizes(weights[1], _WEIGHTS[1], 2)
        shapes = (4 * self.H, self.I), (4 * self.H, self.H), (4 * self.H,), (4 * self.H,)
        for weight, name, shape in zip(weights, _WEIGHTS, shapes, strict=True):
            expect(weight, name, shape, torch.float32, torch.bfloat16)
        self.tensors = weights
        self.arrays = tuple(as_array(weight) for weight in weights)
        self._places = tuple(weight.data_ptr() for weight in weights)

    def are_current(self) -> bool:
        """Whether the tensors still lie where the arrays do."""
        return self._places == tuple(weight.data_ptr() for weight in self.tensors)


def lstm_layer_step(x: Tensor, h: Tensor, c: Tensor, weights: LayerWeights) -> tuple[Tensor, Tensor]:
    """Computes one step of an LSTM layer, without gradients: returns the new h and c, (B, H) float32.

    Args:
        x: (B, I) float32.
        h: (B, H) float32, before the step; `c` likewise.
        c: See `h`.
        weights: Those of the layer.
    """
    from .lstm_numba import lstm_forward, lstm_gates
    from .numba_tools import as_array, run_arrays

    B, H = sizes(c, "c (B, H)", 2)
    expect(x, "x (B, I)", (B, weights.I), torch.float32)
    expect(h, "h (B, H)", (B, weights.H), torch.float32)
    expect(c, "c (B, H)", (B, weights.H), torch.float32)
    vectors, cell = tuple(as_array(part.contiguous()) for part in (x, h)), as_array(c.contiguous())
    gates, new = np.empty((4 * H, B), np.float32), torch.empty(2, B, H)
    run_arrays(lambda *parts: lstm_gates(*parts, *vectors), *weights.arrays, gates)
    state, new_cell = as_array(new)
    lstm_forward(gates.reshape(1, 4 * H) if B == 1 else gates.T.copy(), cell, new_cell, state)
    return new[0], new[1]
