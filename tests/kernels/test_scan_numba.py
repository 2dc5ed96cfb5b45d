"""The kernels of the linear recurrence against its definition."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.kernels.scan import gated_scan_reference
from tests.kernels.contract import Case, check, few_examples

pytest.importorskip("numba")
from modeling_lle.kernels.scan_numba import scan_forward


def _scan(gates: Tensor, state: Tensor) -> list[Tensor]:
    if gates.shape[1] == 0:
        return [gates.new_empty(len(gates), 0, state.shape[1]), state]
    return list(gated_scan_reference(gates, state))


def _scan_backward(gates: Tensor, state: Tensor, d_output: Tensor, d_final: Tensor) -> list[Tensor]:
    inputs = gates.clone().requires_grad_(), state.clone().requires_grad_()
    output, final = _scan(*inputs)
    loss = (output * d_output).sum() + (final * d_final).sum()
    return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))


CASES = {
    "scan": Case(
        scan_forward,
        lambda m: {
            "gates": m.floats(m.size("B"), m.size("T"), 3 * m.size("D")),
            "state": m.floats(m.size("B"), m.size("D")),
        },
        _scan,
    ),
    "scan backward": Case(
        lambda *parts: torch.ops.lle.gated_scan_backward(*parts),
        lambda m: {
            "gates": m.floats(m.size("B"), m.size("T"), 3 * m.size("D")),
            "state": m.floats(m.size("B"), m.size("D")),
            "d_output": m.floats(m.size("B"), m.size("T"), m.size("D")),
            "d_final": m.floats(m.size("B"), m.size("D")),
        },
        _scan_backward,
    ),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@few_examples
def test_a_kernel_gives_what_its_definition_gives_or_a_value_error(name: str, data: Any) -> None:
    check(CASES[name], data)
