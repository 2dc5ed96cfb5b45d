"""When the numba kernels are used: on a CPU, with numba, without gradients."""

import pytest
import torch

from modeling_lle.kernels import available
from modeling_lle.kernels.available import fused, installed, takes_numba


def test_a_package_is_installed_or_not() -> None:
    assert installed("torch")
    assert not installed("a_package_that_nobody_has_made")


def test_without_numba_no_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "installed", lambda package: False)
    assert not takes_numba(torch.zeros(2))
    assert not fused(torch.zeros(2))


def test_kernels_are_used_where_nothing_needs_their_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "installed", lambda package: True)
    assert fused(torch.zeros(2))
    assert not fused(torch.zeros(0))
    assert not fused(torch.zeros(2, requires_grad=True))
    assert not takes_numba(torch.zeros(2, device="meta"))
    assert takes_numba(torch.zeros(2, requires_grad=True))
