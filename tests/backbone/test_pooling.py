"""Pooling: each way against plain arithmetic, padding, and members that do not see each other."""

import pytest
import torch

from modeling_lle import LLEConfig
from modeling_lle.backbone.pooling import Pooling, apart

WAYS = ["last", "mean", "max", "attention"]
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()


def make(*ways: str, **values: object) -> Pooling:
    torch.manual_seed(0)
    members = values.pop("members", 1)
    config = LLEConfig(vocab_size=9, hidden_size=4, classifier={"pooling": list(ways), "members": members}, **values)
    return Pooling(config).eval()


def make_states(width: int) -> torch.Tensor:
    return torch.randn(3, 5, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_nothing(way: str, bidirectional: bool) -> None:
    pooling, states = make(way, bidirectional=bidirectional), make_states(8 if bidirectional else 4)
    pooled = pooling(states, MASK)
    for row, mask in enumerate(MASK):
        torch.testing.assert_close(pooled[row : row + 1], pooling(states[row : row + 1, mask], None))


def test_each_way_is_its_arithmetic_and_they_lie_side_by_side() -> None:
    pooling, states = make(*WAYS), make_states(4)
    assert pooling.attention is not None
    weights = pooling.attention(states).softmax(1)
    due = [states[:, -1], states.mean(1), states.amax(1), (weights * states).sum(1)]
    torch.testing.assert_close(pooling(states, None), torch.cat(due, dim=-1))


def test_the_last_state_of_the_backward_direction_is_its_first() -> None:
    states = make_states(8)
    pooled = make("last", bidirectional=True)(states, None)
    assert torch.equal(pooled, torch.cat([states[:, -1, :4], states[:, 0, 4:]], dim=-1))


def test_members_are_taken_apart() -> None:
    items = make_states(2 * 2 * 4)[:, 0]  # two directions of two members
    copies = apart(items, 2, 4)
    assert torch.equal(copies.sum(0), items)
    kept = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0] * 2).bool()
    assert not copies[0][:, ~kept].any()
    assert not copies[1][:, kept].any()
    assert torch.equal(apart(items, 1, 16)[0], items)
