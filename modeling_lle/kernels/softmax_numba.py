"""The numba kernels of the LSTM's step, of the cross entropy and of the recall; imported on first use."""

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, expect_places, sizes
from .numba_tools import exp, jit, load, run, sigmoid, store

LANES = 64


@jit()
def lstm_forward(gates: Any, before: Any, cell: Any, state: Any) -> None:
    """Turns pre-activations (B, 4H) into gates, in place, and writes the new cell and state (B, H)."""
    B, H = cell.shape
    one, two = cell.dtype.type(1), cell.dtype.type(2)
    for b in range(B):
        i, f, g, o = gates[b, :H], gates[b, H : 2 * H], gates[b, 2 * H : 3 * H], gates[b, 3 * H :]
        c, h = cell[b], state[b]
        for d in range(H):
            i[d] = store(sigmoid(load(i[d])), i[d])
        for d in range(H):
            f[d] = store(sigmoid(load(f[d])), f[d])
        for d in range(H):
            g[d] = store(two * sigmoid(two * load(g[d])) - one, g[d])
        for d in range(H):
            o[d] = store(sigmoid(load(o[d])), o[d])
        for d in range(H):
            c[d] = load(f[d]) * before[b, d] + load(i[d]) * load(g[d])
        for d in range(H):
            h[d] = store(load(o[d]) * (two * sigmoid(two * c[d]) - one), h[d])


@jit()
def lstm_backward(gates: Any, before: Any, cell: Any, d_output: Any, d_state: Any, d_cell: Any, d_gates: Any) -> None:
    """Gradients of the pre-activations (B, 4H), and in place of `d_cell` that of the cell before (B, H)."""
    B, H = cell.shape
    one, two = cell.dtype.type(1), cell.dtype.type(2)
    for b in range(B):
        i, f, g, o = gates[b, :H], gates[b, H : 2 * H], gates[b, 2 * H : 3 * H], gates[b, 3 * H :]
        di, df, dg, do = d_gates[b, :H], d_gates[b, H : 2 * H], d_gates[b, 2 * H : 3 * H], d_gates[b, 3 * H :]
        c, dc, before_c, dy, dh = cell[b], d_cell[b], before[b], d_output[b], d_state[b]
        for d in range(H):
            squashed = two * sigmoid(two * c[d]) - one
            slope = load(dy[d]) + load(dh[d])
            out = load(o[d])
            do[d] = store(slope * squashed * out * (one - out), do[d])
            dc[d] += slope * out * (one - squashed * squashed)
        for d in range(H):
            gate = load(i[d])
            di[d] = store(dc[d] * load(g[d]) * gate * (one - gate), di[d])
        for d in range(H):
            candidate = load(g[d])
            dg[d] = store(dc[d] * load(i[d]) * (one - candidate * candidate), dg[d])
        for d in range(H):
            gate = load(f[d])
            df[d] = store(dc[d] * before_c[d] * gate * (one - gate), df[d])
            dc[d] *= gate


# Lanes side by side vectorise without reordering what is compared or added within a lane.
@jit()
def _highest(row: Any, lanes: Any) -> Any:
    whole = len(row) - len(row) % LANES
    lanes[:] = row[0]
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            value = row[start + lane]
            lanes[lane] = value if value > lanes[lane] else lanes[lane]
    for i in range(whole, len(row)):
        lanes[0] = row[i] if row[i] > lanes[0] else lanes[0]
    return lanes.max()


@jit()
def _total(row: Any, lanes: Any) -> Any:
    whole = len(row) - len(row) % LANES
    lanes[:] = 0
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += row[start + lane]
    for i in range(whole, len(row)):
        lanes[0] += row[i]
    return lanes.sum()


@jit()
def _total_of_products(weights: Any, row: Any, top: Any, lanes: Any) -> Any:
    """The sum of the weights times what the row, as it is stored, lies above `top`."""
    whole = len(weights) - len(weights) % LANES
    lanes[:] = 0
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += weights[start + lane] * (load(row[start + lane]) - top)
    for i in range(whole, len(weights)):
        lanes[0] += weights[i] * (load(row[i]) - top)
    return lanes.sum()


@jit()
def _softmax_slope(logits: Any, targets: Any, nats: Any, features: Any) -> None:
    N, V = logits.shape
    exps, lanes = np.empty(V, nats.dtype), np.empty(LANES, nats.dtype)
    one = nats.dtype.type(1)
    for n in range(N):
        row, target = logits[n], targets[n]
        for v in range(V):
            exps[v] = load(row[v])
        top = _highest(exps, lanes)
        at_target = exps[target] if target >= 0 else top
        for v in range(V):
            exps[v] = exp(exps[v] - top)
        total = _total(exps, lanes)
        if features.shape[1] > 0:
            log_total = math.log(total)
            features[n, 0] = log_total - _total_of_products(exps, row, top, lanes) / total
            features[n, 1] = -log_total
        scale = one / total if target >= 0 else one - one
        nats[n] = math.log(total) + top - at_target if target >= 0 else scale
        if target >= 0:
            exps[target] -= total
        for v in range(V):
            row[v] = store(exps[v] * scale, row[v])


def softmax_slope(logits: Tensor, targets: Tensor, nats: Tensor, features: Tensor) -> None:
    """Replaces logits (N, V) by the slope of the cross entropy and fills the nats (N,) of the targets (N,) int64.

    Rows whose target is negative get zeros. float32 and bfloat16 logits take float32 nats, float64 float64. Entropy
    and largest log probability are filled into the features (N, 2), in the dtype of the nats; (N, 0) asks for none.
    """
    N, V = sizes(logits, "logits (N, V)", 2)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    expect(logits, "logits (N, V)", (N, V), torch.float32, torch.float64, torch.bfloat16, in_place=True)
    expect(targets, "targets (N,)", (N,), torch.int64)
    expect(nats, "nats (N,)", (N,), wide, in_place=True)
    columns = 2 if sizes(features, "features (N, 2)", 2)[1] else 0
    expect(features, "features (N, 2)", (N, columns), wide, in_place=True)
    _check_outcomes(V)
    expect_places(targets, "targets", V, start=None)
    run(_softmax_slope, logits, targets.contiguous(), nats, features)


def _check_outcomes(number: int) -> None:
    if number < 1:
        raise ValueError("logits (N, V) should have at least one outcome, got V = 0")


@jit()
def _log_softmax(logits: Any, features: Any) -> None:
    N, V = logits.shape
    sums, products = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    whole = V - V % LANES
    for n in range(N):
        row = logits[n]
        top = _highest(row, sums)
        sums[:] = 0
        products[:] = 0
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                below = row[start + lane] - top
                weight = exp(below)
                sums[lane] += weight
                products[lane] += weight * below
        for v in range(whole, V):
            weight = exp(row[v] - top)
            sums[0] += weight
            products[0] += weight * (row[v] - top)
        total = sums.sum()
        log_total = np.float32(math.log(total))
        features[n, 0] = log_total - products.sum() / total
        features[n, 1] = -log_total
        for v in range(V):
            row[v] = row[v] - top - log_total


def log_softmax_(logits: Tensor) -> Tensor:
    """Turns logits (N, V) float32 into log probabilities, in place; returns their entropy and largest value (N, 2)."""
    N, V = sizes(logits, "logits (N, V)", 2)
    expect(logits, "logits (N, V)", (N, V), torch.float32, in_place=True)
    _check_outcomes(V)
    features = torch.empty(N, 2)
    run(_log_softmax, logits, features)
    return features


@jit()
def _recall(
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
        top = _highest(row, lanes)
        if top == none:
            row[:] = 0
            mass[t] = top
            continue
        for n in range(N):
            weight = exp(row[n] - top)
            row[n] = weight if row[n] > none else np.float32(0.0)
        total = _total(row, lanes)
        mass[t] = top + math.log(total)
        scale = np.float32(1.0) / total
        for n in range(N):
            row[n] *= scale


@functools.lru_cache(maxsize=8)
def _penalties(window: int, recency: float) -> Any:
    """The score that each age from `window` down to 1 costs, (window,) float32."""
    return (-recency * torch.arange(window, 0, -1, dtype=torch.float64).log()).float().numpy()


def recall_weights(
    similarity: Tensor, made: Tensor, serial: Tensor, window: int, sharpness: float, recency: float
) -> Tensor:
    """Turns cosines (B, T, N) float32 into the weights of the entries, in place, and returns the mass (B, T).

    `made` (B, T) and `serial` (B, N) int64, and `window`, are those of a `Block`; see history/rule.py for the rule.
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
    shared = numbers, _runs(numbers), _penalties(window, recency), np.float32(sharpness)
    parts = similarity.view(-1, N), made.flatten(), _places(made), mass.view(-1)
    run(lambda *parts, shared=shared: _recall(*parts, *shared), *parts)
    return mass


def _places(positions: Tensor) -> Tensor:
    """The row of each of the positions (B, T), side by side, (B * T,) int64."""
    return torch.arange(len(positions)).repeat_interleave(positions.shape[1])


def _runs(numbers: Any) -> Any:
    """Where the runs of consecutive numbers begin in each row of numbers (B, N), and then N, as often as it takes."""
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
    """The sum of those weights (B, T, N) float32 whose outcome (B, N) is the target (B, T); int64, as (B, T)."""
    B, T, N = sizes(weights, "weights (B, T, N)", 3)
    expect(weights, "weights (B, T, N)", (B, T, N), torch.float32)
    for part, name, shape in ((outcomes, "outcomes (B, N)", (B, N)), (targets, "targets (B, T)", (B, T))):
        expect(part, name, shape, torch.int64)
        expect_places(part, name, 1 << 31, -(1 << 31))  # they are compared as int32
    total, shared = torch.empty(B, T), (outcomes.int().contiguous().numpy(),)
    parts = weights.contiguous().flatten(0, 1), targets.int().flatten(), _places(targets), total.view(-1)
    run(lambda *parts, shared=shared: _recalled(*parts, *shared), *parts)
    return total
