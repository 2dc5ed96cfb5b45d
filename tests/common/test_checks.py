"""The checks that stand in front of kernels and files."""

import pytest
import torch
from torch import Tensor

from modeling_lle.common.checks import expect, expect_places


@pytest.mark.parametrize(
    ("tensor", "given"),
    [
        (torch.zeros(3, 2), r"\(3, 2\) in torch.float32, on cpu"),
        (torch.zeros(2, 3, dtype=torch.float64), r"\(2, 3\) in torch.float64, on cpu"),
        (torch.zeros(2, 3, device="meta"), r"\(2, 3\) in torch.float32, on meta"),
        (torch.zeros(2, 3).to_sparse(), r"\(2, 3\) in torch.float32, on cpu"),
        (torch.zeros(3, 2).T, r"\(2, 3\) in torch.float32, on cpu"),
    ],
    ids=["shape", "dtype", "device", "layout", "strides"],
)
def test_an_error_names_the_tensor_and_both_shapes(tensor: Tensor, given: str) -> None:
    due = r"x \(Q, D\) should be \(2, 3\) in torch.float32, on the CPU, and contiguous; got "
    with pytest.raises(ValueError, match=due + given):
        expect(tensor, "x (Q, D)", (2, 3), torch.float32, in_place=True)
    expect(torch.zeros(2, 3), "x (Q, D)", (2, 3), torch.float32, in_place=True)


def test_places_are_checked_at_both_ends() -> None:
    expect_places(torch.tensor([0, 4]), "x", 5)
    expect_places(torch.tensor([-9, 4]), "x", 5, start=None)
    expect_places(torch.zeros(0, dtype=torch.long), "x", 0)
    for wrong, start in (([0, 5], 0), ([-1, 4], 0), ([-2, 4], -1)):
        with pytest.raises(ValueError, match=f"x should be at least {start} and less than 5; got {wrong[0]} to"):
            expect_places(torch.tensor(wrong), "x", 5, start)
