"""The kernel of the product with a few vectors against torch."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.contract import Case, Maker, Values, check, few_examples

pytest.importorskip("numba")
from modeling_lle.kernels.products_numba import products


def _make(maker: Maker) -> Values:
    (R, I, O), narrow = (maker.size(letter) for letter in "RIO"), maker.data.draw(st.booleans())  # noqa: E741
    dtype = torch.bfloat16 if narrow else torch.float32
    own = {"weight": maker.floats(O, 9 * I, dtype=dtype), "bias": maker.floats(O, dtype=dtype)}
    return {"x": maker.floats(R, 9 * I), **own}


def _products(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.dtype not in (torch.float32, torch.bfloat16) or bias.dim() != 1 or len(bias) != len(weight):
        raise ValueError
    return torch.nn.functional.linear(x.double(), weight.double(), bias.double()).to(x.dtype)


@given(data=st.data())
@few_examples
def test_a_kernel_gives_what_its_definition_gives_or_a_value_error(data: Any) -> None:
    check(Case(products, _make, _products), data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_product_beside_others_and_in_several_threads(dtype: torch.dtype) -> None:
    x, weight = torch.randn(8, 300).to(dtype), torch.randn(257, 300).to(dtype)
    together, threads = products(x, weight), torch.get_num_threads()
    assert torch.equal(torch.cat([products(own[None], weight) for own in x]), together)
    torch.set_num_threads(3)
    try:
        assert torch.equal(products(x, weight), together)
    finally:
        torch.set_num_threads(threads)
