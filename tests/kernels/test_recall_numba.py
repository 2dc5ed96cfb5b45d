"""The kernels of the recall against the rule written with torch."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.history.rule import Recall, kernel, log_age, recall_bank
from tests.kernels.contract import Case, check, few_examples

pytest.importorskip("numba")
from modeling_lle.kernels.recall_numba import mix_few, recall_candidates, recall_weights, recalled_probability

SHARPNESS = 7.0


def _recall_weights(
    similarity: Tensor, made: Tensor, serial: Tensor, window: int, sharpness: float, recency: float
) -> list[Tensor]:
    age = made[:, :, None] - serial[:, None]
    valid = (serial >= 0)[:, None] & (age >= 1) & (age <= window)
    scores = kernel(similarity, log_age(age), sharpness, recency)
    recall = Recall.from_scores(scores, valid, serial)
    return [recall.mass, recall.weights]


def _recalled_probability(weights: Tensor, outcomes: Tensor, targets: Tensor) -> Tensor:
    return (weights * (outcomes[:, None] == targets[..., None])).sum(-1)


def _recall_candidates(
    queries: Tensor, keys: Tensor, counts: Tensor, offsets: Tensor, sharpness: float
) -> list[Tensor]:
    E, _, K = keys.shape
    repeats = len(queries) // E if E else 0
    real = (torch.arange(K) < counts[:, None]).repeat_interleave(repeats, 0)
    similarity = torch.einsum("bd,bdk->bk", queries, keys.repeat_interleave(repeats, 0)) * real
    scores = kernel(similarity, None, sharpness) + offsets
    recall = Recall.from_scores(scores[:, None], real[:, None], torch.zeros_like(real).long()[:, None])
    return [similarity, recall.weights[:, 0], recall.mass[:, 0]]


def _mix_few(base: Tensor, log_share: Tensor, shares: Tensor, outcomes: Tensor) -> Tensor:
    return (base + log_share[:, None]).exp().scatter_add(1, outcomes, shares).log()


CASES = {
    "recall_weights": Case(
        recall_weights,
        lambda m: {
            "similarity": m.floats(m.size("B"), m.size("T"), 14 * m.size("N")).clamp(-1, 1),
            "made": m.places(0, 40, m.size("B"), m.size("T")),
            "serial": m.places(-1, 30, m.size("B"), 1) + torch.arange(14 * m.size("N")) % 9 - 1,
            "window": 5 * m.size("window"),
            "sharpness": 3.0,
            "recency": 0.5,
        },
        _recall_weights,
        ("similarity",),
    ),
    "recalled_probability": Case(
        recalled_probability,
        lambda m: {
            "weights": m.floats(m.size("B"), m.size("T"), 14 * m.size("N")),
            "outcomes": m.places(-3, 3, m.size("B"), 14 * m.size("N")),
            "targets": m.places(-3, 3, m.size("B"), m.size("T")),
        },
        _recalled_probability,
    ),
    "recall_candidates": Case(
        recall_candidates,
        lambda m: {
            "queries": m.unit(m.size("E") * m.size("R"), m.size("D")),
            "keys": m.unit(m.size("E"), m.size("D"), m.size("K")),
            "counts": m.places(0, m.size("K") + 1, m.size("E")),
            "offsets": m.floats(m.size("E") * m.size("R"), m.size("K")),
            "sharpness": 3.0,
        },
        _recall_candidates,
    ),
    "mix_few": Case(
        mix_few,
        lambda m: {
            "base": m.floats(m.size("B"), m.size("V")).log_softmax(-1),
            "log_share": -m.floats(m.size("B")).abs(),
            "shares": m.floats(m.size("B"), m.size("N")).clamp(min=0),
            "outcomes": m.places(0, m.size("V"), m.size("B"), m.size("N")),
        },
        _mix_few,
    ),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@few_examples
def test_a_kernel_gives_what_its_definition_gives_or_a_value_error(name: str, data: Any) -> None:
    check(CASES[name], data)


@pytest.mark.parametrize("width", [8, 11])
@pytest.mark.parametrize("repeats", [1, 3])
def test_candidates_are_recalled_by_the_rule(width: int, repeats: int) -> None:
    torch.manual_seed(0)
    counts = torch.tensor([5, 0, 2, 9])
    keys = torch.nn.functional.normalize(torch.randn(4, width, 9), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(4 * repeats, width), dim=-1)
    similarity, weights, mass = recall_candidates(queries, keys, counts, torch.zeros(4 * repeats, 9), SHARPNESS)
    real = (torch.arange(9) < counts[:, None]).repeat_interleave(repeats, 0)
    cosines = torch.einsum("bd,bdk->bk", queries, keys.repeat_interleave(repeats, 0))
    torch.testing.assert_close(similarity, cosines * real)
    expected = recall_bank(cosines[:, None], torch.zeros(4 * repeats, 1, 9).long(), real[:, None].int(), SHARPNESS)
    torch.testing.assert_close(weights, expected.weights[:, 0])
    torch.testing.assert_close(mass, expected.mass[:, 0])
    assert (mass[repeats : 2 * repeats] == -math.inf).all()


def test_no_candidates_at_all() -> None:
    nothing = torch.zeros(2, 4, 0), torch.zeros(2).long(), torch.zeros(2, 0)
    similarity, weights, mass = recall_candidates(torch.randn(2, 4), *nothing, 1.0)
    assert similarity.shape == weights.shape == (2, 0)
    assert (mass == -math.inf).all()


def test_an_outcome_that_occurs_twice_or_has_no_share() -> None:
    base = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log()
    shares, outcomes = torch.tensor([[0.2, 0.0, 0.3, 0.1]]), torch.tensor([[1, 0, 1, 3]])
    mixed = mix_few(base, torch.tensor([0.4]).log(), shares, outcomes)
    torch.testing.assert_close(mixed.exp(), torch.tensor([[0.2, 0.6, 0.1, 0.1]]))
