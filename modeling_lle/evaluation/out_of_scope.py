"""Which queries to reject as out of scope: those whose score is below a threshold, which is fitted on validation data.

Notable: a higher threshold rejects more of both kinds. A rejected query that is in scope counts as an error, so
in-scope accuracy falls while out-of-scope recall rises, and a floor under the one gives the best of the other.
Shapes: N queries in scope, M out of scope.
"""

import math

import numpy as np
from numpy.typing import ArrayLike


def choose_threshold(scores_in: ArrayLike, right_in: ArrayLike, scores_out: ArrayLike, floor: float) -> float:
    """The threshold of the highest out-of-scope recall at which in-scope accuracy is at least `floor`.

    A query is accepted if its score is at least the threshold. Of the thresholds with that recall, it is one that
    rejects the fewest queries in scope: the lowest score that is accepted, so that no rounding can move it.

    Args:
        scores_in: (N,) finite floats, the scores of queries in scope; higher is nearer to what was learned.
        right_in: (N,) bool, whether the label of each is right.
        scores_out: (M,) finite floats, the scores of queries out of scope.
        floor: In-scope accuracy to keep, from 0 to 1.

    Returns:
        The threshold; minus infinity if nothing may be rejected, infinity if everything may.

    Raises:
        ValueError: If in-scope accuracy is below the floor even with nothing rejected.

    Example:
        >>> choose_threshold([0.9, 0.5, 0.3], [True, True, False], [0.1, 0.4, 0.7], floor=0.6)
        0.5
    """
    inside, outside = _scores(scores_in, "scores_in"), _scores(scores_out, "scores_out")
    right = np.asarray(right_in, dtype=bool)
    if right.shape != inside.shape:
        raise ValueError(f"right_in has shape {right.shape} and scores_in {inside.shape}: they must be the same")
    if right.mean() < floor:
        raise ValueError(
            f"in-scope accuracy is {right.mean():.4f} with nothing rejected, below the floor {floor}: lower the floor"
        )
    best = -math.inf
    every = np.unique(np.concatenate([inside, outside]))
    for highest in np.unique(outside):  # of what is rejected: between two of them, recall stays the same
        if (right & (inside > highest)).mean() < floor:
            break
        above = every[np.searchsorted(every, highest, side="right") :]
        best = float(above[0]) if len(above) else math.inf
    return best


def _scores(values: ArrayLike, name: str) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"{name} has shape {scores.shape}: it needs one dimension and at least one score")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} holds {scores[~np.isfinite(scores)][0]}: scores must be finite")
    return scores
