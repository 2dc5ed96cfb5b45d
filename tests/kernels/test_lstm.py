"""The fused LSTM step against torch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.kernels.lstm import LayerWeights, lstm, lstm_layer_step
from tests.kernels.contract import Case, Maker, Values, check, few_examples

pytest.importorskip("numba")

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-12, torch.bfloat16: 0.03}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def make_inputs(B: int, T: int, width: int, H: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """x, h, c, weight_ih, weight_hh, bias as `lstm` takes them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, T, width), (B, H), (B, H), (4 * H, width), (4 * H, H), (4 * H,)]
    dtypes = [dtype] * 6
    dtypes[2] = torch.promote_types(dtype, torch.float32)
    values = [torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.7 for shape in shapes]
    return [value.to(kind).requires_grad_() for value, kind in zip(values, dtypes, strict=True)]


def torch_lstm(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    """torch.nn.LSTM, with `bias` as the sum of its two."""
    cell = torch.nn.LSTM(x.shape[2], h.shape[1], batch_first=True, dtype=x.dtype)
    weights = {"weight_ih_l0": weight_ih, "weight_hh_l0": weight_hh, "bias_ih_l0": bias}
    weights["bias_hh_l0"] = torch.zeros_like(bias)
    y, (h, c) = torch.func.functional_call(cell, weights, (x, (h[None], c[None])))
    return y, h[0], c[0]


def results(function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]) -> list[Tensor]:
    """Output, final state, and the gradients of a loss that reads all of them."""
    y, h, c = function(*inputs)
    weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).to(y.dtype)
    loss = (y * weight).sum() + (h * h.detach().cos()).sum() + (c * c.detach().cos()).sum()
    return [y, h, c, *torch.autograd.grad(loss, inputs)]


def assert_equal_results(inputs: list[Tensor]) -> None:
    want = results(torch_lstm, [value.detach().double().requires_grad_() for value in inputs])
    tolerance = TOLERANCE[inputs[0].dtype]
    for got, expected, like in zip(results(lstm, inputs), want, [*inputs[:3], *inputs], strict=True):
        assert got.dtype == like.dtype
        scale = max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(got.double(), expected, atol=tolerance * scale, rtol=tolerance)


@every_dtype
@given(B=st.integers(1, 4), T=st.integers(1, 6), width=st.integers(1, 9), H=st.integers(1, 20), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=15)
def test_values_gradients_and_final_state(dtype: torch.dtype, B: int, T: int, width: int, H: int, seed: int) -> None:
    assert_equal_results(make_inputs(B, T, width, H, dtype, seed))


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lstm, make_inputs(2, 3, 2, 3, torch.float64))


@every_dtype
def test_opcheck(dtype: torch.dtype) -> None:
    x, h, c, *weights = make_inputs(2, 3, 4, 5, dtype)
    x = x.detach().transpose(0, 1).contiguous().requires_grad_()
    torch.library.opcheck(torch.ops.lle.lstm.default, (x, h, c, *weights))
    states, cells, gates = (tensor.detach() for tensor in torch.ops.lle.lstm(x, h, c, *weights))
    arguments = torch.ones_like(states), torch.ones_like(c), x.detach(), states, cells, gates
    torch.library.opcheck(torch.ops.lle.lstm_backward.default, (*arguments, weights[0].detach(), weights[1].detach()))


def test_gradients_of_the_final_state_alone() -> None:
    inputs = make_inputs(2, 3, 4, 5, torch.float64)
    for part in (1, 2):
        got = torch.autograd.grad(lstm(*inputs)[part].sum(), inputs)
        want = torch.autograd.grad(torch_lstm(*inputs)[part].sum(), inputs)
        torch.testing.assert_close(got, want)


@every_dtype
def test_saturated_gates(dtype: torch.dtype) -> None:
    inputs = make_inputs(2, 4, 3, 5, dtype)
    inputs[0].data *= 1e4
    got = results(lstm, inputs)
    assert all(value.isfinite().all() for value in got)
    torch.testing.assert_close(got[0].double(), torch_lstm(*(i.double() for i in inputs))[0], atol=0.03, rtol=0.0)


def test_nan_is_not_swallowed() -> None:
    for part in range(6):
        inputs = make_inputs(1, 2, 3, 4, torch.float32)
        inputs[part].data.view(-1)[0] = math.nan
        assert lstm(*inputs)[0].isnan().any()


def test_no_argument_is_changed() -> None:
    inputs = make_inputs(2, 3, 4, 5, torch.float32)
    before = [value.detach().clone() for value in inputs]
    results(lstm, inputs)
    assert all(torch.equal(value, old) for value, old in zip(inputs, before, strict=True))


def _lstm(x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> list[Tensor]:
    states = []
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ weight_ih.T + h @ weight_hh.T + bias).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return [torch.stack(states, dim=1) if states else x.new_empty(len(x), 0, h.shape[1]), h, c]


LSTM = Case(
    lstm,
    lambda m: {
        "x": m.floats(m.size("B"), m.size("T"), m.size("I")),
        "h": m.floats(m.size("B"), m.size("H")),
        "c": m.floats(m.size("B"), m.size("H")),
        "weight_ih": m.floats(4 * m.size("H"), m.size("I")),
        "weight_hh": m.floats(4 * m.size("H"), m.size("H")),
        "bias": m.floats(4 * m.size("H")),
    },
    _lstm,
)


@given(data=st.data())
@few_examples
def test_a_kernel_gives_what_its_definition_gives_or_a_value_error(data: Any) -> None:
    check(LSTM, data)


def _layer_step(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    return lstm_layer_step(x, h, c, LayerWeights(weights))


def _step(x: Tensor, h: Tensor, c: Tensor, from_input: Tensor, from_state: Tensor, *biases: Tensor) -> list[Tensor]:
    own = (from_input, from_state, *biases)
    if any(tensor.dtype != torch.float32 for tensor in (x, h, c)):
        raise ValueError
    if any(weight.dtype not in (torch.float32, torch.bfloat16) for weight in own):
        raise ValueError
    if any(bias.shape != from_state.shape[:1] for bias in biases) or len(from_input) != len(from_state):
        raise ValueError
    weight_ih, weight_hh, one, two = (weight.float() for weight in own)
    return _lstm(x[:, None], h, c, weight_ih, weight_hh, one + two)[1:]


def _make_step(maker: Maker) -> Values:
    B, I, H = (maker.size(letter) for letter in "BIH")  # noqa: E741
    dtype = torch.bfloat16 if maker.data.draw(st.booleans()) else torch.float32
    shapes = {"from_input": (4 * H, I), "from_state": (4 * H, H), "input_bias": (4 * H,), "state_bias": (4 * H,)}
    own = {name: maker.floats(*shape, dtype=dtype) for name, shape in shapes.items()}
    return {"x": maker.floats(B, I), "h": maker.floats(B, H), "c": maker.floats(B, H), **own}


@given(data=st.data())
@few_examples
def test_the_step_of_a_layer_gives_what_its_definition_gives_or_a_value_error(data: Any) -> None:
    check(Case(_layer_step, _make_step, lambda **values: _step(*values.values())), data)


def test_the_step_of_a_layer_is_the_same_beside_other_rows_and_in_several_threads() -> None:
    x, h, c, *weights = (part.detach() for part in make_inputs(8, 1, 200, 100, torch.float32))
    given = LayerWeights((*weights, torch.randn(400)))
    together, threads = lstm_layer_step(x[:, 0], h, c, given), torch.get_num_threads()
    alone = [lstm_layer_step(x[row : row + 1, 0], h[row : row + 1], c[row : row + 1], given) for row in range(8)]
    torch.testing.assert_close([torch.cat(part) for part in zip(*alone, strict=True)], [*together], atol=0, rtol=0)
    torch.set_num_threads(3)
    try:
        torch.testing.assert_close(lstm_layer_step(x[:, 0], h, c, given), together, atol=0, rtol=0)
    finally:
        torch.set_num_threads(threads)
