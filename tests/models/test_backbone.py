"""The backbone's hidden states: one entry a layer, where the tokens are, whatever reads them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import LLEConfig, LLEModel
from modeling_lle.models import backbone as backbone_module
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.texts import VOCAB, make_ids

SIZES = {"vocab_size": VOCAB, "hidden_size": 6, "num_hidden_layers": 3, "initializer_range": 1.0}
SHAPES = [
    {"recurrence": "lstm"},
    {"recurrence": "qrnn", "stack": "plain", "intermediate_size": 6},
    {"recurrence": "gru", "bidirectional": True},
    {"recurrence": "qrnn", "bidirectional": True, "classifier": {"members": 2}},
]
MASK = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 1]])
every_shape = pytest.mark.parametrize("values", SHAPES, ids=lambda values: "-".join(map(str, values.values())))


def make(**values: Any) -> LLEModel:
    torch.manual_seed(0)
    return LLEModel(LLEConfig(**{**SIZES, "stack": "residual", **values})).eval()


def hidden_states(model: LLEModel, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
    return model(ids, mask, use_cache=False, output_hidden_states=True, **options).hidden_states


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@every_shape
def test_there_is_an_entry_a_layer_after_the_embeddings(values: dict[str, Any]) -> None:
    model, ids = make(**values), make_ids(2, 5)
    output = model(ids, use_cache=False, output_hidden_states=True)
    found = output.hidden_states
    assert [tuple(states.shape) for states in found[1:]] == [(2, 5, model.config.state_size)] * 3
    assert torch.equal(found[0], model.embed_tokens(ids))
    assert found[-1] is output.last_hidden_state
    assert model(ids, use_cache=False).hidden_states is None
    model.config.output_hidden_states = True
    close(model(ids, use_cache=False).hidden_states, found)
    assert len(model(ids, use_cache=False, return_dict=False)) == 2


@every_shape
def test_they_lie_where_the_tokens_are_whatever_the_padding(values: dict[str, Any]) -> None:
    model, ids = make(**values), make_ids(3, 5)
    found = hidden_states(model, ids, MASK)
    for row, mask in enumerate(MASK.bool()):
        alone = hidden_states(model, ids[row : row + 1, mask])
        for states, want in zip(found, alone, strict=True):
            close(states[row : row + 1, mask], want)


@every_shape
def test_each_is_what_the_layers_give(values: dict[str, Any]) -> None:
    model, ids = make(**values), make_ids(2, 5)
    x, members = model.embed_tokens(ids), model.config.classifier.members
    due: list[list[Tensor]] = [[], [], []]
    for stack in filter(None, (model.stack, model.backward_stack)):
        for number in range(members):
            single = stack if members == 1 else stack.members[number]
            own = x.chunk(members, -1)[number]
            own = own.flip(1) if stack is model.backward_stack else own
            for index, layer in enumerate(single.layers):
                own, *_ = layer(own, None, *layer.mixer.initial_state(own))
                last = single.norm(own) if index == 2 else own
                due[index].append(last.flip(1) if stack is model.backward_stack else last)
    close(hidden_states(model, ids)[1:], tuple(torch.cat(parts, -1) for parts in due))


@torch.no_grad()
def test_stacks_that_are_read_together_give_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make(**SHAPES[-1]), make_ids(2, 5)
    found = hidden_states(model, ids)
    monkeypatch.setattr(backbone_module, "is_read_together", lambda *_: False)
    close(hidden_states(model, ids), found)


@every_shape
def test_some_can_be_chosen(values: dict[str, Any]) -> None:
    model, ids = make(**values), make_ids(2, 5)
    every = hidden_states(model, ids)
    for wanted, due in ((1, {1}), (0, {0}), ([0, -1], {0, 3})):
        found = model(ids, use_cache=False, output_hidden_states=wanted).hidden_states
        assert {number for number, states in enumerate(found) if states is not None} == due
        assert all(torch.equal(found[number], every[number]) for number in due)


def test_gradient_checkpointing_gives_them_too() -> None:
    model, ids = make(recurrence="lstm").train(), make_ids(2, 5)
    want = hidden_states(model, ids)
    slopes = torch.autograd.grad(want[1].sum() + want[-1].sum(), list(model.stack.parameters()))
    model.activation_checkpointing_enable()
    found = hidden_states(model, ids)
    close(found, want)
    close(torch.autograd.grad(found[1].sum() + found[-1].sum(), list(model.stack.parameters())), slopes)


@pytest.mark.parametrize("window", [0, 7])
def test_every_head_returns_them(window: int) -> None:
    ids = make_ids(3, 5)
    heads = [make_language_model(window), make_classifier(classifier={"members": 2}), make_classifier(of_tokens=True)]
    for model in heads:
        found = model(ids, attention_mask=MASK, output_hidden_states=True).hidden_states
        close(found, hidden_states(model.model, ids, MASK))
