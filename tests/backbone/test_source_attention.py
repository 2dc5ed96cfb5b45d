"""The attention of a decoder to the source against torch's."""

import pytest
import torch

from modeling_lle import LLEConfig
from modeling_lle.backbone.source_attention import SourceAttention

MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]).bool()


def make(heads: int = 2) -> SourceAttention:
    torch.manual_seed(0)
    config = LLEConfig(vocab_size=9, hidden_size=4, translator={"num_attention_heads": heads})
    return SourceAttention(config, 6).eval()


def test_it_is_the_attention_of_torch() -> None:
    attention, source, x = make(), torch.randn(2, 4, 6), torch.randn(2, 3, 4)
    keys, values = attention.read(source)
    found, weights = attention(x, keys, values, MASK)
    query = attention.query(attention.norm(x)).unflatten(-1, (2, 2)).transpose(1, 2)
    due = torch.nn.functional.scaled_dot_product_attention(query, keys, values, MASK[:, None, None])
    torch.testing.assert_close(found, attention.output(due.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))
    assert not weights.transpose(1, 3)[~MASK].any()


def test_targets_of_one_source_are_read_as_alone() -> None:
    attention, source, x = make(), torch.randn(2, 4, 6), torch.randn(6, 3, 4)
    keys, values = attention.read(source)
    together = attention(x, keys, values, MASK)
    for row in range(6):
        own = slice(row // 3, row // 3 + 1)
        alone = attention(x[row : row + 1], keys[own], values[own], MASK[own])
        for got, want in zip(together, alone, strict=True):
            torch.testing.assert_close(got[row : row + 1], want)


def test_targets_that_do_not_fit_the_sources_are_an_error() -> None:
    attention = make()
    with pytest.raises(ValueError, match="3 targets cannot belong to 2 sources"):
        attention(torch.randn(3, 1, 4), *attention.read(torch.randn(2, 4, 6)), None)
    with pytest.raises(ValueError, match="must divide hidden_size: got 3 heads"):
        make(3)
