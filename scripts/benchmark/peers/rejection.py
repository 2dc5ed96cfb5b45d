"""When a peer refuses a query: where its out-of-scope score reaches a threshold, chosen on held-out queries."""

import math

import numpy as np


def choose_threshold(inside: np.ndarray, right: np.ndarray, outside: np.ndarray, floor: float) -> float:
    """The threshold of the highest out-of-scope recall at which in-scope accuracy is at least `floor`.

    A lower threshold refuses more of both kinds, and a query in scope that is refused counts as an error. Of the
    thresholds with that recall, it is the one that refuses the fewest queries in scope.

    Args:
        inside: (N,) floats, the scores of queries in scope; higher is nearer to none of the intents.
        right: (N,) bool, whether the label of each is right.
        outside: (M,) floats, the scores of queries out of scope.
        floor: In-scope accuracy to keep, from 0 to 1.

    Returns:
        The least score that is refused; infinity if nothing may be.

    Example:
        >>> choose_threshold(np.array([0.1, 0.5, 0.7]), np.array([True, True, False]), np.array([0.6, 0.9]), floor=0.6)
        0.6
    """
    if not len(inside) or not len(outside):
        raise ValueError(f"a threshold needs queries in scope and out of it, got {len(inside)} and {len(outside)}")
    candidates = np.unique(outside)
    kept = np.searchsorted(np.sort(inside[right]), candidates) / len(inside)  # accuracy below each candidate
    allowed = candidates[kept >= floor]
    return float(allowed[0]) if len(allowed) else math.inf
