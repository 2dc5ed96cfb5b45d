"""The kernel of a step with a stream against the rule."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.history.rule import Recall, base_features, gate, kernel, log_age, mixed_distribution
from modeling_lle.history.stream import Block
from tests.kernels.contract import Case, Maker, Values, check, few_examples

pytest.importorskip("numba")
from modeling_lle.kernels.mixture_numba import mix_step

GATE = [-0.7, 0.4, 0.3, -0.2]


def by_the_rule(
    logits: Tensor,
    similarity: Tensor,
    outcomes: Tensor,
    count: Tensor,
    window: int,
    sharpness: float,
    recency: float,
    gate_of: list[float],
) -> Tensor:
    (rows, entries), newest = similarity.shape, count[:, None] - 1
    if count.shape != (rows,) or outcomes.shape != (rows, entries) or int(outcomes.min()) < 0:
        raise ValueError
    serial = newest - (newest - torch.arange(entries)) % window
    block = Block(slice(0, 1), logits.new_empty(rows, 1, 0), [], outcomes, serial, count[:, None], window)
    scores = kernel(similarity[:, None], log_age(block.age), sharpness, recency)
    recall, base = Recall.from_scores(scores, block.valid, outcomes), logits.log_softmax(-1)[:, None]
    shares = gate([recall.mass], base_features(base), [gate_of])
    return mixed_distribution(base, [recall], shares)[:, 0]


def _make(maker: Maker) -> Values:
    B, N, V = maker.size("B"), 13 * maker.size("N"), 1 + maker.size("V")
    count = maker.places(0, 2 * N + 3, B)
    given = {"logits": 3 * maker.floats(B, V), "similarity": maker.floats(B, N).clamp(-1, 1)}
    given |= {"outcomes": maker.places(0, V, B, N), "count": count}
    return {**given, "window": N + 1, "sharpness": 6.0, "recency": 0.4, "gate_of": GATE}


@given(data=st.data())
@few_examples
def test_a_kernel_gives_what_its_definition_gives_or_a_value_error(data: Any) -> None:
    check(Case(mix_step, _make, by_the_rule), data)


def test_a_distribution_sums_to_one_where_one_outcome_fills_the_stream() -> None:
    logits, similarity = 20 * torch.randn(2, 500), torch.rand(2, 300)
    outcomes, count = torch.full((2, 300), 7), torch.tensor([300, 0])  # the second text has no entry yet
    base = logits.log_softmax(-1)
    mixed = mix_step(logits, similarity, outcomes, count, 300, 50.0, 0.0, [9.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(mixed.double().exp().sum(-1), torch.ones(2).double(), atol=1e-6, rtol=0)
    assert mixed[0].argmax() == 7
    torch.testing.assert_close(mixed[1], base[1])
