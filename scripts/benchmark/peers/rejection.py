"""Rejection threshold of peers, chosen on held-out queries."""

import math

import numpy as np


def choose_threshold(inside: np.ndarray, right: np.ndarray, outside: np.ndarray, floor: float) -> float:
    """Threshold with the highest out-of-scope recall at an in-scope accuracy of at least `floor`.

    Refused in-scope queries count as errors. Among thresholds of equal recall, the one that refuses the fewest
    in-scope queries is chosen.

    Args:
        inside: (Q,) floats, scores of in-scope queries; higher is more out of scope.
        right: (Q,) bool, whether their labels are correct.
        outside: One-dimensional floats, scores of out-of-scope queries.
        floor: In-scope accuracy to keep, from 0 to 1.

    Returns:
        Least refused score; infinity if nothing may be refused.

    Example:
        >>> choose_threshold(np.array([0.1, 0.5, 0.7]), np.array([True, True, False]), np.array([0.6, 0.9]), floor=0.6)
        0.6
    """
    if not len(inside) or not len(outside):
        raise ValueError(f"a threshold needs in-scope and out-of-scope queries, got {len(inside)} and {len(outside)}")
    candidates = np.unique(outside)
    kept = np.searchsorted(np.sort(inside[right]), candidates) / len(inside)  # accuracy below each candidate
    allowed = candidates[kept >= floor]
    return float(allowed[0]) if len(allowed) else math.inf
