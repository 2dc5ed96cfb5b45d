"""The gated linear recurrence c_t = f_t c_{t-1} + (1 - f_t) z_t, h_t = o_t c_t, fused with its activations.

Notable: every form reads the pre-activations of one matrix product and keeps its state in float32 or wider;
`gated_scan_reference` is the definition, and tests compare values and all gradients of the other forms with it.
- numba: one pass over memory on the CPU; saves only its inputs for the backward pass (scan_numba.py).
- fla: flash-linear-attention's HGRN kernel (Qin et al. 2023), on CUDA.
- torch: the fallback; computes the gates in a few large operations, then one `addcmul` per time step.
Shapes: B batch, T time, D width.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .available import fused, installed, takes_numba

Backend = Literal["auto", "reference", "torch", "numba", "fla"]


def gated_scan_reference(gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition (QRNN with fo-pooling, Bradbury et al. 2017), see `gated_scan`."""
    z, f, o = gates.to(state.dtype).chunk(3, dim=-1)
    z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
    outputs = []
    for t in range(gates.shape[1]):
        state = f[:, t] * state + (1 - f[:, t]) * z[:, t]
        outputs.append(o[:, t] * state)
    return torch.stack(outputs, dim=1).to(gates.dtype), state


class _LinearScan(torch.autograd.Function):
    """Computes all c_t = f_t c_{t-1} + x_t, (B, T, D), from `f` and `x` (B, T, D) and `state` (B, D)."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, x: Tensor, state: Tensor) -> Tensor:
        states = torch.empty_like(x)
        c = state
        for t in range(x.shape[1]):
            c = torch.addcmul(x[:, t], f[:, t], c, out=states[:, t])
        ctx.save_for_backward(f, state, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f, state, states = ctx.saved_tensors
        d_x = d_states.clone()
        for t in range(f.shape[1] - 1, 0, -1):
            d_x[:, t - 1].addcmul_(f[:, t], d_x[:, t])
        before = torch.cat([state[:, None], states[:, :-1]], dim=1)
        return d_x * before, d_x, d_x[:, 0] * f[:, 0]


def _scan_torch(gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    z, f, o = gates.to(state.dtype).chunk(3, dim=-1)
    f = f.sigmoid()
    states = _LinearScan.apply(f, torch.addcmul(z.tanh(), f, z.tanh(), value=-1), state)
    return (o.sigmoid() * states).to(gates.dtype), states[:, -1]


def _scan_fla(gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    try:  # outside of a try, transformers would demand fla of everybody who loads this file from the Hub
        from fla.ops.hgrn import fused_recurrent_hgrn  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError("the fla kernel needs flash-linear-attention: `pip install modeling_lle[cuda]`") from error

    z, f, o = gates.to(state.dtype).chunk(3, dim=-1)
    x = torch.sigmoid(-f) * z.tanh()
    # The chunked kernel is faster on long rows, but gives the initial state no gradient.
    states, final = fused_recurrent_hgrn(x, torch.nn.functional.logsigmoid(f), state, output_final_state=True)
    return (o.sigmoid() * states).to(gates.dtype), final


@torch.library.custom_op("lle::gated_scan", mutates_args=())
def _gated_scan(gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    from .scan_numba import scan_forward

    return scan_forward(gates, state)


@torch.library.custom_op("lle::gated_scan_backward", mutates_args=())
def _gated_scan_backward(gates: Tensor, state: Tensor, d_output: Tensor, d_final: Tensor) -> tuple[Tensor, Tensor]:
    from .scan_numba import scan_backward

    return scan_backward(gates, state, d_output, d_final)


@_gated_scan.register_fake
def _(gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return gates.new_empty(gates.shape[0], gates.shape[1], state.shape[1]), torch.empty_like(state)


@_gated_scan_backward.register_fake
def _(gates: Tensor, state: Tensor, d_output: Tensor, d_final: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gates), torch.empty_like(state)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, d_output: Tensor, d_final: Tensor) -> tuple[Tensor, Tensor]:
    return _gated_scan_backward(*ctx.saved_tensors, d_output, d_final)


_gated_scan.register_autograd(_differentiate, setup_context=_save)


def _scan_numba(gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling() or gates.requires_grad or state.requires_grad:
        return _gated_scan(gates, state)
    from .scan_numba import scan_forward

    return scan_forward(gates, state)  # calling an operator takes longer than reading one short text


_FORMS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "reference": gated_scan_reference,
    "torch": _scan_torch,
    "numba": _scan_numba,
    "fla": _scan_fla,
}


def scan_backend(gates: Tensor) -> str:
    """Returns the fastest installed form of the recurrence for `gates` (B, T, 3D)."""
    if gates.shape[1] == 1 and (not fused(gates) or gates.dtype == torch.float16):
        return "reference"  # one step needs no scan, and exports as plain operations
    if gates.is_cuda:
        return "fla" if installed("fla") else "torch"
    if gates.dtype != torch.float16 and takes_numba(gates):
        return "numba"
    return "torch"


def gated_scan(gates: Tensor, state: Tensor, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Runs the gated linear recurrence over time.

    Args:
        gates: Pre-activations of the candidate z (tanh), the forget gate f and the output gate o (sigmoid), packed
            along the last dimension: (B, T, 3D), any floating dtype.
        state: c before the first step: (B, D), float32, or float64 where `gates` are.
        backend: The form to use; "auto" is `scan_backend(gates)`.

    Returns:
        h (B, T, D) in the dtype of `gates`, and c after the last step, (B, D) in the dtype of `state`.
    """
    return _FORMS[scan_backend(gates) if backend == "auto" else backend](gates, state)
