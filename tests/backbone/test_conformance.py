"""Today's backbones and a fake one, whose state is nested, run through the checks of conformance.py."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from modeling_lle import LLECache, LLEConfig, LLEModel
from tests.backbone.conformance import CHECKS, TYPES


class FakeBackbone(nn.Module):
    """h_t = tanh(E x_t + W h_{t-1}); its state is a list of h and of a tuple with the number of tokens."""

    key_size = 5

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.recurrent = nn.Embedding(TYPES, 5), nn.Linear(5, 5)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def key_weights(self) -> list[tuple[str, Tensor]]:
        return sorted(self.state_dict().items())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: LLECache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        mask = torch.ones(x.shape[:2]) if attention_mask is None else attention_mask[:, -x.shape[1] :]
        cache = LLECache() if past_key_values is None else past_key_values
        cache.check_rows(len(x))
        h, (count,) = [x.new_zeros(len(x), 5), (torch.zeros(len(x)),)] if cache.state is None else cache.state
        states = []
        for own, real in zip(x.unbind(1), mask.bool().unbind(1), strict=True):
            h = torch.where(real[:, None], torch.tanh(own + self.recurrent(h)), h)
            states.append(h)
        cache.state, cache.seen_tokens = [h, (count + mask.sum(1),)], cache.seen_tokens + x.shape[1]
        return BaseModelOutputWithPast(torch.stack(states, dim=1), cache)


def make_fake() -> nn.Module:
    torch.manual_seed(0)
    return FakeBackbone().eval()


def make_backbone(recurrence: str, stack: str, **values: Any) -> LLEModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": TYPES, "hidden_size": 6, "num_hidden_layers": 2, "initializer_range": 1.0}
    return LLEModel(LLEConfig(recurrence=recurrence, stack=stack, **{**sizes, **values})).eval()


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "fake": make_fake,
    **{
        f"{recurrence} {stack}": functools.partial(make_backbone, recurrence, stack)
        for recurrence in ("lstm", "gru", "qrnn")
        for stack in ("plain", "residual")
    },
    "wider inner layers": functools.partial(make_backbone, "lstm", "plain", intermediate_size=9),
    "members": functools.partial(make_backbone, "qrnn", "residual", classifier={"members": 2}),
}


@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_backbone_holds(check: Callable[[Callable[[], nn.Module]], None], make: Callable[[], nn.Module]) -> None:
    check(make)
