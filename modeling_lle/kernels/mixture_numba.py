"""Numba kernel of one step with a stream: from logits and cosines to log probabilities of the mixture.

Notable: softmax of the base, its entropy and maximum, the kernel over the entries, the gate and the mixture are one
pass over the vocabulary and one over the entries; of an outcome that occurs several times the logarithm is taken
once. Imported on first use; the fallback is the rule itself, block by block (history/rule.py, history/prediction.py).
Shapes: B batch, N entries, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, expect_places, sizes
from .numba_tools import LANES, exp, highest, jit, run, total_of
from .recall_numba import penalties
from .softmax_numba import log_softmax_rows


@jit()
def _scores(row: Any, serial: Any, made: Any, penalty: Any, sharpness: Any) -> None:
    window = len(penalty)
    for n in range(len(row)):
        age = made - serial[n]
        known = serial[n] >= 0 and 1 <= age <= window
        row[n] = (row[n] - np.float32(1.0)) * sharpness + penalty[window - age] if known else np.float32(-np.inf)


@jit()
def _mix_stream(
    logits: Any, similarity: Any, outcomes: Any, serial: Any, made: Any, penalty: Any, sharpness: Any, gate: Any
) -> None:
    (B, V), N = logits.shape, similarity.shape[1]
    features, lanes, added = np.empty((B, 2), np.float32), np.empty(LANES, np.float32), np.zeros(V, np.float32)
    log_softmax_rows(logits, features)
    for b in range(B):
        base, row = logits[b], similarity[b]
        if N == 0:
            continue
        _scores(row, serial[b], made[b], penalty, sharpness)
        top = highest(row, lanes)
        if top == np.float32(-np.inf):
            continue
        for n in range(N):
            row[n] = exp(row[n] - top) if row[n] > np.float32(-np.inf) else np.float32(0.0)
        total = total_of(row, lanes)
        mass = top + math.log(total)
        logit = gate[0] + gate[1] * mass + gate[2] * features[b, 0] + gate[3] * features[b, 1]
        most = max(logit, 0.0)
        log_total = most + math.log(math.exp(-most) + math.exp(logit - most))
        shift, scale = np.float32(-log_total), np.float32(math.exp(logit - log_total) / total)
        for v in range(V):
            base[v] += shift
        for n in range(N):
            added[outcomes[b, n]] += row[n] * scale
        for n in range(N):
            v = outcomes[b, n]
            if added[v] > 0:
                base[v] = math.log(exp(base[v]) + added[v])
                added[v] = 0


def mix_stream(
    logits: Tensor,
    similarity: Tensor,
    outcomes: Tensor,
    serial: Tensor,
    made: Tensor,
    window: int,
    sharpness: float,
    recency: float,
    gate: Sequence[float],
) -> Tensor:
    """Replaces logits by log P of every outcome, by the rule in history/rule.py with the stream as its only source.

    Args:
        logits: (B, V) float32.
        similarity: (B, N) float32, cosines, which are overwritten.
        outcomes: (B, N) int64.
        serial: (B, N) int64, `made` (B,) and `window` as in a `Block` of one position.
        made: See `serial`.
        window: See `serial`.
        sharpness: As in `kernel`.
        recency: As in `kernel`.
        gate: Bias, and weights of mass, entropy and largest log probability.
    """
    (B, V), (_, N) = sizes(logits, "logits (B, V)", 2), sizes(similarity, "similarity (B, N)", 2)
    expect(logits, "logits (B, V)", (B, V), torch.float32, in_place=True)
    expect(similarity, "similarity (B, N)", (B, N), torch.float32, in_place=True)
    expect(outcomes, "outcomes (B, N)", (B, N), torch.int64)
    expect_places(outcomes, "outcomes", V)
    expect(serial, "serial (B, N)", (B, N), torch.int64)
    expect(made, "made (B,)", (B,), torch.int64)
    if V < 1 or window < 1 or len(gate) != 4:
        raise ValueError(f"give outcomes, a window and 4 numbers of the gate; got V = {V}, {window} and {gate}")
    shared = penalties(window, recency), np.float32(sharpness), np.array(gate, dtype=np.float64)
    parts = (logits, similarity, outcomes.contiguous(), serial.contiguous(), made.contiguous())
    run(lambda *parts, shared=shared: _mix_stream(*parts, *shared), *parts)
    return logits
