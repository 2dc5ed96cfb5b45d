"""The kernels of few entries against the rule written with torch."""

import math

import pytest
import torch

from modeling_lle.history.rule import recall_bank

pytest.importorskip("numba")
from modeling_lle.kernels.recall_numba import mix_few, recall_candidates

SHARPNESS = 7.0


@pytest.mark.parametrize("width", [8, 11])
@pytest.mark.parametrize("repeats", [1, 3])
def test_candidates_are_recalled_by_the_rule(width: int, repeats: int) -> None:
    torch.manual_seed(0)
    counts = torch.tensor([5, 0, 2, 9])
    keys = torch.nn.functional.normalize(torch.randn(4, width, 9), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(4 * repeats, width), dim=-1)
    similarity, weights, mass = recall_candidates(queries, keys, counts, SHARPNESS)
    real = (torch.arange(9) < counts[:, None]).repeat_interleave(repeats, 0)
    cosines = torch.einsum("bd,bdk->bk", queries, keys.repeat_interleave(repeats, 0))
    torch.testing.assert_close(similarity, cosines * real)
    expected = recall_bank(cosines[:, None], torch.zeros(4 * repeats, 1, 9).long(), real[:, None].int(), SHARPNESS)
    torch.testing.assert_close(weights, expected.weights[:, 0])
    torch.testing.assert_close(mass, expected.mass[:, 0])
    assert (mass[repeats : 2 * repeats] == -math.inf).all()


def test_no_candidates_at_all() -> None:
    similarity, weights, mass = recall_candidates(torch.randn(2, 4), torch.zeros(2, 4, 0), torch.zeros(2).long(), 1.0)
    assert similarity.shape == weights.shape == (2, 0)
    assert (mass == -math.inf).all()


def test_an_outcome_that_occurs_twice_or_has_no_share() -> None:
    base = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log()
    shares, outcomes = torch.tensor([[0.2, 0.0, 0.3, 0.1]]), torch.tensor([[1, 0, 1, 3]])
    mixed = mix_few(base, torch.tensor([0.4]).log(), shares, outcomes)
    torch.testing.assert_close(mixed.exp(), torch.tensor([[0.2, 0.6, 0.1, 0.1]]))
