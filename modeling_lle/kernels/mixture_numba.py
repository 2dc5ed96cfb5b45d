"""Numba kernel of one step with a stream, and with exact matches: from logits and cosines to log P of the mixture.

Notable: softmax of the base, its entropy and maximum, the kernel over the entries, the gate and the mixture are one
pass over the vocabulary and one over the entries; of an outcome that occurs several times the logarithm is taken
once. Imported on first use; the fallback is the rule itself, block by block (history/rule.py, history/prediction.py).
Shapes: B batch, N entries, K matches, V
vocabulary.
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
def _scores(row: Any, count: Any, penalty: Any, sharpness: Any) -> None:
    """Scores of the entries in the slots of a ring buffer into which `count` have been written."""
    window = len(penalty)
    for n in range(len(row)):
        newer = (count - 1 - n) % window  # entries that are newer than that of the slot
        known = newer < count
        row[n] = (row[n] - np.float32(1.0)) * sharpness + penalty[window - 1 - newer] if known else np.float32(-np.inf)


@jit()
def _scores_of_matches(row: Any, lengths: Any, ages: Any, outcomes: Any, success: Any, numbers: Any) -> None:
    longest, sharpness, recency, agreement = numbers[4], numbers[5], numbers[6], numbers[7]
    of_all = numbers[8] * (success - 1.0)
    known = 0
    for k in range(len(row)):
        known += np.int64(lengths[k] > 0)
    for k in range(len(row)):
        if lengths[k] <= 0:
            row[k] = np.float32(-np.inf)
            continue
        same = 0
        for other in range(len(row)):
            same += np.int64(lengths[other] > 0 and outcomes[other] == outcomes[k])
        score = (lengths[k] / longest - 1.0) * sharpness - recency * math.log(max(ages[k], 1))
        row[k] = np.float32(score + agreement * (same / known - 1.0) + of_all)


@jit()
def _weigh(row: Any, lanes: Any) -> Any:
    """Turns scores into weights that are not normalised yet; returns their sum and the mass, -inf without entries."""
    none = np.float32(-np.inf)
    if len(row) == 0:
        return np.float32(0.0), -np.inf
    top = highest(row, lanes)
    if top == none:
        return np.float32(0.0), -np.inf
    for n in range(len(row)):
        row[n] = exp(row[n] - top) if row[n] > none else np.float32(0.0)
    total = total_of(row, lanes)
    return total, top + math.log(total)


@jit()
def _logit(mass: Any, gate: Any, features: Any) -> Any:
    if mass == -np.inf:
        return mass
    return gate[0] + gate[1] * mass + gate[2] * features[0] + gate[3] * features[1]


@jit()
def _mix(
    logits: Any, similarity: Any, outcomes: Any, count: Any, lengths: Any, ages: Any, matched: Any, success: Any,
    wrong: Any, penalty: Any, sharpness: Any, gate: Any, of_matches: Any,
) -> None:  # fmt: skip
    (B, V), N, K = logits.shape, similarity.shape[1], lengths.shape[1]
    features, lanes, added = np.empty((B, 2), np.float32), np.empty(LANES, np.float32), np.zeros(V, np.float32)
    scores = np.empty(K, np.float32)
    log_softmax_rows(logits, features)
    for b in range(B):
        base, row = logits[b], similarity[b]
        for n in range(N + K):
            v = outcomes[b, n] if n < N else matched[b, n - N]
            if v < 0 or v >= V:
                wrong[b] = True
        if wrong[b]:
            continue
        _scores(row, count[b], penalty, sharpness)
        total, mass = _weigh(row, lanes)
        _scores_of_matches(scores, lengths[b], ages[b], matched[b], success[b], of_matches)
        total_of_matches, mass_of_matches = _weigh(scores, lanes)
        logit, other = _logit(mass, gate, features[b]), _logit(mass_of_matches, of_matches, features[b])
        most = max(logit, other, 0.0)
        log_total = most + math.log(math.exp(-most) + math.exp(logit - most) + math.exp(other - most))
        shift = np.float32(-log_total)
        for v in range(V):
            base[v] += shift
        if total > 0:
            scale = np.float32(math.exp(logit - log_total) / total)
            for n in range(N):
                added[outcomes[b, n]] += row[n] * scale
        if total_of_matches > 0:
            scale = np.float32(math.exp(other - log_total) / total_of_matches)
            for k in range(K):
                added[matched[b, k]] += scores[k] * scale
        for n in range(N + K):
            v = outcomes[b, n] if n < N else matched[b, n - N]
            if added[v] > 0:
                base[v] = math.log(exp(base[v]) + added[v])
                added[v] = 0


def mix_step(
    logits: Tensor,
    similarity: Tensor,
    outcomes: Tensor,
    count: Tensor,
    window: int,
    sharpness: float,
    recency: float,
    gate: Sequence[float],
    matches: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    numbers: Sequence[float] = (),
) -> Tensor:
    """Replaces logits by log P of every outcome, by the rule in history/rule.py, of a stream and of exact matches.

    Args:
        logits: (B, V) float32.
        similarity: (B, N) float32, cosines, which are overwritten.
        outcomes: (B, N) int64.
        count: (B,) int64, entries that each row has made; entry n is in slot `n % window`.
        window: The largest age that may be recalled, at least N.
        sharpness: As in `kernel`.
        recency: As in `kernel`.
        gate: Bias, and weights of mass, entropy and largest log probability.
        matches: Lengths, ages and outcomes (B, K) int64 of exact matches, and their success (B,) float32; None: no
            such source.
        numbers: Of the matches: the four of the gate, `longest`, sharpness, recency, agreement, success.
    """
    (B, V), (_, N) = sizes(logits, "logits (B, V)", 2), sizes(similarity, "similarity (B, N)", 2)
    expect(logits, "logits (B, V)", (B, V), torch.float32, in_place=True)
    expect(similarity, "similarity (B, N)", (B, N), torch.float32, in_place=True)
    expect(outcomes, "outcomes (B, N)", (B, N), torch.int64)
    expect(count, "count (B,)", (B,), torch.int64)
    if V < 1 or window < max(1, N):
        raise ValueError(f"give outcomes, and a window of at least {N} entries; got V = {V} and {window}")
    if len(gate) != 4 or (matches is not None and len(numbers) != 9):
        raise ValueError(f"give 4 numbers of the gate, and 9 of matches; got {gate} and {numbers}")
    found = (*(outcomes[:, :0],) * 3, logits.new_zeros(B)) if matches is None else matches
    expect(found[3], "success (B,)", (B,), torch.float32)
    for part, name in zip(found[:3], ("lengths (B, K)", "ages (B, K)", "outcomes of matches (B, K)"), strict=True):
        expect(part, name, (B, found[0].shape[1]), torch.int64)
    of_matches = np.array(numbers or [0.0] * 9, dtype=np.float64)
    shared = penalties(window, recency), np.float32(sharpness), np.array(gate, dtype=np.float64), of_matches
    wrong = torch.zeros(B, dtype=torch.bool)
    parts = (outcomes, count, *found)
    run(
        lambda *parts, shared=shared: _mix(*parts, *shared),
        logits,
        similarity,
        *(p.contiguous() for p in parts),
        wrong,
    )
    if wrong.any():
        expect_places(outcomes, "outcomes", V)
        expect_places(found[2], "outcomes of matches", V)
    return logits
