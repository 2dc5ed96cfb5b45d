"""The numba kernel of the rule for labels, for one label a text; imported on first use.

Notable: the reference is `Mixture.of` with `Recalled.of` (history/label_rule.py), about forty small operations; here
sums are taken in float64. What a text gets does not depend on the texts beside it. Shapes are those of the reference.
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
    n, K = similarity.shape
    C, L = logits.shape[1], labels.shape[1]
    sharpness, background, margin, bias, of_mass, of_entropy, of_top = numbers
    base, recalled, weights = np.empty(C), np.empty(L), np.empty(K)
    tops, totals, masses = np.empty(2), np.empty(2), np.empty(2)  # of the seen neighbours and of the unseen ones
    for i in range(n):
        for c in range(C):
            base[c] = logits[i, c]
        top = base.max()
        log_total = math.log(np.exp(base - top).sum())
        entropy = 0.0
        for c in range(C):
            log_p = base[c] - top - log_total
            base[c] = math.exp(log_p)
            entropy -= base[c] * log_p
        tops[:], totals[:], masses[:] = -np.inf, 0.0, -np.inf
        for k in range(K):
            if counts[i, k] > 0:
                weights[k] = sharpness * (similarity[i, k] - 1.0) + math.log(counts[i, k])
                unseen = int(label_of[outcomes[i, k]] >= C)
                tops[unseen] = max(tops[unseen], weights[k])
        for k in range(K):
            if counts[i, k] > 0:
                unseen = int(label_of[outcomes[i, k]] >= C)
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
            shares[i, k] = 0
            if counts[i, k] > 0:
                label = label_of[outcomes[i, k]]
                share = weights[k] / totals[0] * of_bank if label < C else weights[k] / totals[1] * of_unseen
                shares[i, k] = share
                if label >= 0:
                    recalled[label] += share
        for label in range(L):
            labels[i, label] = recalled[label] + (of_base * base[label] if label < C else 0.0)
            scope[i, label] = (1.0 - of_unseen) * base[label] if label < C else recalled[label]
        base_share[i] = of_base
        mass[i] = _log_add(masses[0], masses[1])


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
    """The fields of `Mixture`, then the mass (n,) of the recall, in float32.

    Args:
        logits: (n, C) floating, of the output layer.
        similarity, counts, outcomes: (n, K), as in `Found`.
        label_of: (O,) int64, the label of each outcome; -1 where there is none.
        labels: L, at least C.
        sharpness, background, margin, gate: The bank's numbers.
    """
    (n, C), (_, K) = sizes(logits, "logits (n, C)", 2), sizes(similarity, "similarity (n, K)", 2)
    logits, counts, outcomes = logits.float(), counts.long(), outcomes.long()
    expect(logits, "logits (n, C)", (n, C), torch.float32)
    expect(similarity, "similarity (n, K)", (n, K), torch.float32)
    expect(counts, "counts (n, K)", (n, K), torch.int64)
    expect(outcomes, "outcomes (n, K)", (n, K), torch.int64)
    expect(label_of, "label_of (O,)", sizes(label_of, "label_of (O,)", 1), torch.int64)
    if not 1 <= C <= labels or len(gate) != 4:
        raise ValueError(f"{C} trained labels of {labels}, {len(gate)} numbers of the gate: need 1 <= C <= L and 4")
    expect_places(outcomes[counts > 0], "outcomes", len(label_of))
    expect_places(label_of, "label_of", labels, -1)
    mixture = (torch.empty(n, labels), torch.empty(n, labels), torch.empty(n), torch.empty(n, K), torch.empty(n))
    found = (part.contiguous() for part in (logits, similarity, counts, outcomes))
    shared: tuple[Any, ...] = label_of.contiguous().numpy(), tuple(map(float, (sharpness, background, margin, *gate)))
    run(lambda *parts: _mix(*parts, *shared), *found, *mixture)
    return mixture
