"""Every form of the gated linear recurrence against its definition."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.kernels.scan import gated_scan, gated_scan_reference, scan_backend

FORMS = ["torch", "numba"]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def needs_numba(request: pytest.FixtureRequest) -> None:
    if "numba" in request.node.name:
        pytest.importorskip("numba")


def make_inputs(B: int, T: int, D: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    gates = torch.randn(B, T, 3 * D, generator=generator, dtype=wide).mul(2).to(device, dtype).requires_grad_()
    return [gates, torch.randn(B, D, generator=generator, dtype=wide).to(device).requires_grad_()]


def results(inputs: list[Tensor], backend: str) -> list[Tensor]:
    """Output, final state, and the gradients of a loss that reads both."""
    output, final = gated_scan(*inputs, backend=backend)
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float32, device=output.device).view_as(output)
    loss = (output * weight.to(output.dtype)).sum() + (final * final.detach().cos()).sum()
    return [output, final, *torch.autograd.grad(loss, inputs)]


def assert_equal_results(inputs: list[Tensor], backend: str) -> None:
    expected = results([part.detach().double().requires_grad_() for part in inputs], "reference")
    for got, want, like in zip(results(inputs, backend), expected, [*inputs, *inputs], strict=True):
        assert got.dtype == like.dtype
        torch.testing.assert_close(
            got.double(), want, atol=TOLERANCE[inputs[0].dtype], rtol=TOLERANCE[inputs[0].dtype]
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", FORMS)
@given(B=st.integers(1, 4), T=st.integers(1, 9), D=st.integers(1, 40), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=15)
def test_values_and_gradients(backend: str, dtype: torch.dtype, B: int, T: int, D: int, seed: int) -> None:
    assert_equal_results(make_inputs(B, T, D, dtype, seed=seed), backend)


def test_without_a_gradient_it_is_the_same_numba() -> None:
    inputs = make_inputs(2, 5, 3, torch.float32)
    for one, other in zip(
        gated_scan(*(part.detach() for part in inputs), backend="numba"),
        gated_scan(*inputs, backend="numba"),
        strict=True,
    ):
        assert torch.equal(one, other)
        assert not one.requires_grad


@pytest.mark.parametrize("backend", FORMS)
def test_gradcheck(backend: str) -> None:
    inputs = make_inputs(2, 5, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *args: gated_scan(*args, backend=backend), inputs)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_opcheck_numba(dtype: torch.dtype) -> None:
    torch.library.opcheck(torch.ops.lle.gated_scan.default, make_inputs(2, 3, 5, dtype))


@pytest.mark.parametrize("backend", FORMS)
def test_extreme_pre_activations(backend: str) -> None:
    gates = torch.tensor([-torch.inf, -1e30, -100, -0.0, 100, 1e30, torch.inf]).view(1, 7, 1).repeat(2, 1, 3)
    output, final = gated_scan(gates, torch.ones(2, 1), backend=backend)
    want, want_final = gated_scan_reference(gates, torch.ones(2, 1))
    torch.testing.assert_close(output, want)
    torch.testing.assert_close(final, want_final)


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_nan_is_not_swallowed(backend: str, dtype: torch.dtype) -> None:
    for part in range(3):
        gates, state = make_inputs(1, 2, 1, dtype)
        gates.data[0, 1, part] = torch.nan
        assert gated_scan(gates, state, backend=backend)[0].isnan().tolist() == [[[False], [True]]]


@pytest.mark.parametrize("backend", ["reference", *FORMS])
def test_a_frozen_step_keeps_the_state_exactly(backend: str) -> None:
    gates, state = make_inputs(2, 4, 8, torch.float32)
    gates = gates.detach()
    gates[..., 8:16] = 100.0
    assert torch.equal(gated_scan(gates, state, backend=backend)[1], state)


def test_rows_over_threads_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_lle.kernels.numba_tools.MIN_PARALLEL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert_equal_results(make_inputs(7, 5, 4, torch.float32), "numba")
    outputs: list[Tensor] = []
    inputs = [part.detach() for part in make_inputs(7, 5, 4, torch.float32)]
    callers = [threading.Thread(target=lambda: outputs.append(gated_scan(*inputs, "numba")[0])) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(outputs) == 4
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_arguments_that_are_not_contiguous_numba() -> None:
    gates, state = make_inputs(4, 4, 6, torch.float32)
    output, final = gated_scan(gates.transpose(0, 1), state, "numba")
    want, want_final = gated_scan_reference(gates.transpose(0, 1), state)
    torch.testing.assert_close(output, want)
    torch.testing.assert_close(final, want_final)


def test_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"numba": True}
    monkeypatch.setattr("modeling_lle.kernels.available.installed", lambda name: installed.get(name, False))
    assert scan_backend(torch.zeros(2, 1, 3)) == "numba"
    assert scan_backend(torch.zeros(2, 1, 3, requires_grad=True)) == "reference"
    assert scan_backend(torch.zeros(2, 2, 3)) == "numba"
    assert scan_backend(torch.zeros(2, 2, 3, dtype=torch.float16)) == "torch"
    installed["numba"] = False
    assert scan_backend(torch.zeros(2, 2, 3)) == "torch"
    gates, state = torch.randn(2, 3, 6), torch.zeros(2, 2)
    torch.testing.assert_close(gated_scan(gates, state), gated_scan_reference(gates, state))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["torch", "fla"])
def test_values_and_gradients_on_cuda(backend: str, dtype: torch.dtype) -> None:
    if backend == "fla":
        pytest.importorskip("fla")
    assert_equal_results(make_inputs(3, 130, 64, dtype, device="cuda"), backend)
