"""Attribution: the share of a sentence pair in a translation is the sum over its entries, mean over the tokens."""

from typing import Any

import pytest
import torch

from modeling_lle.entries.attribution import attribute
from modeling_lle.history.prediction import HistoryOutput


class FourEntries:
    """Stands for a memory whose entries 10 and 11 are of the pair 0, 12 of the pair 1, and 13 of the pair 2."""

    def owners(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0, 0, 1, 2])[ids - 10]


def test_shares_are_summed_by_pair_and_add_up_to_one() -> None:
    memory: Any = FourEntries()
    history = HistoryOutput(
        base_share=torch.tensor([0.5, 0.1]),
        bank_shares=torch.tensor([[0.1, 0.3, 0.1, 0.0], [0.2, 0.1, 0.6, 0.0]]),
        bank_ids=torch.tensor([[11, 12, 10, -1]] * 2),
    )
    found = attribute(history, memory)
    assert found.base_share == pytest.approx(0.3)
    assert found.shares == pytest.approx({0: 0.5, 1: 0.2})
    assert list(found.shares) == [0, 1]  # the largest first
    assert history.bank_ids is not None
    history.bank_ids[1] = torch.tensor([12, 12, 13, -1])  # another position may recall others
    assert attribute(history, memory).shares == pytest.approx({0: 0.1, 1: 0.3, 2: 0.3})


def test_without_a_candidate_the_base_has_all() -> None:
    memory: Any = FourEntries()
    none = torch.full((3, 2), -1)
    found = attribute(HistoryOutput(base_share=torch.ones(3), bank_shares=torch.zeros(3, 2), bank_ids=none), memory)
    assert (found.base_share, found.shares) == (1.0, {})
