"""The chunked cross entropy against its definition."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_lle.history import loss as loss_module
from modeling_lle.history.loss import (
    IGNORED,
    RecalledTargets,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    smoothing_nats,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
N, D, V = 13, 5, 70  # more than one lane of the kernel, and a rest


@pytest.fixture(params=["numba", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel, and as it runs where numba is missing."""
    if request.param == "numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr("modeling_lle.kernels.available.installed", lambda package: False)
    return request.param


def make_inputs(dtype: torch.dtype = torch.float32, n: int = N, v: int = V, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, D), (v, D), (v,)]
    leaves = [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    targets = torch.randint(v, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < 0.3] = IGNORED
    return *(leaf.requires_grad_() for leaf in leaves), targets


def results(function: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> list[Tensor]:
    """The loss and all gradients."""
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]
    loss = function(hidden, weight, bias, targets)
    return [loss, *torch.autograd.grad(loss * 0.7, leaves)]


def assert_equal_results(inputs: tuple[Any, ...], tolerance: float) -> None:
    doubles = [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in inputs[:3]]
    want = results(double_reference, *doubles, inputs[3])
    for got, expected in zip(results(linear_cross_entropy, *inputs), want, strict=True):
        torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


def double_reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def distance(got: Tensor, want: Tensor) -> float:
    """The error's norm, as a share of what is due."""
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm())


def test_the_reference_is_the_cross_entropy() -> None:
    inputs = make_inputs()
    torch.testing.assert_close(linear_cross_entropy_reference(*inputs), double_reference(*inputs))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_value_and_gradients(form: str, dtype: torch.dtype, with_bias: bool) -> None:
    hidden, weight, bias, targets = make_inputs(dtype)
    loss = linear_cross_entropy(hidden, weight, bias, targets)
    assert loss.dtype == dtype
    assert_equal_results((hidden, weight, bias if with_bias else None, targets), TOLERANCE[dtype])


def make_recalled(dtype: torch.dtype, sources: int, n: int = N, seed: int = 0) -> RecalledTargets:
    """What sources recall, some of which have no entries at some positions."""
    generator = torch.Generator().manual_seed(seed)
    mass = -3 * torch.rand(n, sources, generator=generator, dtype=torch.float64)
    empty = torch.rand(n, sources, generator=generator) < 0.3
    probability = torch.rand(n, sources, generator=generator, dtype=torch.float64).masked_fill(empty, 0.0)
    numbers = torch.randn(sources, 4, generator=generator, dtype=torch.float64) / 2
    parts = probability, mass.masked_fill(empty, -math.inf), numbers
    return RecalledTargets(*(part.to(dtype).requires_grad_() for part in parts))


def mixture_results(function: Any, inputs: tuple[Any, ...], recalled: RecalledTargets) -> list[Tensor]:
    """The loss of the mixture and all gradients, also those of what was recalled."""
    leaves = [leaf for leaf in inputs[:3] if leaf is not None]
    loss = function(*inputs, recalled)
    return [loss, *torch.autograd.grad(loss * 0.7, [*leaves, recalled.probability, recalled.mass, recalled.numbers])]


def double(inputs: tuple[Any, ...], recalled: RecalledTargets) -> tuple[tuple[Any, ...], RecalledTargets]:
    """The same leaves in float64."""
    leaves = [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in inputs[:3]]
    parts = (recalled.probability, recalled.mass, recalled.numbers)
    return (*leaves, inputs[3]), RecalledTargets(*(part.detach().double().requires_grad_() for part in parts))


@pytest.mark.parametrize("sources", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_mixture_value_and_gradients(form: str, dtype: torch.dtype, with_bias: bool, sources: int) -> None:
    hidden, weight, bias, targets = make_inputs(dtype)
    inputs, recalled = (hidden, weight, bias if with_bias else None, targets), make_recalled(dtype, sources)
    got = mixture_results(linear_cross_entropy, inputs, recalled)
    want = mixture_results(linear_cross_entropy_reference, *double(inputs, recalled))
    assert got[0].dtype == dtype
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value.double(), expected, atol=5 * TOLERANCE[dtype], rtol=5 * TOLERANCE[dtype])
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(*inputs, recalled), got[0])


@given(n=st.integers(1, 9), v=st.integers(1, 140), chunk=st.integers(1, 1000), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_mixture_in_chunks_of_any_size(n: int, v: int, chunk: int, seed: int) -> None:
    inputs, recalled = make_inputs(torch.float64, n, v, seed), make_recalled(torch.float64, 2, n, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK_ELEMENTS", chunk)
        got = mixture_results(linear_cross_entropy, inputs, recalled)
    for value, expected in zip(got, mixture_results(linear_cross_entropy_reference, inputs, recalled), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-11, rtol=1e-11)


def test_mixture_in_bfloat16_autocast(form: str) -> None:
    inputs, recalled = make_inputs(), make_recalled(torch.float32, 2)
    with torch.autocast("cpu", torch.bfloat16):
        got = mixture_results(linear_cross_entropy, inputs, recalled)
    for value, expected in zip(got, mixture_results(linear_cross_entropy_reference, inputs, recalled), strict=True):
        assert value.dtype == torch.float32
        assert distance(value, expected) < 0.02


def test_a_history_without_entries_changes_nothing(form: str) -> None:
    inputs = make_inputs(torch.float64)
    none = torch.zeros(N, 1, dtype=torch.float64)
    recalled = RecalledTargets(none, torch.full_like(none, -math.inf), torch.ones(1, 4, dtype=torch.float64))
    want = results(linear_cross_entropy, *inputs)
    got = results(lambda *given: linear_cross_entropy(*given, recalled), *inputs)
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-12, rtol=1e-12)


def test_the_base_learns_by_its_own_loss(form: str) -> None:
    inputs = make_inputs()
    alone = results(linear_cross_entropy, *inputs)
    mixed = results(lambda *given: linear_cross_entropy(*given, make_recalled(torch.float32, 2)), *inputs)
    assert (alone[0] - mixed[0]).abs().item() > 0.1
    for gradient, expected in zip(mixed[1:], alone[1:], strict=True):
        torch.testing.assert_close(gradient, expected)


def test_a_frozen_model_still_gives_the_gradients_of_what_was_recalled(form: str) -> None:
    hidden, weight, bias, targets = make_inputs()
    recalled = make_recalled(torch.float32, 1)
    want = mixture_results(linear_cross_entropy, (hidden, weight, bias, targets), recalled)[4:]
    frozen = [leaf.detach() for leaf in (hidden, weight, bias)]
    linear_cross_entropy(*frozen, targets, recalled).mul(0.7).backward()
    for part, expected in zip((recalled.probability, recalled.mass, recalled.numbers), want, strict=True):
        torch.testing.assert_close(part.grad, expected)


@given(n=st.integers(1, 9), v=st.integers(1, 140), chunk=st.integers(1, 1000), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_chunks_of_any_size(n: int, v: int, chunk: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK_ELEMENTS", chunk)
        assert_equal_results(make_inputs(torch.float64, n, v, seed), 1e-11)


@pytest.mark.parametrize("rows", [1, 12, 13, 14])
def test_chunk_borders(form: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", rows * V)
    assert_equal_results(make_inputs(), 1e-5)


def test_bfloat16_autocast(form: str) -> None:
    inputs = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        got = results(linear_cross_entropy, *inputs)
    want = results(linear_cross_entropy_reference, *inputs)
    for value, expected in zip(got, want, strict=True):
        assert value.dtype == torch.float32
        assert distance(value, expected) < 0.01


def test_bfloat16_weights(form: str) -> None:
    inputs = make_inputs(torch.bfloat16)
    got = results(linear_cross_entropy, *inputs)
    assert got[0].dtype == torch.float32
    assert all(gradient.dtype == torch.bfloat16 for gradient in got[1:])
    want = results(double_reference, *(leaf.detach().double().requires_grad_() for leaf in inputs[:3]), inputs[3])
    for value, expected in zip(got, want, strict=True):
        assert distance(value, expected) < 0.02


def test_leading_dimensions(form: str) -> None:
    inputs = make_inputs(n=12)
    want = results(linear_cross_entropy, *inputs)
    got = results(lambda h, w, b, t: linear_cross_entropy(h.view(3, 4, D), w, b, t.view(3, 4)), *inputs)
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected)


def test_only_ignored_targets(form: str) -> None:
    hidden, weight, bias, targets = make_inputs()
    for value in results(linear_cross_entropy, hidden, weight, bias, torch.full_like(targets, IGNORED)):
        assert (value == 0).all()


def test_unlikely_targets(form: str) -> None:
    hidden, weight, bias, targets = make_inputs()
    assert_equal_results((hidden.detach().mul(200).requires_grad_(), weight, bias, targets), 1e-3)


def test_without_gradients(form: str) -> None:
    inputs = make_inputs()
    want = linear_cross_entropy_reference(*inputs)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(*inputs), want)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side(form: str, frozen: int) -> None:
    inputs = list(make_inputs())
    want = results(linear_cross_entropy_reference, *inputs)
    inputs[frozen] = inputs[frozen].detach()
    linear_cross_entropy(*inputs).mul(0.7).backward()
    assert inputs[frozen].grad is None
    torch.testing.assert_close(inputs[1 - frozen].grad, want[2 - frozen])


def test_backward_twice_gives_the_same_gradients(form: str) -> None:
    hidden, weight, bias, targets = make_inputs()
    loss = linear_cross_entropy(hidden, weight, bias, targets)
    first = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
    second = torch.autograd.grad(loss * 2, (hidden, weight, bias))
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(two, 2 * one)


def test_nan_is_not_swallowed(form: str) -> None:
    hidden, weight, bias, targets = make_inputs()
    hidden.data[int((targets != IGNORED).nonzero()[0]), 0] = math.nan
    assert linear_cross_entropy(hidden, weight, bias, targets).isnan()


@pytest.mark.parametrize("grad", [True, False])
def test_a_target_out_of_range_is_named(form: str, grad: bool) -> None:
    hidden, weight, bias, targets = make_inputs()
    targets[3] = V
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=rf"targets hold {V} at \(3,\).* {V} outcomes"):
        linear_cross_entropy(hidden, weight, bias, targets)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return output


@pytest.mark.parametrize("sources", [0, 2])
def test_the_logits_never_exist_at_once(form: str, sources: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 4 * V)
    inputs = make_inputs(n=100)
    with Largest() as largest:
        recalled = make_recalled(torch.float32, sources, 100) if sources else None
        linear_cross_entropy(*inputs, recalled).backward()
    assert largest.elements <= max(5 * V, V * D, 100 * D)
    with Largest() as largest:
        linear_cross_entropy_reference(*inputs)
    assert largest.elements == 100 * V


def test_padding_costs_no_logits(form: str) -> None:
    hidden, weight, bias, targets = make_inputs(n=100, v=1000)
    targets[10:] = IGNORED
    with Largest() as largest:
        linear_cross_entropy(hidden, weight, bias, targets).backward()
    assert largest.elements <= max(10 * 1000, 1000 * D)


def test_smoothing_is_the_difference_to_the_smoothed_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    hidden, weight, bias = draw(2, 5, 3), draw(7, 3), draw(7)
    targets = torch.tensor([[0, 6, -100, 2, 2], [1, -100, -100, 3, 5]])
    for tensor in (hidden, weight, bias):
        tensor.requires_grad_()
    logits = torch.nn.functional.linear(hidden, weight, bias).flatten(0, 1)
    options: dict[str, Any] = {"ignore_index": -100, "reduction": "sum"}
    plain = torch.nn.functional.cross_entropy(logits, targets.flatten(), **options)
    smoothed = torch.nn.functional.cross_entropy(logits, targets.flatten(), label_smoothing=0.2, **options)
    own = plain + 0.2 * smoothing_nats(hidden, weight, bias, targets)
    torch.testing.assert_close(own, smoothed)
    expected = torch.autograd.grad(smoothed, (hidden, weight, bias), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(own, (hidden, weight, bias)), expected)
