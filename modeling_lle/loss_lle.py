"""The cross entropy of a large output layer, in chunks: the logits of a batch never exist at once.

Notable: the gradients are computed chunk by chunk in the forward pass, while the chunk's probabilities are still in
the processor's cache (as in the fused linear cross entropy of Liger, Hsu et al. 2024, arXiv:2410.10989), so the memory
is that of one chunk and freshly zeroed pages, half the time of the plain form on a CPU, are not needed.
"""

from typing import Any

import torch
from torch import Tensor

from .scan_lle import installed

IGNORED = -100
CHUNK_ELEMENTS = 1 << 23  # logits in a chunk: 16 MB in bfloat16, which the allocator reuses without new pages


def linear_cross_entropy_reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The summed cross entropy in nats, written plainly: hidden (N, D), weight (V, D), bias (V,), targets (N,)."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def _softmax_slope(logits: Tensor, targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The slope of the cross entropy in the logits (N, V), which may be overwritten, and the nats (N,) in `dtype`."""
    if logits.device.type == "cpu" and installed("numba") and logits.dtype != torch.float16:
        from .step_kernels_lle import softmax_slope

        nats = torch.empty(len(logits), dtype=dtype)
        softmax_slope(logits, targets, nats)
        return logits, nats
    used = (targets != IGNORED)[:, None]
    index = targets[:, None].masked_fill(~used, 0)
    log_probs = logits.log_softmax(1, dtype=dtype)
    nats = -log_probs.gather(1, index) * used
    probs = log_probs.exp_()
    probs.scatter_add_(1, index, torch.full_like(index, -1, dtype=dtype)).mul_(used)
    return probs.to(logits.dtype), nats[:, 0]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        differentiate: bool,
    ) -> Tensor:
        total = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        rows, matrix = hidden.to(dtype), weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        loss = torch.zeros((), dtype=total, device=hidden.device)
        if differentiate:
            grad_hidden = torch.empty_like(rows)
            grad_weight = torch.zeros(weight.shape, dtype=total, device=weight.device)
            grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=total, device=weight.device)
        size = max(1, CHUNK_ELEMENTS // weight.shape[0])
        for start in range(0, rows.shape[0], size):
            chunk, target = rows[start : start + size], targets[start : start + size]
            logits = torch.nn.functional.linear(chunk, matrix, offset)
            if not differentiate:
                loss += torch.nn.functional.cross_entropy(
                    logits.to(total), target, ignore_index=IGNORED, reduction="sum"
                )
                continue
            slope, nats = _softmax_slope(logits, target, total)
            loss += nats.sum()
            if grad_bias is not None:
                grad_bias += slope.sum(0, dtype=total)
            torch.mm(slope, matrix, out=grad_hidden[start : start + size])
            grad_weight += slope.T @ chunk
        if differentiate:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
            ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        of_hidden, of_weight = ctx.dtypes
        hidden = grad_hidden.to(of_hidden) * grad.to(of_hidden) if ctx.needs_input_grad[0] else None
        weight = (grad_weight * grad).to(of_weight) if ctx.needs_input_grad[1] else None
        bias = None if grad_bias is None else (grad_bias * grad).to(of_weight)
        return hidden, weight, bias, None, None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The summed cross entropy of `softmax(hidden @ weight.T + bias)`, in nats; chunked, forward and backward.

    Args:
        hidden: (..., D) floating.
        weight: (V, D) floating.
        bias: (V,) or None.
        targets: (...) int64; positions with -100 count nothing.

    Returns:
        A scalar, float32 (float64 for float64 input). Under autocast the products run in autocast's dtype.
    """
    device = hidden.device.type
    if device == "cpu" and targets.numel() and int(targets.max()) >= weight.shape[0]:
        raise ValueError(f"target {int(targets.max())} does not fit an output layer of {weight.shape[0]} outcomes")
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden.flatten(0, -2), weight, bias, targets.flatten(), dtype, differentiate)
