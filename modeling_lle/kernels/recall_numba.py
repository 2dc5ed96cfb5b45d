"""Numba kernels of the recall: from a stream, from the candidates of a sentence, and the mixture with the base.

Imported on first use; the fallbacks are in history/rule.py, beside the calls. Shapes: B batch, T time, N entries, D
width, V vocabulary, K candidates; E sources with G rows each, side by side (B = E * G).
"""

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, expect_places, sizes
from .numba_tools import LANES, exp, highest, jit, run, total_of


@jit()
def _recall_stream(
    similarity: Any, made: Any, places: Any, mass: Any, serial: Any, runs: Any, penalty: Any, sharpness: Any
) -> None:
    T, N = similarity.shape
    window, lanes, none = len(penalty), np.empty(LANES, np.float32), np.float32(-np.inf)
    for t in range(T):
        row, numbers, starts = similarity[t], serial[places[t]], runs[places[t]]
        for r in range(len(starts) - 1):
            start, stop = starts[r], starts[r + 1]
            if start == stop:
                break
            age = made[t] - numbers[start]  # of the first entry; the penalties of a run lie side by side
            first = min(max(start, start + age - window), stop)
            last = max(min(stop, start + age), first)
            oldest = window - age - start + first
            costs, scores = penalty[oldest : oldest + last - first], row[first:last]
            row[start:first] = none
            for n in range(len(scores)):
                scores[n] = (scores[n] - np.float32(1.0)) * sharpness + costs[n]
            row[last:stop] = none
        top = highest(row, lanes)
        if top == none:
            row[:] = 0
            mass[t] = top
            continue
        for n in range(N):
            weight = exp(row[n] - top)
            row[n] = weight if row[n] > none else np.float32(0.0)
        total = total_of(row, lanes)
        mass[t] = top + math.log(total)
        scale = np.float32(1.0) / total
        for n in range(N):
            row[n] *= scale


@functools.lru_cache(maxsize=8)
def penalties(window: int, recency: float) -> Any:
    """Returns the score subtracted at each age from `window` down to 1, (window,) float32."""
    return (-recency * torch.arange(window, 0, -1, dtype=torch.float64).log()).float().numpy()


def recall_weights(
    similarity: Tensor, made: Tensor, serial: Tensor, window: int, sharpness: float, recency: float
) -> Tensor:
    """Turns cosines (B, T, N) float32 into the weights of the entries in place; returns the mass (B, T).

    `made` (B, T) and `serial` (B, N) int64 and `window` are fields of a `Block`; see history/rule.py for the rule.
    """
    B, T, N = sizes(similarity, "similarity (B, T, N)", 3)
    expect(similarity, "similarity (B, T, N)", (B, T, N), torch.float32, in_place=True)
    expect(made, "made (B, T)", (B, T), torch.int64)
    expect(serial, "serial (B, N)", (B, N), torch.int64)
    if window < 0:
        raise ValueError(f"a window holds at least 0 entries, got {window}")
    mass = torch.empty(B, T)
    if similarity.numel() == 0:
        return mass.fill_(-torch.inf)
    numbers = serial.masked_fill(serial < 0, -(1 << 40)).numpy()  # no entry: older than any window
    shared = numbers, _runs(numbers), penalties(window, recency), np.float32(sharpness)
    parts = similarity.view(-1, N), made.flatten(), _places(made), mass.view(-1)
    run(lambda *parts, shared=shared: _recall_stream(*parts, *shared), *parts)
    return mass


def _places(positions: Tensor) -> Tensor:
    """Returns the row of each position (B, T), flattened to (B * T,) int64."""
    return torch.arange(len(positions)).repeat_interleave(positions.shape[1])


def _runs(numbers: Any) -> Any:
    """Returns where runs of consecutive numbers begin in each row of numbers (B, N), padded with N."""
    rows, count = numbers.shape
    breaks = [np.flatnonzero(np.diff(own) != 1) + 1 for own in numbers]
    runs = np.full((rows, 2 + max(map(len, breaks))), count)
    runs[:, 0] = 0
    for own, found in zip(runs, breaks, strict=True):
        own[1 : 1 + len(found)] = found
    return runs


@jit()
def _recalled(weights: Any, targets: Any, places: Any, total: Any, outcomes: Any) -> None:
    N, sums = outcomes.shape[1], np.empty(LANES, np.float32)
    whole = N - N % LANES
    for t in range(len(weights)):
        row, target, own = weights[t], targets[t], outcomes[places[t]]
        sums[:] = 0
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                sums[lane] += row[start + lane] if own[start + lane] == target else np.float32(0.0)
        for n in range(whole, N):
            sums[0] += row[n] if own[n] == target else np.float32(0.0)
        total[t] = sums.sum()


def recalled_probability(weights: Tensor, outcomes: Tensor, targets: Tensor) -> Tensor:
    """Sums the weights (B, T, N) float32 whose outcome (B, N) int64 is the target (B, T) int64, as (B, T)."""
    B, T, N = sizes(weights, "weights (B, T, N)", 3)
    expect(weights, "weights (B, T, N)", (B, T, N), torch.float32)
    for part, name, shape in ((outcomes, "outcomes (B, N)", (B, N)), (targets, "targets (B, T)", (B, T))):
        expect(part, name, shape, torch.int64)
        expect_places(part, name, 1 << 31, -(1 << 31))  # they are compared as int32
    total, shared = torch.empty(B, T), (outcomes.int().contiguous().numpy(),)
    parts = weights.contiguous().flatten(0, 1), targets.int().flatten(), _places(targets), total.view(-1)
    run(lambda *parts, shared=shared: _recalled(*parts, *shared), *parts)
    return total


@jit()
def _recall_candidates(
    queries: Any, owners: Any, offsets: Any, similarity: Any, weights: Any, mass: Any, keys: Any, counts: Any,
    sharpness: Any,
) -> None:  # fmt: skip
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
            scores[k] = (row[k] - one) * sharpness + offsets[b, k]
            top = max(top, scores[k])
        total = np.float32(0.0)
        for k in range(count):
            scores[k] = exp(scores[k] - top)
            total += scores[k]
        mass[b] = top + math.log(total)
        for k in range(count):
            scores[k] *= one / total


def recall_candidates(
    queries: Tensor, keys: Tensor, counts: Tensor, offsets: Tensor, sharpness: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes what each row recalls from the candidates of its source, by the rule in history/rule.py.

    Args:
        queries: (B, D) float32, normalised.
        keys: (E, D, K) float32.
        counts: (E,) int64, number of candidates of each source, which come first.
        offsets: (B, K) float32, finite, what is added to the scores of the candidates.
        sharpness: As in `kernel`.

    Returns:
        Cosines and weights (B, K), 0 where there is no candidate, and the mass (B,), -inf for a row without any.
    """
    (B, D), (E, _, K) = sizes(queries, "queries (B, D)", 2), sizes(keys, "keys (E, D, K)", 3)
    expect(queries, "queries (B, D)", (B, D), torch.float32)
    expect(keys, "keys (E, D, K)", (E, D, K), torch.float32)
    expect(counts, "counts (E,)", (E,), torch.int64)
    expect_places(counts, "counts", K + 1)
    expect(offsets, "offsets (B, K)", (B, K), torch.float32)
    repeats = B // max(1, E)
    if E * repeats != B:
        raise ValueError(f"queries (B, D) should be as many for each of E sources; got {(B, D)} for {E}")
    owners = torch.arange(E).repeat_interleave(repeats)
    similarity, weights, mass = torch.empty(B, K), torch.empty(B, K), torch.empty(B)
    shared = keys.detach().contiguous().numpy(), counts.contiguous().numpy(), np.float32(sharpness)
    run(
        lambda *parts, shared=shared: _recall_candidates(*parts, *shared),
        queries.contiguous(),
        owners,
        offsets.contiguous(),
        similarity,
        weights,
        mass,
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
    """Replaces the base's log p by log P of every outcome; outcomes that are not recalled stay logarithms throughout.

    Args:
        base: (B, V) float32.
        log_share: (B,) float32, logarithm of the base's share.
        shares: (B, N) float32, shares of the entries.
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
