"""The fused LSTM step and the kernel of the cross entropy against torch."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.kernels.lstm import lstm

pytest.importorskip("numba")
from modeling_lle.kernels import softmax_numba as kernels

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


def slope(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's slope and nats."""
    logits = logits.clone()
    nats = torch.full((len(logits),), 7.0, dtype=torch.promote_types(logits.dtype, torch.float32))
    kernels.softmax_slope(logits, targets, nats, nats.new_empty(len(logits), 0))
    return logits, nats


@every_dtype
@given(n=st.integers(1, 5), v=st.integers(1, 200), scale=st.sampled_from([0.1, 3.0, 50.0]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_softmax_slope(dtype: torch.dtype, n: int, v: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, generator=generator, dtype=torch.float64).mul(scale).to(dtype)
    targets = torch.randint(v, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < 0.3] = -100
    exact = logits.double().requires_grad_()
    want = torch.nn.functional.cross_entropy(exact, targets, reduction="none", ignore_index=-100)
    (gradient,) = torch.autograd.grad(want.sum(), exact)
    got, nats = slope(logits, targets)
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 4e-3}[dtype]
    torch.testing.assert_close(got.double(), gradient, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(nats.double(), want.detach(), atol=2e-5 if dtype != torch.float64 else 1e-12, rtol=1e-5)
    assert (got[targets < 0] == 0).all()
    assert (nats[targets < 0] == 0).all()


@every_dtype
def test_softmax_slope_of_nan_and_infinity(dtype: torch.dtype) -> None:
    for value in (math.nan, math.inf):
        for place in (0, 63, 64, 99):
            logits = torch.zeros(3, 100, dtype=dtype)
            logits[1, place] = value
            got, nats = slope(logits, torch.tensor([0, 5, -100]))
            assert nats.isnan().tolist() == [False, True, False]
            assert got[1].isnan().any()
            assert got[[0, 2]].isfinite().all()
    logits = torch.zeros(1, 100, dtype=dtype)
    logits[0, 3] = -math.inf
    got, nats = slope(logits, torch.tensor([0]))
    torch.testing.assert_close(nats, torch.full_like(nats, math.log(99)))
    assert float(got[0, 3]) < 1e-38
