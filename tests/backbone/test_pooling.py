"""Pooling of the states of a text: padding has no part in it, and members of an ensemble stay apart."""

import pytest
import torch
from torch import Tensor

from modeling_lle import LLEConfig
from modeling_lle.backbone.pooling import Pooling, apart

STATES = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True] * 5, [False, True, True, True, False]])


def make_pooling(*ways: str, members: int = 1, bidirectional: bool = True) -> Pooling:
    torch.manual_seed(0)
    sizes = {"hidden_size": 4 // members if bidirectional else 8 // members, "bidirectional": bidirectional}
    return Pooling(LLEConfig(vocab_size=9, classifier={"pooling": list(ways), "members": members}, **sizes))


@pytest.mark.parametrize("way", ["last", "mean", "max", "attention"])
def test_padding_has_no_part(way: str) -> None:
    pooling = make_pooling(way)
    padded = pooling(STATES, MASK)
    torch.testing.assert_close(padded[1:], pooling(STATES[1:, 1:4], None))
    other = torch.where(MASK[..., None], STATES, 1e4)
    torch.testing.assert_close(pooling(other, MASK), padded)


def test_each_way_is_what_its_name_says() -> None:
    last, mean, most = make_pooling("last", "mean", "max")(STATES, None).split(8, dim=-1)
    assert torch.equal(last, torch.cat([STATES[:, -1, :4], STATES[:, 0, 4:]], dim=-1))
    torch.testing.assert_close(mean, STATES.mean(1))
    assert torch.equal(most, STATES.amax(1))


def test_one_direction_ends_at_the_last_token() -> None:
    last = make_pooling("last", bidirectional=False)(STATES, MASK)
    assert torch.equal(last, torch.stack([STATES[0, -1], STATES[1, 3]]))


def test_members_are_set_apart() -> None:
    parts: Tensor = apart(STATES, 2, 2)  # two directions of two members of width 2
    assert parts.shape == (2, 2, 5, 8)
    assert torch.equal(parts.sum(0), STATES)
    assert parts[0, ..., [2, 3, 6, 7]].abs().sum() == 0
    assert torch.equal(apart(STATES, 1, 4)[0], STATES)
