"""Numba kernel of the label rule for texts with one label each; imported on first use.

Notable: the reference and fallback is `Mixture.of` with `Recalled.of` (history/label_rule.py), about forty small
operations. Sums are taken in float64, and a row does not depend on the rows beside it.
Shapes: Q queries (texts), C trained labels, L labels, K neighbours, O outcomes of the bank.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, expect_places, sizes
from .numba_tools import jit, run


@jit()
def _log_add(one: Any, other: Any) -> Any:
    top = max(one, other)
    return top if top == -np.inf else top + math.log1p(math.exp(min(one, other) - top))


@jit()
def _softmax(logits: Any, base: Any) -> Any:
    """Fills in the probabilities (C,); returns minus the largest logarithm of them, and the entropy."""
    for c in range(len(base)):
        base[c] = logits[c]
    top = base.max()
    log_total = math.log(np.exp(base - top).sum())
    entropy = 0.0
    for c in range(len(base)):
        log_p = base[c] - top - log_total
        base[c] = math.exp(log_p)
        entropy -= base[c] * log_p
    return log_total, entropy


@jit()
def _mix(
    logits: Any,
    similarity: Any,
    counts: Any,
    outcomes: Any,
    labels: Any,
    scope: Any,
    base_share: Any,
    shares: Any,
    mass: Any,
    label_of: Any,
    numbers: Any,
) -> None:
    Q, K = similarity.shape
    C, L = logits.shape[1], labels.shape[1]
    sharpness, background, margin, bias, of_mass, of_entropy, of_top = numbers
    base, recalled, weights = np.empty(C), np.empty(L), np.empty(K)
    tops, totals, masses = np.empty(2), np.empty(2), np.empty(2)  # of the seen neighbours and of the unseen ones
    for q in range(Q):
        log_total, entropy = _softmax(logits[q], base)
        tops[:], totals[:], masses[:] = -np.inf, 0.0, -np.inf
        for k in range(K):
            if counts[q, k] > 0:
                weights[k] = sharpness * (similarity[q, k] - 1.0) + math.log(counts[q, k])
                unseen = int(label_of[outcomes[q, k]] >= C)
                tops[unseen] = max(tops[unseen], weights[k])
        for k in range(K):
            if counts[q, k] > 0:
                unseen = int(label_of[outcomes[q, k]] >= C)
                weights[k] = math.exp(weights[k] - tops[unseen])
                totals[unseen] += weights[k]
        for unseen in range(2):
            if totals[unseen] > 0:
                masses[unseen] = tops[unseen] + math.log(totals[unseen])
        known = _log_add(masses[0] + sharpness * margin, sharpness * (background - 1.0))
        of_unseen = 1.0 / (1.0 + math.exp(known - masses[1]))
        of_bank = 0.0
        if totals[0] > 0:
            logit = bias + of_mass * masses[0] + of_entropy * entropy - of_top * log_total
            of_bank = (1.0 - of_unseen) / (1.0 + math.exp(-logit))
        of_base = 1.0 - of_unseen - of_bank
        recalled[:] = 0
        for k in range(K):
            shares[q, k] = 0
            if counts[q, k] > 0:
                label = label_of[outcomes[q, k]]
                share = weights[k] / totals[0] * of_bank if label < C else weights[k] / totals[1] * of_unseen
                shares[q, k] = share
                if label >= 0:
                    recalled[label] += share
        for label in range(L):
            labels[q, label] = recalled[label] + (of_base * base[label] if label < C else 0.0)
            scope[q, label] = (1.0 - of_unseen) * base[label] if label < C else recalled[label]
        base_share[q] = of_base
        mass[q] = _log_add(masses[0], masses[1])


def mix_labels(
    logits: Tensor,
    similarity: Tensor,
    counts: Tensor,
    outcomes: Tensor,
    label_of: Tensor,
    labels: int,
    sharpness: float,
    background: float,
    margin: float,
    gate: Sequence[float],
) -> tuple[Tensor, ...]:
    """Computes the prediction with history.

    Args:
        logits: (Q, C) floating, from the output layer.
        similarity, counts, outcomes: (Q, K), as in `Found`.
        label_of: (O,) int64, the label of each outcome; -1 for none.
        labels: L, at least C.
        sharpness, background, margin, gate: As in `BankConfig`.

    Returns:
        The fields of `Mixture` and the mass (Q,) of the recall, all float32.
    """
    (Q, C), (_, K) = sizes(logits, "logits (Q, C)", 2), sizes(similarity, "similarity (Q, K)", 2)
    logits, counts, outcomes = logits.float(), counts.long(), outcomes.long()
    expect(logits, "logits (Q, C)", (Q, C), torch.float32)
    expect(similarity, "similarity (Q, K)", (Q, K), torch.float32)
    expect(counts, "counts (Q, K)", (Q, K), torch.int64)
    expect(outcomes, "outcomes (Q, K)", (Q, K), torch.int64)
    expect(label_of, "label_of (O,)", sizes(label_of, "label_of (O,)", 1), torch.int64)
    if not 1 <= C <= labels or len(gate) != 4:
        raise ValueError(f"{C} trained labels of {labels}, {len(gate)} numbers of the gate: need 1 <= C <= L and 4")
    expect_places(outcomes[counts > 0], "outcomes", len(label_of))
    expect_places(label_of, "label_of", labels, -1)
    mixture = (torch.empty(Q, labels), torch.empty(Q, labels), torch.empty(Q), torch.empty(Q, K), torch.empty(Q))
    found = (part.contiguous() for part in (logits, similarity, counts, outcomes))
    shared: tuple[Any, ...] = label_of.contiguous().numpy(), tuple(map(float, (sharpness, background, margin, *gate)))
    run(lambda *parts: _mix(*parts, *shared), *found, *mixture)
    return mixture
