"""The product is torch's, whichever library computes it, and differentiable where a gradient is asked for."""

import pytest
import torch

from modeling_lle import linear_lle
from modeling_lle.linear_lle import linear


@pytest.mark.parametrize("shape", [(1, 4), (3, 5, 4), (0, 4), (2, 0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_values(shape: tuple[int, ...], dtype: torch.dtype, biased: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), torch.randn(7, 4).to(dtype)
    bias = torch.randn(7).to(dtype) if biased else None
    expected = torch.nn.functional.linear(x, weight, bias)
    got = linear(x, weight, bias)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    sliced = torch.randn(*shape[:-1], 9).to(dtype)[..., 2:6]  # not contiguous
    torch.testing.assert_close(
        linear(sliced, weight), torch.nn.functional.linear(sliced, weight), atol=1e-6, rtol=1e-5
    )


def test_gradients() -> None:
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    linear(x, weight).square().sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


def test_autocast_is_kept() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(2, 3), torch.randn(4, 3)).dtype == torch.bfloat16


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_lle.torch.backends.mkldnn, "is_available", lambda: False)
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))
