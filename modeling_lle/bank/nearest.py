"""Exact search for the entries whose keys are nearest to a query.

Notable: a first product in low precision yields every entry that its rounding error leaves possible; these are scored
again in a fixed order of operations, and of equal scores the older entry comes first. To the last bit, the result does
not depend on entries that may not be found, nor on the hardware's matrix product.
Shapes: Q queries, N entries, D width, K neighbours. Keys and queries are normalised: scores are cosines.
"""

import torch
from torch import Tensor

from ..common.checks import check_neighbours, sizes
from ..common.precision import has_fast_bfloat16
from ..kernels.available import takes_numba

SCORES = 1 << 24  # largest number of scores in one first product
# Half the distance between neighbouring bfloat16 numbers near 1 bounds each of three roundings (query, key and score)
# of cosines, whose terms' absolute values sum to 1 at most; float32 sums of D terms err far less.
_SLACK = {torch.bfloat16: 3 * 2.0**-8, torch.float32: 2.0**-14}


Parts = list[tuple[int, Tensor]]  # index of the first entry, and the keys (n, D) bfloat16 of n entries from there


def nearest(queries: Tensor, parts: Parts, usable: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Finds the nearest entries of each query.

    Args:
        queries: (Q, D) float32, normalised.
        parts: The keys of the N entries, normalised.
        usable: (N,) bool, which entries may be found.
        neighbours: Number of entries to find, K.

    Returns:
        Similarity (Q, K) float32, descending, and index (Q, K) int64; 0 and -1 where there are fewer than K.
    """
    D, N = sizes(queries, "queries (Q, D)", 2)[1], sizes(usable, "usable (N,)", 1)[0]
    check_neighbours(neighbours)
    for first, keys in parts:
        if sizes(keys, "keys (n, D)", 2)[1] != D or not 0 <= first <= N - len(keys):
            raise ValueError(
                f"keys {tuple(keys.shape)} of the entries from {first} on do not fit queries {tuple(queries.shape)} "
                f"and usable {tuple(usable.shape)}"
            )
    found = [(queries.new_zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.long))]
    for first, keys in parts:
        rows = max(1, SCORES // max(1, len(keys)))
        own = usable[first : first + len(keys)]
        blocks = [_nearest(block, keys, own, neighbours) for block in queries.split(rows)] if len(queries) else []
        if blocks:
            similarity, index = (torch.cat(column) for column in zip(*blocks, strict=True))
            found.append((similarity, torch.where(index < 0, index, index + first)))
    similarity, index = (torch.cat(column, dim=1) for column in zip(*found, strict=True))
    return best(similarity, index, neighbours)


def _nearest(queries: Tensor, keys: Tensor, usable: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Searches one part as `nearest`; the result has at most K columns."""
    dtype = torch.bfloat16 if has_fast_bfloat16(queries.device) else torch.float32
    scores = queries.to(dtype) @ keys.to(dtype).T
    slack = 2 * _SLACK[dtype]
    if takes_numba(queries):
        from ..kernels.nearest_numba import nearest_of_scores

        return nearest_of_scores(scores, queries, keys, usable, slack, neighbours)
    scores = scores.float()
    scores = scores.masked_fill(scores.isnan() | ~usable, -torch.inf)
    found = min(neighbours, int(usable.sum()))
    if found == 0:
        return queries.new_zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.long)
    least = scores.topk(found).values[:, -1:] - slack
    possible = (scores >= least) & (scores > -torch.inf)
    width = int(possible.sum(1).max())
    columns = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    candidates = columns.masked_fill(~possible, scores.shape[1]).sort(1).values[:, :width]
    candidates = candidates.masked_fill(candidates == scores.shape[1], -1)
    return best(similarities(queries, candidates, [(0, keys)]), candidates, neighbours)


def similarities(queries: Tensor, candidates: Tensor, parts: Parts) -> Tensor:
    """Returns cosines (Q, C) float32 of queries (Q, D) float32 with their candidates (Q, C) int64; -1 for none."""
    cosines = queries.new_zeros(candidates.shape)
    if takes_numba(queries):
        from ..kernels.nearest_numba import fill_similarities

        for first, keys in parts:
            fill_similarities(cosines, candidates, queries, keys, first)
        return cosines
    for first, keys in parts:
        row, column = ((candidates >= first) & (candidates < first + len(keys))).nonzero(as_tuple=True)
        cosines[row, column] = (queries[row] * keys[candidates[row, column] - first].float()).sum(-1)
    return cosines


def best(similarity: Tensor, index: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Returns the K candidates of highest similarity (Q, C), the first of equal ones; index (Q, C) int64, -1 for none.

    Candidates whose similarity is NaN are dropped.
    """
    none = (index < 0) | similarity.isnan()
    similarity, index = similarity.masked_fill(none, -torch.inf), index.masked_fill(none, -1)
    missing = max(0, neighbours - index.shape[1])
    similarity = torch.nn.functional.pad(similarity, (0, missing), value=-torch.inf)
    index = torch.nn.functional.pad(index, (0, missing), value=-1)
    similarity, order = similarity.sort(dim=1, descending=True, stable=True)
    similarity, index = similarity[:, :neighbours], index.gather(1, order)[:, :neighbours]
    return similarity.masked_fill(index < 0, 0.0), index
