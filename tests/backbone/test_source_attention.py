"""The attention of a decoder to the source: torch's own, with beams that share a source."""

import pytest
import torch
from torch.nn import functional as F

from modeling_lle import LLEConfig
from modeling_lle.backbone.source_attention import SourceAttention

SOURCE = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[True] * 4, [True, True, False, False]])


def make_attention(heads: int = 2) -> SourceAttention:
    torch.manual_seed(0)
    translator = {"num_attention_heads": heads, "num_encoder_layers": 1}
    return SourceAttention(LLEConfig(vocab_size=9, hidden_size=8, translator=translator), 6)


def test_it_is_scaled_dot_product_attention() -> None:
    attention = make_attention()
    keys, values = attention.read(SOURCE)
    found, weights = attention(X, keys, values, MASK)
    query = attention.query(attention.norm(X)).unflatten(-1, (2, 4)).transpose(1, 2)
    expected = F.scaled_dot_product_attention(query, keys, values, MASK[:, None, None])
    torch.testing.assert_close(found, attention.output(expected.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))
    assert weights[1, ..., 2:].abs().sum() == 0


def test_beams_share_the_keys_of_their_source() -> None:
    attention = make_attention()
    keys, values = attention.read(SOURCE)
    beams = torch.cat([X[:1], X[1:], X[1:], X[:1]])  # two of each source
    found, weights = attention(beams, keys, values, MASK)
    for row, beam in enumerate(beams):
        own = slice(row // 2, row // 2 + 1)
        alone = attention(beam[None], keys[own], values[own], MASK[own])
        torch.testing.assert_close((found[row : row + 1], weights[row : row + 1]), alone)


def test_targets_without_a_source_are_refused() -> None:
    attention = make_attention()
    with pytest.raises(ValueError, match="3 targets cannot belong to 2 sources"):
        attention(X[[0, 0, 1]], *attention.read(SOURCE), None)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="num_attention_heads"):
        make_attention(heads=3)
