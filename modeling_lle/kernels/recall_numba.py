"""The numba kernels of few entries: what a sentence recalls from its candidates, and their mixture with the base.

Imported on first use. Shapes: E sources, B = E * R rows, R of each source side by side, D width, K candidates, V
vocabulary, N entries.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, expect_places, sizes
from .numba_tools import exp, jit, run


@jit()
def _recall(
    queries: Any, owners: Any, similarity: Any, weights: Any, mass: Any, keys: Any, counts: Any, sharpness: Any
) -> None:
    D, one = queries.shape[1], np.float32(1.0)
    for b in range(len(queries)):
        own, count, query = keys[owners[b]], counts[owners[b]], queries[b]
        row, scores = similarity[b, :count], weights[b, :count]
        similarity[b] = 0
        weights[b, count:] = 0
        for d in range(0, D - D % 4, 4):  # four at once, so that the sums are read and written less often
            q0, q1, q2, q3 = query[d], query[d + 1], query[d + 2], query[d + 3]
            k0, k1, k2, k3 = own[d], own[d + 1], own[d + 2], own[d + 3]
            for k in range(count):
                row[k] += q0 * k0[k] + q1 * k1[k] + q2 * k2[k] + q3 * k3[k]
        for d in range(D - D % 4, D):
            for k in range(count):
                row[k] += query[d] * own[d, k]
        if count == 0:
            mass[b] = -np.inf
            continue
        top = np.float32(-np.inf)
        for k in range(count):
            scores[k] = (row[k] - one) * sharpness
            top = max(top, scores[k])
        total = np.float32(0.0)
        for k in range(count):
            scores[k] = exp(scores[k] - top)
            total += scores[k]
        mass[b] = top + math.log(total)
        for k in range(count):
            scores[k] *= one / total


def recall_candidates(
    queries: Tensor, keys: Tensor, counts: Tensor, sharpness: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What each row recalls from the first candidates of its source, by the rule; see history/rule.py.

    Args:
        queries: (B, D) float32, normalised.
        keys: (E, D, K) float32.
        counts: (E,) int64, how many candidates each source has.
        sharpness: As in `kernel`.

    Returns:
        Cosines and weights (B, K), 0 where there is no candidate, and the mass (B,), -inf where there is none at all.
    """
    (B, D), (E, _, K) = sizes(queries, "queries (B, D)", 2), sizes(keys, "keys (E, D, K)", 3)
    expect(queries, "queries (B, D)", (B, D), torch.float32)
    expect(keys, "keys (E, D, K)", (E, D, K), torch.float32)
    expect(counts, "counts (E,)", (E,), torch.int64)
    expect_places(counts, "counts", K + 1)
    repeats = B // max(1, E)
    if E * repeats != B:
        raise ValueError(f"queries (B, D) should be as many for each of E sources; got {(B, D)} for {E}")
    owners = torch.arange(E).repeat_interleave(repeats)
    similarity, weights, mass = torch.empty(B, K), torch.empty(B, K), torch.empty(B)
    shared = keys.detach().contiguous().numpy(), counts.contiguous().numpy(), np.float32(sharpness)
    run(
        lambda *parts, shared=shared: _recall(*parts, *shared), queries.contiguous(), owners, similarity, weights, mass
    )
    return similarity, weights, mass


@jit()
def _mix(base: Any, shift: Any, shares: Any, outcomes: Any) -> None:
    N = shares.shape[1]
    places, added, mixed = np.empty(N, np.int64), np.empty(N, np.float32), np.empty(N, np.float32)
    for b in range(len(base)):
        row, count = base[b], 0
        for v in range(len(row)):
            row[v] += shift[b]
        for n in range(N):
            if shares[b, n] > 0:
                places[count], added[count] = outcomes[b, n], shares[b, n]
                count += 1
        # Of an outcome that occurs twice, the same value is written twice; so all are read before one is written.
        for n in range(count):
            mixed[n] = row[places[n]]
        for n in range(count):
            mixed[n] = exp(mixed[n])
        for n in range(count):
            row[places[n]] = mixed[n]
        for n in range(count):
            row[places[n]] += added[n]
        for n in range(count):
            mixed[n] = row[places[n]]
        for n in range(count):
            row[places[n]] = math.log(mixed[n])


def mix_few(base: Tensor, log_share: Tensor, shares: Tensor, outcomes: Tensor) -> Tensor:
    """log P of every outcome, in place of the base's log p; what is not recalled stays a logarithm throughout.

    Args:
        base: (B, V) float32.
        log_share: (B,) float32, logarithm of the base's share.
        shares: (B, N) float32, the entries' shares.
        outcomes: (B, N) int64.
    """
    (B, V), (_, N) = sizes(base, "base (B, V)", 2), sizes(shares, "shares (B, N)", 2)
    expect(base, "base (B, V)", (B, V), torch.float32, in_place=True)
    expect(log_share, "log_share (B,)", (B,), torch.float32)
    expect(shares, "shares (B, N)", (B, N), torch.float32)
    expect(outcomes, "outcomes (B, N)", (B, N), torch.int64)
    expect_places(outcomes, "outcomes", V)
    parts = log_share.contiguous(), shares.contiguous(), outcomes.contiguous()
    run(_mix, base, *parts)
    return base
