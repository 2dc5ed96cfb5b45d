"""Stacks that are read together: what they give one after another, whatever was done to the model in between."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modeling_lle import LLEConfig, LLEModel
from modeling_lle.backbone import batched_stacks as batched_stacks_module
from modeling_lle.models import backbone as backbone_module
from tests.factories.texts import VOCAB, make_ids


def make(**values: Any) -> LLEModel:
    """A backbone that reads both ways, in evaluation mode, with norms that are not those of a new model."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 8,
        "classifier": {"members": 2},
        "num_hidden_layers": 2,
        "initializer_range": 1.0,
    }
    kind = {"recurrence": "qrnn", "stack": "residual", "bidirectional": True}
    model = LLEModel(LLEConfig(**{**sizes, **kind, **values})).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 2.0)
    return model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of stacks of each call of `read_together`."""
    found: list[int] = []

    def read(stacks: list[Any], x: Tensor, seen: Any) -> Tensor:
        found.append(len(stacks))
        return batched_stacks_module.read_together(stacks, x, seen)

    monkeypatch.setattr(backbone_module, "read_together", read)
    return found


def one_by_one(model: LLEModel, ids: Tensor) -> Tensor:
    with torch.enable_grad():
        return model(ids).last_hidden_state.detach()


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 15), (2, 7), (3, 5)], ids=str)
def test_equals_one_after_another(members: int, layers: int, shape: tuple[int, int], calls: list[int]) -> None:
    model, ids = make(classifier={"members": members}, num_hidden_layers=layers), make_ids(*shape)
    want = one_by_one(model, ids)
    assert calls == []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(model(ids).last_hidden_state, want)
            masked = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            torch.testing.assert_close(masked, want)
    assert calls == [2 * members] * 4


@torch.no_grad()
def test_follows_every_change_of_the_weights(calls: list[int]) -> None:
    model, ids = make(), make_ids(2, 6)
    weight = model.backward_stack.members[1].layers[0].mixer.gates.weight
    other = {name: value + 0.1 for name, value in model.state_dict().items()}
    changes = (
        lambda: weight.mul_(1.5),
        lambda: weight.data.mul_(1.5),
        lambda: setattr(weight, "data", weight.data * 1.5),
        lambda: model.load_state_dict(other),
        lambda: model.load_state_dict({name: value * 2 for name, value in other.items()}, assign=True),
        lambda: model.bfloat16().float(),
    )
    before = model(ids).last_hidden_state
    for change in changes:
        change()
        after = model(ids).last_hidden_state
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, one_by_one(model, ids))
        before = after
    assert len(calls) == len(changes) + 1


@torch.no_grad()
def test_reading_leaves_nothing_in_the_model() -> None:
    model, ids = make(), make_ids(1, 6)
    size = len(pickle.dumps(model))
    want = model(ids).last_hidden_state
    assert len(pickle.dumps(model)) == size
    twin = copy.deepcopy(model)
    twin.stack.members[0].layers[0].mixer.gates.weight.zero_()
    assert not torch.equal(twin(ids).last_hidden_state, want)
    assert torch.equal(model(ids).last_hidden_state, want)


@pytest.mark.parametrize(
    "values",
    [{"recurrence": "lstm"}, {"stack": "plain"}, {"intermediate_size": 12}, {"bidirectional": False}],
    ids=str,
)
@torch.no_grad()
def test_other_stacks_are_read_one_after_another(values: dict[str, Any], calls: list[int]) -> None:
    model, ids = make(**values), make_ids(2, 6)
    torch.testing.assert_close(model(ids).last_hidden_state, one_by_one(model, ids))
    assert calls == []


@torch.no_grad()
def test_other_calls_are_read_one_after_another(calls: list[int]) -> None:
    model, ids = make(), make_ids(2, 6)
    want, mask = one_by_one(model, ids), torch.ones_like(ids)
    mask[0, :2] = 0
    model(ids, attention_mask=mask)
    model(make_ids(2, batched_stacks_module.LONGEST // 2 + 1))
    with torch.autocast("cpu", torch.bfloat16):
        model(ids)
    torch.testing.assert_close(model.train()(ids).last_hidden_state, want)
    model.eval()
    assert calls == []
    low = copy.deepcopy(model).bfloat16()
    torch.testing.assert_close(low(ids).last_hidden_state.float(), want, atol=0.1, rtol=0.1)
    torch.testing.assert_close(torch.export.export(model, (ids,)).module()(ids).last_hidden_state, want)
    assert calls == []


@torch.no_grad()
def test_hidden_states_and_hooks_are_served(calls: list[int]) -> None:
    model, ids = make(), make_ids(2, 6)
    want = one_by_one(model, ids)
    seen: list[Any] = []
    member = model.stack.members[1]
    layer = member.layers[0]
    for number, module in enumerate((model.stack, member.norm, layer, layer.mixer, layer.mixer.gates), 1):
        hook = module.register_forward_hook(lambda *call: seen.append(call))
        torch.testing.assert_close(model(ids).last_hidden_state, want)
        assert (len(seen), calls) == (number, [])
        hook.remove()
    model(ids)
    assert calls == [4]
    output = model(ids, output_hidden_states=True)
    with torch.enable_grad():
        due = model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(output.hidden_states, due)
    assert len(due) == 3
    assert calls == [4, 4]


def test_gradients_are_those_of_the_layers(calls: list[int]) -> None:
    model, ids = make(), make_ids(2, 6)
    model(ids).last_hidden_state.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert calls == []
