"""The kernel of the label rule against the rule written with torch."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.bank.found import Found
from modeling_lle.history.label_rule import SINGLE, Features, LabelSpace, Mixture, RecalledLabels
from tests.kernels.contract import Case, Maker, Values, check, few_examples

pytest.importorskip("numba")
from modeling_lle.kernels.labels_numba import mix_labels


def _mix_labels(
    logits: Tensor,
    similarity: Tensor,
    counts: Tensor,
    outcomes: Tensor,
    label_of: Tensor,
    labels: int,
    sharpness: float,
    background: float,
    margin: float,
    gate: list[float],
) -> list[Tensor]:
    votes = torch.zeros(len(label_of), labels)
    votes[label_of >= 0, label_of[label_of >= 0]] = 1
    space = LabelSpace(("",) * labels, logits.shape[1], votes)
    outcomes = outcomes.masked_fill(counts <= 0, 0)
    found = Found(similarity, outcomes, outcomes, counts)
    recalled = RecalledLabels.of(found, space, SINGLE, sharpness, background, margin)
    mixture = Mixture.of(Features.of(logits, SINGLE), recalled, gate)
    return [mixture.labels, mixture.scope, mixture.base_share, mixture.shares, recalled.mass]


def make_labels(m: Maker) -> Values:
    n, K, C, O = m.size("n"), m.size("K"), m.size("C"), m.size("O")  # noqa: E741
    counts = m.places(0, 3 if O else 1, n, K).int()
    return {
        "logits": m.floats(n, C),
        "similarity": m.floats(n, K).clamp(-1, 1),
        "counts": counts,
        "outcomes": m.places(0, O, n, K).masked_fill(counts == 0, -7),
        "label_of": m.places(-1, C + 2, O),
        "labels": C + 2,
        "sharpness": 3.0,
        "background": 0.7,
        "margin": 0.1,
        "gate": [0.1, 0.2, 0.3, 0.4],
    }


CASES = {
    "mix_labels": Case(mix_labels, make_labels, _mix_labels),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@few_examples
def test_a_kernel_gives_what_its_definition_gives_or_a_value_error(name: str, data: Any) -> None:
    check(CASES[name], data)
