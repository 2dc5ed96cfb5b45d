"""The kernels of the softmax and of the cross entropy against torch."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.history.rule import base_features
from tests.kernels.contract import Case, check, few_examples

pytest.importorskip("numba")
from modeling_lle.kernels.softmax_numba import log_softmax_, softmax_slope

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def _softmax_slope(logits: Tensor, targets: Tensor, nats: Tensor, features: Tensor) -> list[Tensor]:
    own = logits.clone().requires_grad_()
    due = torch.nn.functional.cross_entropy(own, targets.masked_fill(targets < 0, -100), reduction="none")
    (slope,) = torch.autograd.grad(due.sum(), own)
    return [slope, due.detach(), base_features(logits.log_softmax(-1)) if features.shape[1] else features]


def _log_softmax(logits: Tensor) -> list[Tensor]:
    return [base_features(logits.log_softmax(-1)), logits.log_softmax(-1)]


CASES = {
    "softmax_slope": Case(
        softmax_slope,
        lambda m: {
            "logits": m.floats(m.size("N"), 14 * m.size("V")),
            "targets": m.places(-2, 14 * m.size("V"), m.size("N")).masked_fill_(torch.arange(m.size("N")) == 1, -100),
            "nats": m.floats(m.size("N")),
            "features": m.floats(m.size("N"), 2 * min(1, m.size("F"))),
        },
        _softmax_slope,
        ("logits", "nats", "features"),
    ),
    "log_softmax": Case(
        log_softmax_,
        lambda m: {"logits": m.floats(m.size("N"), 14 * m.size("V"))},
        _log_softmax,
        ("logits",),
    ),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@few_examples
def test_a_kernel_gives_what_its_definition_gives_or_a_value_error(name: str, data: Any) -> None:
    check(CASES[name], data)


def slope(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's slope and nats."""
    logits = logits.clone()
    nats = torch.full((len(logits),), 7.0, dtype=torch.promote_types(logits.dtype, torch.float32))
    softmax_slope(logits, targets, nats, nats.new_empty(len(logits), 0))
    return logits, nats


@every_dtype
@given(n=st.integers(1, 5), v=st.integers(1, 200), scale=st.sampled_from([0.1, 3.0, 50.0]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_softmax_slope(dtype: torch.dtype, n: int, v: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, generator=generator, dtype=torch.float64).mul(scale).to(dtype)
    targets = torch.randint(v, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < 0.3] = -100
    exact = logits.double().requires_grad_()
    want = torch.nn.functional.cross_entropy(exact, targets, reduction="none", ignore_index=-100)
    (gradient,) = torch.autograd.grad(want.sum(), exact)
    got, nats = slope(logits, targets)
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 4e-3}[dtype]
    torch.testing.assert_close(got.double(), gradient, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(nats.double(), want.detach(), atol=2e-5 if dtype != torch.float64 else 1e-12, rtol=1e-5)
    assert (got[targets < 0] == 0).all()
    assert (nats[targets < 0] == 0).all()


@every_dtype
def test_softmax_slope_of_nan_and_infinity(dtype: torch.dtype) -> None:
    for value in (math.nan, math.inf):
        for place in (0, 63, 64, 99):
            logits = torch.zeros(3, 100, dtype=dtype)
            logits[1, place] = value
            got, nats = slope(logits, torch.tensor([0, 5, -100]))
            assert nats.isnan().tolist() == [False, True, False]
            assert got[1].isnan().any()
            assert got[[0, 2]].isfinite().all()
    logits = torch.zeros(1, 100, dtype=dtype)
    logits[0, 3] = -math.inf
    got, nats = slope(logits, torch.tensor([0]))
    torch.testing.assert_close(nats, torch.full_like(nats, math.log(99)))
    assert float(got[0, 3]) < 1e-38
