"""The recurrent stack: one interface, whatever the recurrence, the stack, the padding and the precision."""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modeling_lle.backbone.recurrence import (
    LONGEST_MEMORY,
    QRNN,
    RecurrentStack,
    init_recurrent_weights,
    variational_dropout,
    weight_dropout,
)
from modeling_lle.configuration import LLEConfig

RECURRENCES = ["lstm", "gru", "qrnn"]
STACKS = ["plain", "residual"]
VALID = torch.tensor(
    [
        [0, 0, 0, 1, 1, 1],  # padded on the left
        [1, 1, 1, 1, 0, 0],  # on the right
        [0, 1, 0, 0, 1, 1],  # with holes
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],  # nothing but padding
    ],
    dtype=torch.bool,
)
every_stack = pytest.mark.parametrize("stack", STACKS)
every_recurrence = pytest.mark.parametrize("recurrence", RECURRENCES)


def make_stack(recurrence: str, stack: str = "plain", **kwargs: Any) -> RecurrentStack:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    module = RecurrentStack(LLEConfig(recurrence=recurrence, stack=stack, **{**sizes, **kwargs}))
    return module.apply(init_recurrent_weights).eval()


def close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


@every_stack
@every_recurrence
@pytest.mark.parametrize("inner", [None, 12])
def test_a_continued_state_equals_one_pass(recurrence: str, stack: str, inner: int | None) -> None:
    module, x = make_stack(recurrence, stack, intermediate_size=inner), torch.randn(3, 7, 8)
    y, state = module(x)
    assert y.shape == x.shape
    assert all(part.shape[0] == 3 for part in state)
    outputs, carried = [], None
    for segment in x.split([3, 1, 1, 2], dim=1):
        part, carried = module(segment, carried)
        outputs.append(part)
    close(torch.cat(outputs, dim=1), y)
    close(carried, state)


@every_stack
@every_recurrence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_padded_row_equals_the_row_alone(recurrence: str, stack: str, dtype: torch.dtype) -> None:
    module = make_stack(recurrence, stack).to(dtype)
    x = torch.randn(len(VALID), 6, 8, dtype=dtype)
    _, start = module(torch.randn(len(VALID), 3, 8, dtype=dtype))
    y, state = module(x, start, VALID)
    assert y.isfinite().all()
    for row, valid in enumerate(VALID):
        before = tuple(part[row : row + 1] for part in start)
        after = tuple(part[row : row + 1] for part in state)
        if valid.any():
            want, want_state = module(x[row : row + 1, valid], before)
            close(y[row : row + 1, valid], want)
            close(after, want_state)
        else:
            assert all(torch.equal(part, old) for part, old in zip(after, before, strict=True))


@every_recurrence
def test_padding_gets_no_gradient(recurrence: str) -> None:
    module, x = make_stack(recurrence), torch.randn(len(VALID), 6, 8, requires_grad=True)
    y, state = module(x, None, VALID)
    (y[VALID].sum() + sum(part.sum() for part in state)).backward()
    assert (x.grad[~VALID] == 0).all()
    assert (x.grad[VALID] != 0).any()


@every_recurrence
def test_a_mask_without_padding_is_no_mask(recurrence: str) -> None:
    module, x = make_stack(recurrence), torch.randn(2, 5, 8)
    y, state = module(x, None, torch.ones(2, 5, dtype=torch.bool))
    assert torch.equal(y, module(x)[0])
    assert all(torch.equal(part, other) for part, other in zip(state, module(x)[1], strict=True))


@every_stack
@every_recurrence
def test_gradcheck(recurrence: str, stack: str) -> None:
    module = make_stack(recurrence, stack, hidden_size=3, intermediate_size=2).double()
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    inputs = [part.detach().clone().requires_grad_() for part in (x, *module(x)[1])]

    def run(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        y, new = module(x, state)
        return y, *new

    assert torch.autograd.gradcheck(run, inputs)


@every_stack
@every_recurrence
def test_bfloat16_is_near_float32(recurrence: str, stack: str) -> None:
    module, x = make_stack(recurrence, stack), torch.randn(5, 6, 8)
    for mask in (None, VALID):
        want, want_state = module(x, None, mask)
        with torch.autocast("cpu", torch.bfloat16):
            y, state = module(x, None, mask)
            again, _ = module(x, state, mask)
        assert [part.dtype for part in state] == [part.dtype for part in want_state]
        valid = torch.ones(5, 6, dtype=torch.bool) if mask is None else mask
        close(y.float()[valid], want[valid], 0.05)
        close(again.float()[valid], module(x, want_state, mask)[0][valid], 0.05)
        low = copy.deepcopy(module).bfloat16()
        y, state = low(x.bfloat16(), None, mask)
        assert y.dtype == torch.bfloat16
        close(y.float()[valid], want[valid], 0.05)
        assert low(x.bfloat16(), state, mask)[0].isfinite().all()


@every_recurrence
def test_training_under_autocast(recurrence: str) -> None:
    module, x = make_stack(recurrence, weight_dropout=0.3, hidden_dropout=0.2).train(), torch.randn(5, 6, 8)
    for mask in (None, VALID):
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = module(x, None, mask)
        y.float().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


@every_stack
@every_recurrence
@pytest.mark.parametrize("kind", ["weight_dropout", "hidden_dropout"])
def test_dropout_acts_in_training_only(recurrence: str, stack: str, kind: str) -> None:
    module, plain = make_stack(recurrence, stack, **{kind: 0.5}), make_stack(recurrence, stack)
    x = torch.randn(2, 5, 8)
    assert torch.equal(module(x)[0], plain(x)[0])
    close(plain.train()(x)[0], plain.eval()(x)[0])  # training may run another kernel
    module.train()
    first, second = module(x)[0], module(x)[0]
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_variational_dropout_keeps_its_mask_over_time() -> None:
    dropped = variational_dropout(torch.ones(3, 50, 200), 0.5, True)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize("probability", [0.0001, 0.3, 0.95])
def test_weight_dropout_drops_each_weight_with_its_probability(probability: float) -> None:
    torch.manual_seed(0)
    weight = torch.ones(331, 1201, requires_grad=True)
    dropped = weight_dropout(weight, probability, True)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-3)
    spread = (probability * (1 - probability) / weight.numel()) ** 0.5
    assert (dropped == 0).float().mean().item() == pytest.approx(probability, abs=5 * spread + 1 / 65536)
    kept = (dropped != 0).double()  # neighbours, whose draws share 64 random bits, are independent
    together = kept[:, :-1].mul(kept[:, 1:]).mean().item()
    assert together == pytest.approx((1 - probability) ** 2, abs=10 * spread + 2 / 65536)
    dropped.sum().backward()
    assert torch.equal(weight.grad, dropped)


@every_stack
@every_recurrence
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(recurrence: str, stack: str, reentrant: bool) -> None:
    module = make_stack(recurrence, stack, weight_dropout=0.3, hidden_dropout=0.3).train()
    start = tuple(part.detach().requires_grad_() for part in module(torch.randn(len(VALID), 3, 8))[1])
    x = torch.randn(len(VALID), 6, 8, requires_grad=True)
    gradients = []
    for checkpointing in (False, True):
        for layer in module.layers:
            layer.gradient_checkpointing = checkpointing
            layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=reentrant)
        torch.manual_seed(1)
        y, state = module(x, start, VALID)
        loss = y[VALID].square().sum() + sum(part.square().sum() for part in state)
        for leaf in (x, *start, *module.parameters()):
            leaf.grad = None
        loss.backward()
        gradients.append([leaf.grad for leaf in (x, *start, *module.parameters())])
    close(gradients[1], gradients[0])


@every_stack
@every_recurrence
def test_a_single_step_exports(recurrence: str, stack: str) -> None:
    module, x = make_stack(recurrence, stack), torch.randn(2, 1, 8)
    _, state = module(torch.randn(2, 3, 8))
    exported = torch.export.export(module, (x, state))
    assert "gated_scan" not in str(exported.graph)
    close(exported.module()(x, state), module(x, state))


def test_initial_memories_are_spread() -> None:
    layer = QRNN(8, 64, 0.0).apply(init_recurrent_weights)
    memory = 1 / (1 - layer.gates.bias.view(3, 64)[1].sigmoid())
    close(memory[[0, -1]], torch.tensor([2.0, LONGEST_MEMORY]), 1e-3)
    assert (memory.diff() > 0).all()


def test_initialisation_covers_every_parameter_and_spares_loaded_ones() -> None:
    for recurrence in RECURRENCES:
        module = RecurrentStack(LLEConfig(hidden_size=8, intermediate_size=8, recurrence=recurrence, stack="residual"))
        for parameter in module.parameters():
            nn.init.constant_(parameter, torch.nan)
        module.apply(init_recurrent_weights)
        assert all(parameter.isfinite().all() for parameter in module.parameters())
        for parameter in module.parameters():
            parameter._is_hf_initialized = True
        before = copy.deepcopy(module.state_dict())
        module.apply(init_recurrent_weights)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
