"""One layer of an LSTM or a GRU: every form gives what torch.nn's module gives, values, states and slopes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modeling_lle.backbone import cells as cells_module
from modeling_lle.backbone.cells import recur, recur_by_steps

LENGTHS = torch.tensor([4, 1, 0])
every_kind = pytest.mark.parametrize("kind", ["lstm", "gru"])


def make(kind: str) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """x (3, 4, 5), a state of width 2 and weights, float64 leaves."""
    generator = torch.Generator().manual_seed(0)
    gates, parts = (4, 2) if kind == "lstm" else (3, 1)
    sizes = [(3, 4, 5), *[(3, 2)] * parts, (gates * 2, 5), (gates * 2, 2), (gates * 2,), (gates * 2,)]
    leaves = [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]
    return leaves[0], tuple(leaves[1:-4]), tuple(leaves[-4:])


def by_torch(kind: str, x: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> list[Tensor]:
    cell = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](5, 2, batch_first=True, dtype=torch.float64)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    hidden = tuple(part[None] for part in state) if kind == "lstm" else state[0][None]
    y, new = torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (x, hidden))
    return [y, *(part[0] for part in (new if kind == "lstm" else (new,)))]


def slopes(outputs: list[Tensor], *leaves: Tensor) -> list[Tensor]:
    factors = [torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output) for output in outputs]
    return list(torch.autograd.grad(outputs, leaves, factors))


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)


@every_kind
@pytest.mark.parametrize("form", ["fused", "steps", "operator"])
def test_every_form_gives_what_torch_gives(kind: str, form: str) -> None:
    x, state, weights = make(kind)
    want = by_torch(kind, x, state, weights)
    if form == "fused":
        y, new = recur(x, state, weights)  # type: ignore[arg-type]
    elif form == "steps":
        products = nn.functional.linear(x, weights[0], weights[2])
        y, new = recur_by_steps(products, state, lambda h: nn.functional.linear(h, weights[1], weights[3]))
    else:
        y, *parts = cells_module._recurrence(x, list(state), list(weights))
        new = tuple(parts)
    got = [y, *new]
    close(got, want)
    close(slopes(got, x, *state, *weights), slopes(want, x, *state, *weights))


@every_kind
@pytest.mark.parametrize(("rows", "length", "width"), [(1, 1, 3), (3, 1, 2), (2, 5, 512), (1, 1, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_short_segment_calls_no_operator_of_torch(
    kind: str, rows: int, length: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates, parts = (4, 2) if kind == "lstm" else (3, 1)
    x, state = torch.randn(rows, length, 4), tuple(torch.randn(rows, width) for _ in range(parts))
    sizes = [(gates * width, 4), (gates * width, width), (gates * width,), (gates * width,)]
    weights = [(torch.randn(size) / width**0.5).to(dtype) for size in sizes]
    lengths = torch.tensor([length, *[0] * (rows - 1)])
    wide: Any = tuple(weight.float() for weight in weights)
    want = [cells_module._fused(x, state, wide), recur(x, state, wide, lengths)[1]]
    monkeypatch.setattr(cells_module, "_fused", None)
    with torch.no_grad():
        y, new = recur(x, state, weights)  # type: ignore[arg-type]
        torch.testing.assert_close([y, *new], want[0], atol=2e-5, rtol=1e-4)
        padded = recur(x, state, weights, lengths)[1]  # type: ignore[arg-type]
    torch.testing.assert_close(padded, want[1], atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@every_kind
def test_the_operator_is_one_that_compilers_understand(kind: str) -> None:
    x, state, weights = make(kind)
    torch.library.opcheck(cells_module._recurrence, (x, list(state), list(weights)))


@every_kind
@pytest.mark.parametrize("form", ["fused", "steps"])
def test_padding_at_the_end_changes_no_state_and_gets_no_slope(kind: str, form: str) -> None:
    x, state, weights = make(kind)
    if form == "fused":
        y, new = recur(x, state, weights, LENGTHS)  # type: ignore[arg-type]
    else:
        products = nn.functional.linear(x, weights[0], weights[2])
        from_state = nn.Linear(2, len(weights[3]), dtype=torch.float64)
        from_state.weight.data, from_state.bias.data = weights[1].data, weights[3].data
        y, new = recur_by_steps(products, state, from_state, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        before = tuple(part[row : row + 1] for part in state)
        want = by_torch(kind, x[row : row + 1, :length], before, weights) if length else [x[:1, :0, :2], *before]
        close(y[row : row + 1, :length], want[0])
        close([part[row : row + 1] for part in new], want[1:])
    valid = torch.arange(4) < LENGTHS[:, None]
    (of_x,) = slopes([y[valid], *new], x)
    assert (of_x[~valid] == 0).all()
