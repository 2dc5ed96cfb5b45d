"""The cross entropy of a large output layer, in chunks, alone or mixed with what a history recalls.

Notable: the logits of a batch never exist at once; the gradients are computed chunk by chunk in the forward pass,
while the chunk's probabilities are still in the processor's cache (as in the fused linear cross entropy of Liger, Hsu
et al. 2024, arXiv:2410.10989), so the memory is that of one chunk and freshly zeroed pages, half the time of the plain
form on a CPU, are not needed. In a mixture, what is recalled learns by the mixture's cross entropy, and the logits by
their own: by that of the mixture, the base would learn little of what the history tells anyway. Shapes: N positions,
D width, V vocabulary, S sources.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.available import takes_numba
from ..kernels.linear import is_plain
from .rule import base_features, gate, mixed_log_prob

IGNORED = -100
CHUNK_POSITIONS = 1024  # of an output layer that is called as a module
CHUNK_ELEMENTS = 1 << 23  # logits in a chunk: 16 MB in bfloat16, which the allocator reuses without new pages


def check_targets(labels: Tensor, shape: Sequence[int], outcomes: int, name: str = "labels") -> Tensor:
    """The labels as int64, if there is a right one for each position; kernels and gathers take them on trust.

    On an accelerator, where to look at them would wait for it, a wrong id in training is left to its own assertion.

    Args:
        labels: Integers; -100 counts nothing.
        shape: The shape that they must have.
        outcomes: How many outcomes there are: ids are from 0 up to it.
        name: What the caller calls them.

    Raises:
        ValueError: The shape, the dtype or an id is wrong.
    """
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(
            f"{name} have the shape {tuple(labels.shape)}, but there are {tuple(shape)} positions: give one for each, "
            f"{IGNORED} where nothing counts"
        )
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name} are {labels.dtype}: give ids as int64, {IGNORED} where nothing counts")
    labels = labels.long()
    if torch.compiler.is_compiling() or (labels.device.type != "cpu" and torch.is_grad_enabled()):
        return labels
    wrong = (labels >= outcomes) | ((labels < 0) & (labels != IGNORED))
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{name} hold {int(labels[place])} at {place}, which is none of the ids 0 to {outcomes - 1} of the "
            f"{outcomes} outcomes: give {IGNORED} where nothing counts"
        )
    return labels


@dataclass
class RecalledTargets:
    """What the sources of a history recall of the targets; every tensor may need a gradient.

    Attributes:
        probability: (..., S) floating, the target's probability by each source.
        mass: (..., S) floating, -inf where a source has no entries.
        numbers: (S, 4) floating, the numbers of each source's gate.
    """

    probability: Tensor
    mass: Tensor
    numbers: Tensor

    def nats(self, base: Tensor, features: Tensor) -> Tensor:
        """-log P of the targets (...), given the base's log probabilities (...) and its features (..., 2)."""
        log_shares = gate(list(self.mass.unbind(-1)), features, list(self.numbers.unbind(0)))
        return -mixed_log_prob(base, list(self.probability.unbind(-1)), log_shares)


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, recalled: RecalledTargets | None = None
) -> Tensor:
    """`linear_cross_entropy`, written plainly, for hidden (N, D) and targets (N,)."""
    targets = check_targets(targets, hidden.shape[:-1], len(weight), "targets")
    return _nats(torch.nn.functional.linear(hidden, weight, bias), targets, recalled)


def _nats(logits: Tensor, targets: Tensor, recalled: RecalledTargets | None) -> Tensor:
    """The summed cross entropy of logits (N, V) and targets (N,), or that of the mixture."""
    log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    base = log_probs.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    nats = -base
    if recalled is not None:
        nats = recalled.nats(base.detach(), base_features(log_probs.detach())) + nats - nats.detach()
    return nats[targets != IGNORED].sum()


def _softmax_slope(
    logits: Tensor, targets: Tensor, dtype: torch.dtype, with_features: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The slope of the cross entropy in the logits (N, V), which may be overwritten.

    Also the nats (N,) and, if they are asked for, the `base_features` (N, 2), both in `dtype`.
    """
    features = torch.empty(len(logits), 2 if with_features else 0, dtype=dtype, device=logits.device)
    compiling = torch.compiler.is_compiling()
    if not compiling and logits.dtype != torch.float16 and takes_numba(logits):
        from ..kernels.softmax_numba import softmax_slope

        nats = torch.empty(len(logits), dtype=dtype)
        softmax_slope(logits, targets, nats, features)
        return logits, nats, features
    used = (targets != IGNORED)[:, None]
    index = targets[:, None].masked_fill(~used, 0)
    log_probs = logits.log_softmax(1, dtype=dtype)
    if with_features:
        features = base_features(log_probs)
    nats = -log_probs.gather(1, index) * used
    probs = log_probs.exp_()
    probs.scatter_add_(1, index, torch.full_like(index, -1, dtype=dtype)).mul_(used)
    return probs.to(logits.dtype), nats[:, 0], features


def _mix(base: Tensor, features: Tensor, used: Tensor, recalled: RecalledTargets) -> tuple[Tensor, list[Tensor]]:
    """The summed nats of the mixture, and their slopes in the tensors of `recalled`."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (recalled.probability, recalled.mass, recalled.numbers)]
        nats = RecalledTargets(*leaves).nats(base, features).masked_fill(~used, 0.0).sum()
        return nats.detach(), list(torch.autograd.grad(nats, leaves))


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
        *recalled: Tensor,
    ) -> Tensor:
        total = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        rows, matrix = hidden.to(dtype), weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        loss = torch.zeros((), dtype=total, device=hidden.device)
        if differentiate:
            grad_hidden = torch.empty_like(rows)
            grad_weight = torch.zeros(weight.shape, dtype=total, device=weight.device)
            grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=total, device=weight.device)
        grad_recalled = [torch.zeros_like(tensor) for tensor in recalled]
        size = max(1, CHUNK_ELEMENTS // weight.shape[0])
        for start in range(0, rows.shape[0], size):
            part = slice(start, start + size)
            chunk, target = rows[part], targets[part]
            logits = torch.nn.functional.linear(chunk, matrix, offset)
            if not differentiate and not recalled:
                loss += torch.nn.functional.cross_entropy(
                    logits.to(total), target, ignore_index=IGNORED, reduction="sum"
                )
                continue
            slope, nats, features = _softmax_slope(logits, target, total, with_features=bool(recalled))
            if recalled:
                own = RecalledTargets(recalled[0][part], recalled[1][part], recalled[2])
                nats, slopes = _mix(-nats, features, target != IGNORED, own)
                grad_recalled[0][part], grad_recalled[1][part] = slopes[0], slopes[1]
                grad_recalled[2] += slopes[2]
            loss += nats.sum()
            if not differentiate:
                continue
            torch.mm(slope, matrix, out=grad_hidden[part])
            grad_weight += slope.T @ chunk
            if grad_bias is not None:
                grad_bias += slope.sum(0, dtype=total)
        if differentiate:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias, *grad_recalled)
            ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias, *grad_recalled = ctx.saved_tensors
        of_hidden, of_weight = ctx.dtypes
        hidden = grad_hidden.to(of_hidden) * grad.to(of_hidden) if ctx.needs_input_grad[0] else None
        weight = (grad_weight * grad).to(of_weight) if ctx.needs_input_grad[1] else None
        bias = None if grad_bias is None else (grad_bias * grad).to(of_weight)
        return hidden, weight, bias, None, None, None, *(slope * grad for slope in grad_recalled)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, recalled: RecalledTargets | None = None
) -> Tensor:
    """The summed cross entropy of `softmax(hidden @ weight.T + bias)`, in nats; chunked, forward and backward.

    Args:
        hidden: (..., D) floating.
        weight: (V, D) floating.
        bias: (V,) or None.
        targets: (...) int64; positions with -100 count nothing.
        recalled: What a history recalls: then the value is the cross entropy of the mixture, and what is recalled gets
            its gradient, in which the base is a constant; hidden, weight and bias get that of the base's own.

    Returns:
        A scalar, float32 (float64 for float64 input). Under autocast the products run in autocast's dtype.
    """
    targets, device = check_targets(targets, hidden.shape[:-1], len(weight), "targets"), hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    rows, targets, parts = _counted(hidden, targets, recalled)
    if recalled is not None:
        parts = *parts, recalled.numbers
    differentiate = torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, weight, *parts))
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(rows, weight, bias, targets, dtype, differentiate, *parts)


def _counted(
    hidden: Tensor, targets: Tensor, recalled: RecalledTargets | None
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Flattens states (..., D), targets (...) and the probabilities and masses recalled to the positions that count.

    So padding costs no product with the output layer, which is large. Where the number of positions would have to be
    waited for (accelerators) or known in advance (compiled code), all stay.
    """
    tensors = [hidden.flatten(0, -2), targets.flatten()]
    if recalled is not None:
        tensors += [recalled.probability.flatten(0, -2), recalled.mass.flatten(0, -2)]
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        places = (tensors[1] != IGNORED).nonzero()[:, 0]
        if 0 < len(places) < len(tensors[1]):
            tensors = [tensor.index_select(0, places) for tensor in tensors]
    return tensors[0], tensors[1], tuple(tensors[2:])


def head_cross_entropy(
    hidden: Tensor, head: nn.Module, targets: Tensor, recalled: RecalledTargets | None = None
) -> Tensor:
    """`linear_cross_entropy` of an output layer, by its own forward where it was wrapped, quantised or hooked.

    Args:
        hidden: (..., D) floating.
        head: Maps (n, D) to the logits (n, V).
        targets: (...) int64; positions with -100 count nothing.
        recalled: As for `linear_cross_entropy`.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    if is_plain(head):
        return linear_cross_entropy(hidden, head.weight, head.bias, targets, recalled)  # type: ignore[arg-type]

    def nats(rows: Tensor, own: Tensor, *parts: Tensor) -> Tensor:
        return _nats(head(rows), own, RecalledTargets(*parts) if parts else None)

    return _in_chunks(nats, *_counted(hidden, targets, recalled), () if recalled is None else (recalled.numbers,))


def _in_chunks(
    function: Callable[..., Tensor],
    hidden: Tensor,
    targets: Tensor,
    parts: tuple[Tensor, ...] = (),
    whole: tuple[Tensor, ...] = (),
) -> Tensor:
    """The sum of a function of some positions' states, targets and parts, which are computed again for the slopes."""
    rows = hidden.flatten(0, -2), targets.flatten(), *parts
    size = CHUNK_POSITIONS if len(rows[0]) > CHUNK_POSITIONS else max(1, len(rows[0]))
    chunks = list(zip(*(tensor.split(size) for tensor in rows), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        sums = [function(*chunk, *whole) for chunk in chunks]
    else:
        sums = [checkpoint(function, *chunk, *whole, use_reentrant=False) for chunk in chunks]
    return torch.stack(sums).sum()


def head_smoothing_nats(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """`smoothing_nats` of an output layer, by its own forward where it was wrapped, quantised or hooked."""
    if is_plain(head):
        return smoothing_nats(hidden, head.weight, head.bias, targets)  # type: ignore[arg-type]

    def nats(rows: Tensor, own: Tensor) -> Tensor:
        used = own != IGNORED
        logits = head(rows)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        chosen = logits.gather(1, own.clamp(min=0)[:, None])[:, 0]
        return (chosen - logits.mean(-1))[used].sum()

    return _in_chunks(nats, hidden, targets)


def smoothing_nats(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """What label smoothing adds to the summed cross entropy of `softmax(hidden @ weight.T + bias)`, per unit of it.

    With the target's probability mass 1 - e, and e / V for each outcome (Szegedy et al. 2016, arXiv:1512.00567,
    section 7), the loss grows by e times the target's logit minus the mean of all, which needs no other logit.

    Args:
        hidden: (..., D) floating.
        weight: (V, D) floating.
        bias: (V,) floating.
        targets: (...) int64; positions with -100 count nothing.

    Returns:
        A scalar, float32 (float64 for float64 input).
    """
    used = targets != IGNORED
    own = targets[used]
    states = hidden[used].to(torch.promote_types(hidden.dtype, torch.float32))
    direction = torch.nn.functional.embedding(own, weight) - weight.mean(0)
    return (states * direction).sum() + (bias[own] - bias.mean()).sum()
