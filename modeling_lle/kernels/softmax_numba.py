"""Numba kernels of the softmax and of the cross entropy; imported on first use.

The fallbacks are torch's `cross_entropy` (history/loss.py) and `log_softmax` (history/rule.py).
Shapes: Q queries (rows), V vocabulary.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, expect_places, sizes
from .numba_tools import LANES, exp, highest, jit, load, run, store, total_of


@jit()
def _total_of_products(weights: Any, row: Any, top: Any, lanes: Any) -> Any:
    """Returns the sum of the weights times the differences between the stored row and `top`."""
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
    Q, V = logits.shape
    exps, lanes = np.empty(V, nats.dtype), np.empty(LANES, nats.dtype)
    one = nats.dtype.type(1)
    for q in range(Q):
        row, target = logits[q], targets[q]
        for v in range(V):
            exps[v] = load(row[v])
        top = highest(exps, lanes)
        at_target = exps[target] if target >= 0 else top
        for v in range(V):
            exps[v] = exp(exps[v] - top)
        total = total_of(exps, lanes)
        if features.shape[1] > 0:
            log_total = math.log(total)
            features[q, 0] = log_total - _total_of_products(exps, row, top, lanes) / total
            features[q, 1] = -log_total
        scale = one / total if target >= 0 else one - one
        nats[q] = math.log(total) + top - at_target if target >= 0 else scale
        if target >= 0:
            exps[target] -= total
        for v in range(V):
            row[v] = store(exps[v] * scale, row[v])


def softmax_slope(logits: Tensor, targets: Tensor, nats: Tensor, features: Tensor) -> None:
    """Replaces logits (Q, V) by the gradient of the cross entropy and fills in the nats (Q,) of int64 targets (Q,).

    Rows with a negative target get zeros. The nats are float32 for float32 and bfloat16 logits, else float64. Entropy
    and largest log probability are filled into the features (Q, 2), in the dtype of the nats; (Q, 0) skips them.
    """
    Q, V = sizes(logits, "logits (Q, V)", 2)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    expect(logits, "logits (Q, V)", (Q, V), torch.float32, torch.float64, torch.bfloat16, in_place=True)
    expect(targets, "targets (Q,)", (Q,), torch.int64)
    expect(nats, "nats (Q,)", (Q,), wide, in_place=True)
    columns = 2 if sizes(features, "features (Q, 2)", 2)[1] else 0
    expect(features, "features (Q, 2)", (Q, columns), wide, in_place=True)
    _check_outcomes(V)
    expect_places(targets, "targets", V, start=None)
    run(_softmax_slope, logits, targets.contiguous(), nats, features)


def _check_outcomes(number: int) -> None:
    if number < 1:
        raise ValueError("logits (Q, V) should have at least one outcome, got V = 0")


@jit()
def log_softmax_rows(logits: Any, features: Any) -> None:
    Q, V = logits.shape
    sums, products = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    whole = V - V % LANES
    for q in range(Q):
        row = logits[q]
        top = highest(row, sums)
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
        features[q, 0] = log_total - products.sum() / total
        features[q, 1] = -log_total
        for v in range(V):
            row[v] = row[v] - top - log_total


def log_softmax_(logits: Tensor) -> Tensor:
    """Turns logits (Q, V) float32 into log probabilities in place; returns their entropy and maximum (Q, 2)."""
    Q, V = sizes(logits, "logits (Q, V)", 2)
    expect(logits, "logits (Q, V)", (Q, V), torch.float32, in_place=True)
    _check_outcomes(V)
    features = torch.empty(Q, 2)
    run(log_softmax_rows, logits, features)
    return features
