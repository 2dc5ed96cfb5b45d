"""The step of a text by the weights of a stack gives what the stack gives, also after its weights have changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import LLEConfig
from modeling_lle.backbone.recurrence import RecurrentStack
from modeling_lle.backbone.single_step import SingleStep, can_step
from modeling_lle.kernels import linear

pytest.importorskip("numba")
SIZES: dict[str, dict[str, Any]] = {
    "plain": {"stack": "plain", "intermediate_size": 24},
    "residual": {"stack": "residual"},
    "residual with an mlp": {"stack": "residual", "intermediate_size": 24},
}


def make(monkeypatch: pytest.MonkeyPatch, **sizes: Any) -> tuple[RecurrentStack, Tensor, Any]:
    """A stack, an input of a step, and the state after some text."""
    monkeypatch.setattr(linear, "LARGE", 0)
    torch.manual_seed(0)
    stack = RecurrentStack(LLEConfig(vocab_size=9, hidden_size=16, num_hidden_layers=2, **sizes)).eval()
    return stack, torch.randn(1, 1, 16), stack(torch.randn(1, 5, 16))[1]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@torch.no_grad()
def test_a_step_gives_what_the_stack_gives(sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stack, x, state = make(monkeypatch, **sizes)
    assert can_step(stack, x, state)
    step, due, got = SingleStep(stack), state, state
    for _ in range(3):
        y, due = stack(x, due)
        own, got = step(x, got)
        torch.testing.assert_close((own, got), (y, due), atol=1e-6, rtol=1e-5)


def write(weight: Tensor) -> None:
    weight.mul_(0.5)


def replace(weight: Tensor) -> None:
    weight.data = weight.data * 0.5


@pytest.mark.parametrize("change", [write, replace])
@torch.no_grad()
def test_a_step_sees_weights_that_change(change: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch) -> None:
    stack, x, state = make(monkeypatch, stack="plain")
    step = SingleStep(stack)
    before, _ = step(x, state)
    for weight in stack.parameters():
        change(weight)
    torch.testing.assert_close(step(x, state)[0], stack(x, state)[0], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(step(x, state)[0], before)


@pytest.mark.parametrize("what", ["gru", "hook", "no state", "double", "two rows", "small matrices"])
@torch.no_grad()
def test_what_is_more_than_weights_is_left_to_the_stack(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, x, state = make(monkeypatch, recurrence="gru" if what == "gru" else "lstm")
    if what == "hook":
        stack.layers[1].mixer.from_state.register_forward_hook(lambda module, given, output: output + 1)  # type: ignore[union-attr]
    if what == "small matrices":
        monkeypatch.undo()
    x = {"double": x.double(), "two rows": x.expand(2, 1, 16)}.get(what, x)
    assert not can_step(stack, x, None if what == "no state" else state)
