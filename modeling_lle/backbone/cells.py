"""One layer of an LSTM or a GRU over a segment: torch's fused operator, one for compilers, and a stepwise form.

Notable: plain weights are run by oneDNN or cuDNN. Compilers get an opaque operator, since they would unroll torch's
over time. The stepwise form calls modules, so it respects wrapping by PEFT, quantisation and hooks; on long segments
it is slower, but oneDNN reorders the weights in every call, which takes several times as long as one step does.
Padding at the end is read too, without a change of state.
Shapes: B batch, T time, I input width, H state width, G gates: 4 of an LSTM (input, forget, cell, output: Hochreiter
and Schmidhuber 1997, Gers et al. 2000), 3 of a GRU (reset, update, new: Cho et al. 2014, as torch.nn.GRU).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.available import fused
from ..kernels.linear import is_differentiated, linear, takes_products
from ..kernels.lstm import LayerWeights, lstm_layer_step, lstm_step

State = tuple[Tensor, ...]  # h and c of an LSTM, h of a GRU, each (B, H)
Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # from the input (G H, I) and the state (G H, H), their biases (G H,)
SHORT = 8  # steps up to which the stepwise form is faster, if the matrix of the state has MANY elements; else one
MANY = 1 << 18
FEW_STEPS = 64  # steps of all rows up to which it is
CLOSED = 1e4  # pre-activation of an open gate, and its negative of a closed one, in every dtype


def recur(x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None) -> tuple[Tensor, State]:
    """Runs a layer by its weights.

    Args:
        x: (B, T, I) floating.
        state: Before the first step.
        weights: See `Weights`.
        lengths: (B,) int64, steps of each row before its padding; None: all.

    Returns:
        y (B, T, H), undefined at padding, and the state after each row's last step.
    """
    if _is_short(x, state, weights):
        if lengths is None and _is_one_kernel(x, state, weights):
            h, c = lstm_layer_step(x[:, 0], state[0], state[1], LayerWeights(weights))
            return h[:, None], (h, c)
        from_input, from_state, input_bias, state_bias = weights
        products = linear(x, from_input, input_bias)
        return recur_by_steps(products, state, lambda h: linear(h, from_state, state_bias), lengths)
    if lengths is not None and len(state) == 2:
        x, weights = _stand_still(x, weights, lengths)
    if torch.compiler.is_compiling():
        device = x.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, state, weights = x.to(dtype), _cast(state, dtype), _cast(weights, dtype)
        y, *new = _recurrence(x, list(state), list(weights))
    else:
        y, *new = _fused(x, state, weights)
    if lengths is not None:
        new[0] = y[torch.arange(y.shape[0], device=y.device), (lengths - 1).clamp(min=0)]
    return y, keep(lengths, tuple(new), state)


def _is_short(x: Tensor, state: State, weights: Weights) -> bool:
    """Whether the stepwise form is faster: on a CPU, without gradients, over a few steps of a few rows."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    longest = SHORT if weights[1].numel() >= MANY else 1
    if not 1 <= x.shape[1] <= longest or not 1 <= x.shape[0] * x.shape[1] <= FEW_STEPS:
        return False
    return x.dtype == torch.float32 and not is_differentiated(x, *state, *weights)


def _is_one_kernel(x: Tensor, state: State, weights: Weights) -> bool:
    """Whether one kernel takes a single step of an LSTM, whose matrices it reads once."""
    if x.shape[1] != 1 or len(state) != 2 or any(part.dtype != torch.float32 for part in state):
        return False
    from_input, from_state, input_bias, state_bias = weights
    rows = len(x)
    return takes_products(x, from_input, input_bias, rows) and takes_products(x, from_state, state_bias, rows)


def keep(lengths: Tensor | None, new: State, old: State) -> State:
    """Returns the new state where `lengths` (B,) is above 0 (None: everywhere), else the old; in the old dtypes."""
    new = tuple(part.to(before.dtype) for part, before in zip(new, old, strict=True))
    if lengths is None:
        return new
    read = (lengths > 0)[:, None]
    return tuple(torch.where(read, part, before) for part, before in zip(new, old, strict=True))


def _cast(tensors: Any, dtype: torch.dtype) -> Any:
    return tuple(tensor.to(dtype) for tensor in tensors)


def _stand_still(x: Tensor, weights: Weights, lengths: Tensor) -> tuple[Tensor, Weights]:
    """Extends input and weights by a channel that closes and opens gates, so that an LSTM keeps its c at padding."""
    from_input, *others = weights
    padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    gates = from_input.new_tensor([-CLOSED, CLOSED, 0.0, 0.0]).repeat_interleave(from_input.shape[0] // 4)
    extended = torch.cat([from_input, gates[:, None]], dim=1)
    return torch.cat([x, padding[..., None].to(x.dtype)], dim=-1), (extended, *others)  # type: ignore[return-value]


def _fused(x: Tensor, state: Any, weights: Any) -> list[Tensor]:
    """Returns y and the parts of the final state, by torch's operator."""
    hidden = [part[None] for part in state]
    # With biases, one layer, no dropout, whether gradients are wanted, one direction, the batch first.
    options = True, 1, 0.0, torch.is_grad_enabled(), False, True
    if len(hidden) == 2:
        y, *new = torch._VF.lstm(x, hidden, list(weights), *options)
    else:
        y, *new = torch._VF.gru(x, hidden[0], list(weights), *options)
    return [y, *(part[0] for part in new)]


# One operator for compilers


@torch.library.custom_op("lle::recurrence", mutates_args=())
def _recurrence(x: Tensor, state: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        return [part.contiguous() for part in _fused(x, state, weights)]


@_recurrence.register_fake
def _(x: Tensor, state: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    y = x.new_empty(x.shape[0], x.shape[1], state[0].shape[1])
    return [y, *(part.new_empty(part.shape) for part in state)]


@torch.library.custom_op("lle::recurrence_backward", mutates_args=())
def _recurrence_backward(
    slopes: list[Tensor], x: Tensor, state: list[Tensor], weights: list[Tensor], y: Tensor
) -> list[Tensor]:
    differentiate = _differentiate_lstm if len(state) == 2 else _differentiate_gru
    before = torch.cat([state[0][:, None], y[:, :-1]], dim=1)
    from_input, from_state, input_bias, state_bias = weights
    products = F.linear(x, from_input, input_bias), F.linear(before, from_state, state_bias)
    of_input, of_state, of_before = differentiate(slopes, products, before, state, from_state)
    of_weights = [
        (of_input.flatten(0, 1).T @ x.flatten(0, 1)),
        (of_state.flatten(0, 1).T @ before.flatten(0, 1)),
        of_input.sum((0, 1)),
        of_state.sum((0, 1)),
    ]
    return [of_input @ from_input, *of_before, *of_weights]


@_recurrence_backward.register_fake
def _(slopes: list[Tensor], x: Tensor, state: list[Tensor], weights: list[Tensor], y: Tensor) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (x, *state, *weights)]


Slopes = tuple[
    Tensor, Tensor, list[Tensor]
]  # gradients of the products of input and state (B, T, G H), and of the initial state


def _differentiate_lstm(
    slopes: list[Tensor], products: tuple[Tensor, Tensor], before: Tensor, state: list[Tensor], from_state: Tensor
) -> Slopes:
    """Returns the gradients, given those of y, h and c; `before` (B, T, H) is h before each step."""
    i, f, g, o = (products[0] + products[1]).chunk(4, dim=-1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    inner = i * (1 - i), f * (1 - f), 1 - g.square(), o * (1 - o)
    cells = [state[1]]
    for t in range(before.shape[1]):
        cells.append(torch.addcmul(i[:, t] * g[:, t], f[:, t], cells[-1]))
    of_gates = torch.empty_like(products[0])
    of_y, of_h, of_c = slopes
    for t in range(before.shape[1] - 1, -1, -1):
        of_h, squashed = of_h + of_y[:, t], cells[t + 1].tanh()
        of_c = of_c + of_h * o[:, t] * (1 - squashed.square())
        parts = of_c * g[:, t], of_c * cells[t], of_c * i[:, t], of_h * squashed
        of_gates[:, t] = torch.cat([part * own[:, t] for part, own in zip(parts, inner, strict=True)], dim=-1)
        of_h, of_c = of_gates[:, t] @ from_state, of_c * f[:, t]
    return of_gates, of_gates, [of_h, of_c]


def _differentiate_gru(
    slopes: list[Tensor], products: tuple[Tensor, Tensor], before: Tensor, state: list[Tensor], from_state: Tensor
) -> Slopes:
    """Returns the gradients, given those of y and h; `before` (B, T, H) is h before each step."""
    (r_x, z_x, n_x), (r_h, z_h, n_h) = (product.chunk(3, dim=-1) for product in products)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    n = torch.addcmul(n_x, r, n_h).tanh()
    in_n, in_z, in_r = (1 - z) * (1 - n.square()), (before - n) * z * (1 - z), n_h * r * (1 - r)
    of_input, of_state = torch.empty_like(products[0]), torch.empty_like(products[1])
    of_y, of_h = slopes
    for t in range(before.shape[1] - 1, -1, -1):
        of_h = of_h + of_y[:, t]
        of_n, of_z = of_h * in_n[:, t], of_h * in_z[:, t]
        of_r = of_n * in_r[:, t]
        of_input[:, t] = torch.cat([of_r, of_z, of_n], dim=-1)
        of_state[:, t] = torch.cat([of_r, of_z, of_n * r[:, t]], dim=-1)
        of_h = torch.addcmul(of_state[:, t] @ from_state, of_h, z[:, t])
    return of_input, of_state, [of_h]


def _save(ctx: Any, inputs: tuple[Tensor, list[Tensor], list[Tensor]], output: list[Tensor]) -> None:
    x, state, weights = inputs
    ctx.save_for_backward(output[0], x, *state, *weights)


def _differentiate(ctx: Any, slopes: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    y, x, *others = ctx.saved_tensors
    state, weights = others[:-4], others[-4:]
    given = zip(slopes, (y, *state), strict=True)
    slopes = [torch.zeros_like(like) if slope is None else slope for slope, like in given]
    of_x, *rest = _recurrence_backward(slopes, x, state, weights, y)
    return of_x, rest[:-4], rest[-4:]


_recurrence.register_autograd(_differentiate, setup_context=_save)


# Step by step


def recur_by_steps(
    products: Tensor, state: State, from_state: Callable[[Tensor], Tensor], lengths: Tensor | None = None
) -> tuple[Tensor, State]:
    """Runs a layer by its definition, with any map of the state to its products, such as a wrapped module.

    Args:
        products: (B, T, G H) floating, products of the input.
        state: Before the first step.
        from_state: Maps h (B, H) to (B, G H).
        lengths: As in `recur`.
    """
    step, outputs = (_lstm_step if len(state) == 2 else _gru_step), []
    for t, own in enumerate(products.unbind(1)):
        new = step(own, from_state(state[0].to(own.dtype)), state)
        outputs.append(new[0].to(own.dtype))
        state = keep(None if lengths is None else lengths - t, new, state)
    return (torch.stack(outputs, dim=1) if len(outputs) > 1 else outputs[0][:, None]), state


def _lstm_step(of_input: Tensor, of_state: Tensor, state: State) -> State:
    gates = of_input + of_state
    if gates.dtype == state[1].dtype == torch.float32 and fused(gates) and not is_differentiated(state[1]):
        return lstm_step(gates, state[1])
    i, f, g, o = gates.chunk(4, dim=-1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(of_input: Tensor, of_state: Tensor, state: State) -> State:
    (r_x, z_x, n_x), (r_h, z_h, n_h) = of_input.chunk(3, dim=-1), of_state.chunk(3, dim=-1)
    z, n = (z_x + z_h).sigmoid(), (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return ((1 - z) * n + z * state[0],)
