"""Exact search: the entries whose keys are nearest to a query, whatever else the bank holds.

Notable: a first product in low precision finds every entry that its rounding error leaves possible; those are scored
again in one fixed order of operations, and equal scores go to the older entry. So the result depends on the entries
that may be found only, to the last bit: not on how many others there are, nor on the hardware's matrix product.
Shapes: Q queries, N entries, D width, K neighbours. Keys and queries are normalised: scores are cosines.
"""

import torch
from torch import Tensor

from .scan_lle import installed

SCORES = 1 << 24  # scores of the first product at once
# Half the distance between neighbouring bfloat16 numbers near 1 bounds each of three roundings (query, key and score)
# of cosines, whose terms' absolute values sum to 1 at most; float32 sums of D terms err far less.
_SLACK = {torch.bfloat16: 3 * 2.0**-8, torch.float32: 2.0**-14}


def nearest(queries: Tensor, keys: Tensor, usable: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """The nearest entries of each query.

    Args:
        queries: (Q, D) float32, normalised.
        keys: (N, D) bfloat16, normalised.
        usable: (N,) bool, which entries may be found.
        neighbours: How many to find, K.

    Returns:
        Similarity (Q, K) float32, descending, and index (Q, K) int64; -1 where there are fewer than K.
    """
    rows = max(1, SCORES // max(1, len(keys)))
    parts = [_nearest(queries[i : i + rows], keys, usable, neighbours) for i in range(0, len(queries), rows)]
    if not parts:
        return queries.new_zeros(0, neighbours), torch.zeros(0, neighbours, dtype=torch.long)
    similarity, index = (torch.cat(part) for part in zip(*parts, strict=True))
    return similarity, index


def _nearest(queries: Tensor, keys: Tensor, usable: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    dtype = torch.bfloat16 if _fast_bfloat16(queries.device) else torch.float32
    scores = queries.to(dtype) @ keys.to(dtype).T
    slack = 2 * _SLACK[dtype]
    if queries.device.type == "cpu" and installed("numba"):
        from .nearest_kernels_lle import nearest_of_scores

        return nearest_of_scores(scores, queries, keys, usable, slack, neighbours)
    scores = scores.float().masked_fill(~usable, -torch.inf)
    found = min(neighbours, int(usable.sum()))
    if found == 0:
        none = torch.zeros(len(queries), 0, dtype=torch.long)
        return rank(queries, keys[none], none, neighbours)
    least = scores.topk(found).values[:, -1:] - slack
    possible = scores >= least
    width = int(possible.sum(1).max())
    columns = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    candidates = columns.masked_fill(~possible, scores.shape[1]).sort(1).values[:, :width]
    candidates = candidates.masked_fill(candidates == scores.shape[1], -1)
    return rank(queries, keys[candidates.clamp(min=0)], candidates, neighbours)


def rank(queries: Tensor, keys: Tensor, candidates: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """The best K of each query's own candidates, scored in full precision.

    Args:
        queries: (Q, D) float32.
        keys: (Q, C, D) bfloat16, the keys of the candidates.
        candidates: (Q, C) int64, their indices, ascending; -1 for none.
        neighbours: How many to keep, K.

    Returns:
        As `nearest`.
    """
    similarity = (queries[:, None] * keys.float()).sum(-1).masked_fill(candidates < 0, -torch.inf)
    missing = max(0, neighbours - candidates.shape[1])
    similarity = torch.nn.functional.pad(similarity, (0, missing), value=-torch.inf)
    candidates = torch.nn.functional.pad(candidates, (0, missing), value=-1)
    similarity, order = similarity.sort(dim=1, descending=True, stable=True)
    similarity, index = similarity[:, :neighbours], candidates.gather(1, order)[:, :neighbours]
    return similarity.masked_fill(index < 0, 0.0), index


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
