"""The product is torch's, whichever library computes it, and differentiable where a gradient is asked for."""

import warnings
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from modeling_lle.kernels import linear as linear_module
from modeling_lle.kernels.linear import apply_linear, is_plain, linear
from tests.factories.adapters import Adapter


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
    monkeypatch.setattr(linear_module.torch.backends.mkldnn, "is_available", lambda: False)
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), dtype=torch.qint8)[0]


def hooked(register: str) -> nn.Module:
    module = nn.Linear(3, 2)
    getattr(module, register)(lambda *_: None)
    return module


def redirected() -> nn.Module:
    module = nn.Linear(3, 2)
    module.forward = module.forward  # as accelerate does
    return module


CHANGED = {
    "wrapped": lambda: Adapter(nn.Linear(3, 2)),
    "quantized": quantized,
    "forward hook": lambda: hooked("register_forward_hook"),
    "forward pre-hook": lambda: hooked("register_forward_pre_hook"),
    "backward hook": lambda: hooked("register_full_backward_hook"),
    "parametrised": lambda: parametrizations.weight_norm(nn.Linear(3, 2)),
    "redirected": redirected,
    "offloaded": lambda: nn.Linear(3, 2, device="meta"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_module_that_was_changed_is_called(kind: str) -> None:
    module, x = CHANGED[kind](), torch.randn(4, 3, device="meta" if kind == "offloaded" else "cpu")
    assert not is_plain(module)
    assert not is_plain(nn.Linear(3, 2), module)
    with mock.patch.object(type(module), "__call__", return_value="called"):
        assert apply_linear(module, x) == "called"


def test_a_module_as_torch_makes_it_is_plain() -> None:
    module, x = nn.Linear(3, 2), torch.randn(4, 3)
    module.register_forward_hook(lambda *_: None).remove()
    assert is_plain(module, nn.Linear(2, 5, bias=False))
    torch.testing.assert_close(apply_linear(module, x), module(x))
    seen: list[bool] = []
    with mock.patch.object(nn.Linear, "forward", lambda self, x: seen.append(is_plain(self)) or x):
        torch.func.functional_call(module, {"weight": module.weight * 2}, (x,))
    assert seen == [True]
