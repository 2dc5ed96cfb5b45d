"""The search index of an exported bank: int8 codes of the keys along their principal axes, and lists of near keys.

Notable: whatever the codes choose is compared by the keys themselves (runner/core.py), so they decide which entries
are found, and never how near they are.
Shapes: N entries, D width, m axes, C lists.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CODED = 4096  # entries; a smaller bank is searched by its keys
LISTED = 65_536  # entries; a smaller bank is searched by all of its codes
AXES = 64
PROBES = 32  # lists that are read for a query
SAMPLE = 65_536  # keys that axes and lists are fitted to
ROUNDS = 10  # of k-means
BLOCK = 65_536  # keys that are coded at once


def make_index(keys: Tensor, listed: bool = True) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.int64] | None]:
    """The index of keys.

    Args:
        keys: (N, D) bfloat16, normalised.
        listed: Whether those of a large bank may be put into lists, to which none is added then.

    Returns:
        The arrays `axes` (m, D), `steps` (m,) float32 and `codes` (N, m) int8; of a large bank `centroids` (C, m + 1)
        and `starts` (C + 1,) int64 as well, and the order (N,) in which the entries lie in their lists, which the
        codes have already. {} for a small bank.
    """
    if len(keys) <= CODED:
        return {}, None
    sample = keys[:: -(-len(keys) // SAMPLE)].float()
    axes = torch.linalg.eigh(sample.T @ sample)[1].T.flip(0)[:AXES].contiguous()
    along = torch.cat([block @ axes.T for block in _blocks(keys)])
    steps = (along.abs().amax(0) / 127).clamp(min=1e-12)
    codes = (along / steps).round().to(torch.int8)
    arrays = {"axes": axes.numpy(), "steps": steps.numpy()}
    if len(keys) <= LISTED or not listed:
        return arrays | {"codes": codes.numpy()}, None
    centroids = _centroids(sample @ axes.T, 1 << round(np.log2(len(keys) ** 0.5)))
    lists = torch.cat([_nearest(block, centroids) for block in along.split(BLOCK)])
    order = lists.argsort(stable=True)
    starts = torch.nn.functional.pad(lists.bincount(minlength=len(centroids)).cumsum(0), (1, 0))
    arrays |= {"codes": codes[order].numpy(), "centroids": _scorers(centroids).numpy(), "starts": starts.numpy()}
    return arrays, order.numpy()


def _blocks(keys: Tensor) -> Iterator[Tensor]:
    return (block.float() for block in keys.split(BLOCK))


def _scorers(centroids: Tensor) -> Tensor:
    """(C, m + 1): the product with a vector that ends with 1 is the larger, the nearer a centroid is."""
    return torch.cat([centroids, -centroids.square().sum(1, keepdim=True) / 2], dim=1)


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    scorers = _scorers(centroids)
    return (points @ scorers[:, :-1].T + scorers[:, -1]).argmax(1)


def _centroids(points: Tensor, number: int) -> Tensor:
    """Centroids (C, m) of points (n, m) by k-means, from points drawn at random with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    centroids = points[torch.randperm(len(points), generator=generator)[:number]].clone()
    for _ in range(ROUNDS):
        lists = _nearest(points, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, lists, points)
        sizes = lists.bincount(minlength=number)[:, None]
        centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
    return centroids
