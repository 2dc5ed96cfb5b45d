"""Numba kernels of the search; imported on first use.

The fallbacks are in bank/nearest.py, beside the calls; the search by a sketch has none. Shapes: Q queries, N entries,
D width, K neighbours, C candidates; of a sketch, m axes, of which h make the first half.
"""

import ctypes
import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import check_neighbours, expect, expect_places, sizes
from .numba_tools import LANES, as_array, jit, load, run, store

CHUNK = 256  # entries whose codes lie side by side in a sketch, and whose scores share a peak


@jit()
def _similarity(query: Any, key: Any, lanes: Any) -> Any:
    whole = len(query) - len(query) % LANES
    lanes[:] = 0
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += query[start + lane] * load(key[start + lane])
    for d in range(whole, len(query)):
        lanes[0] += query[d] * load(key[d])
    return lanes.sum()


@jit()
def _replace_least(heap: Any, value: Any) -> None:
    """Replaces the smallest number of a heap by `value`."""
    place, size = 0, len(heap)
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = value


@jit()
def _fill_heap(heap: Any, scores: Any, usable: Any, peaks: Any) -> None:
    """Fills a heap with the largest usable scores, and `peaks` with the largest score of each chunk."""
    N = len(usable)
    few = np.empty(16, np.float32)
    heap[:] = -np.inf
    for chunk in range(len(peaks)):
        start, stop = chunk * CHUNK, min(N, (chunk + 1) * CHUNK)
        if stop - start == CHUNK:
            few[:] = scores[start : start + 16]
            for part in range(start + 16, stop, 16):
                for lane in range(16):
                    few[lane] = scores[part + lane] if scores[part + lane] > few[lane] else few[lane]
            peaks[chunk] = few.max()
        else:
            peaks[chunk] = scores[start:stop].max()
        if peaks[chunk] > heap[0]:
            for n in range(start, stop):
                if scores[n] > heap[0] and usable[n]:
                    _replace_least(heap, scores[n])


@jit()
def _store_best(similarity: Any, index: Any, negated: Any, candidates: Any) -> None:
    """Stores the best candidates, given their negated similarities."""
    order = np.argsort(negated, kind="mergesort")  # stable: equal ones stay in their order
    for k in range(min(len(index), len(candidates))):
        similarity[k] = -negated[order[k]]
        index[k] = candidates[order[k]]


@jit()
def _nearest(scores: Any, queries: Any, similarity: Any, index: Any, keys: Any, usable: Any, slack: Any) -> None:
    Q, N = scores.shape
    K = similarity.shape[1]
    row, lanes = np.empty(N, np.float32), np.empty(LANES, np.float32)
    chunks = (N + CHUNK - 1) // CHUNK
    peaks, heap = np.empty(chunks, np.float32), np.empty(K, np.float32)
    candidates, exact, none = np.empty(N, np.int64), np.empty(N, np.float32), np.float32(-np.inf)
    for q in range(Q):
        for n in range(N):
            score = np.float32(load(scores[q, n]))
            row[n] = score if score == score else none  # a NaN would hide the other scores of its chunk
        _fill_heap(heap, row, usable, peaks)
        least = heap[0] - slack
        count = 0
        for chunk in range(chunks):
            if peaks[chunk] >= least:
                for n in range(chunk * CHUNK, min(N, (chunk + 1) * CHUNK)):
                    if row[n] >= least and row[n] > none and usable[n]:
                        cosine = _similarity(queries[q], keys[n], lanes)
                        if cosine == cosine:
                            candidates[count], exact[count] = n, -cosine
                            count += 1
        _store_best(similarity[q], index[q], exact[:count], candidates[:count])


@jit()
def _split(query: Any, axes: Any, along: Any, left: Any, lanes: Any) -> Any:
    """Fills in the parts of a query (D,) `along` the axes (m,), subtracts them from `left` (D,); returns its norm."""
    for j in range(len(axes)):
        along[j] = _similarity(query, axes[j], lanes)
        for d in range(len(left)):
            left[d] -= along[j] * axes[j, d]
    return np.float32(math.sqrt(_similarity(left, left, lanes)))


@jit()
def _products(weights: Any, codes: Any, products: Any) -> None:
    """Fills in the products (chunks, CHUNK) of weights (h,) and codes (chunks, h, CHUNK)."""
    products[:] = 0
    for chunk in range(len(codes)):
        for j in range(len(weights)):
            for lane in range(CHUNK):
                products[chunk, lane] += weights[j] * np.float32(codes[chunk, j, lane])


@jit()
def _product(weights: Any, codes: Any, few: Any) -> Any:
    """Returns the product of weights (m,) and the codes (m,) of an entry."""
    whole = len(weights) - len(weights) % 16
    few[:] = 0
    for start in range(0, whole, 16):
        for lane in range(16):
            few[lane] += weights[start + lane] * np.float32(codes[start + lane])
    for j in range(whole, len(weights)):
        few[0] += weights[j] * np.float32(codes[j])
    return few.sum()


@jit()
def _nearest_of_codes(
    queries: Any, found: Any, similarity: Any, index: Any, keys: Any, usable: Any, sketch: Any, most: Any
) -> None:
    axes, steps, codes, others, rest, error, slack = sketch
    N, D = keys.shape
    K, m, half = similarity.shape[1], len(axes), codes.shape[1]
    products, peaks = np.empty((len(codes), CHUNK), np.float32), np.empty(len(codes), np.float32)
    along, left, lanes = np.empty(m, np.float32), np.empty(D, np.float32), np.empty(LANES, np.float32)
    few, heap, nearest = np.empty(16, np.float32), np.empty(K, np.float32), np.empty(K, np.float32)
    candidates, exact = np.empty(N, np.int64), np.empty(most, np.float32)
    for q in range(len(queries)):
        query = queries[q]
        left[:] = query
        first_left = _split(query, axes[:half], along[:half], left, lanes)
        last_left = _split(query, axes[half:], along[half:], left, lanes)
        weights = along * steps
        _products(weights[:half], codes, products)
        row = products.ravel()
        _fill_heap(heap, row, usable, peaks)
        nearest[
            :
        ] = -np.inf  # the cosines of those that seem to be the nearest: nothing below all of them can be found
        for chunk in range(len(codes)):
            if peaks[chunk] >= heap[0]:
                for n in range(chunk * CHUNK, min(N, (chunk + 1) * CHUNK)):
                    if row[n] >= heap[0] and usable[n]:
                        cosine = _similarity(query, keys[n], lanes)
                        if cosine > nearest[0]:
                            _replace_least(nearest, cosine)
        least = nearest[0] - np.float32(math.sqrt(_similarity(along, along, lanes)) * error + slack)
        possible = 0
        for n in range(N):
            if row[n] + first_left * rest[0, n] >= least and usable[n]:
                candidates[possible] = n
                possible += 1
        count = 0
        for place in range(possible):
            n = candidates[place]
            product = row[n] + _product(weights[half:], others[n], few)
            if product + last_left * rest[1, n] >= least:
                candidates[count] = n
                count += 1
        found[q] = count <= most and first_left < np.inf  # else the query is not finite, and no bound holds
        if found[q]:
            for place in range(count):
                exact[place] = -_similarity(query, keys[candidates[place]], lanes)
            _store_best(similarity[q], index[q], exact[:count], candidates[:count])


@jit()
def _fill_similarities(cosines: Any, candidates: Any, queries: Any, keys: Any, first: Any) -> None:
    Q, C = candidates.shape
    lanes = np.empty(LANES, np.float32)
    for q in range(Q):
        for c in range(C):
            place = candidates[q, c] - first
            if 0 <= place < len(keys):
                cosines[q, c] = _similarity(queries[q], keys[place], lanes)


def _check_candidates(cosines: Tensor, candidates: Tensor, queries: Tensor, first: int) -> int:
    """Checks the arguments of kernels that fill in cosines; returns the width of the queries."""
    (Q, C), (_, D) = sizes(candidates, "candidates (Q, C)", 2), sizes(queries, "queries (Q, D)", 2)
    expect(candidates, "candidates (Q, C)", (Q, C), torch.int64)
    expect(queries, "queries (Q, D)", (Q, D), torch.float32)
    expect(cosines, "cosines (Q, C)", (Q, C), torch.float32, in_place=True)
    if first < 0:
        raise ValueError(f"the number of the first entry should be at least 0; got {first}")
    return D


def fill_similarities(cosines: Tensor, candidates: Tensor, queries: Tensor, keys: Tensor, first: int) -> None:
    """Fills in the cosines (Q, C) of the candidates (Q, C) that are among the keys of entries `first` and on."""
    D = _check_candidates(cosines, candidates, queries, first)
    expect(keys, "keys (N, D)", (len(keys), D), torch.bfloat16)
    shared: tuple[Any, ...] = (as_array(keys.contiguous()), first)
    run(lambda *parts: _fill_similarities(*parts, *shared), cosines, candidates.contiguous(), queries.contiguous())


pread: Any = ctypes.CDLL(None).pread if hasattr(os, "pread") else None
if pread is not None:
    pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
    pread.restype = ctypes.c_ssize_t


@jit(cache=False)  # numba does not cache what calls into the C library
def _fill_from_file(
    cosines: Any, unread: Any, candidates: Any, queries: Any, file: Any, begin: Any, first: Any, stop: Any
) -> Any:
    Q, C = candidates.shape
    D = queries.shape[1]
    key, lanes = np.empty(D, np.int16), np.empty(LANES, np.float32)
    for q in range(Q):
        for c in range(C):
            place = candidates[q, c]
            if first <= place < stop:
                if pread(file, key.ctypes, 2 * D, begin + 2 * D * (place - first)) == 2 * D:
                    cosines[q, c] = _similarity(queries[q], key, lanes)
                else:
                    unread[q] += 1


def fill_from_file(
    cosines: Tensor, candidates: Tensor, queries: Tensor, file: int, offset: int, first: int, count: int
) -> None:
    """Fills in cosines as `fill_similarities`, with `count` bfloat16 keys in a file, from byte `offset` on.

    Unlike the pages of a mapped file, keys that were read do not stay in the memory of the process.

    Raises:
        OSError: The file ends before the last of these keys, or a key cannot be read.
    """
    D = _check_candidates(cosines, candidates, queries, first)
    size, due = os.fstat(file).st_size, offset + 2 * D * count
    if not 0 <= offset <= due <= size:
        raise OSError(f"{count} keys should lie in bytes {offset} to {due} of their file, which has {size}")
    unread = torch.zeros(len(queries), dtype=torch.int64)
    shared: tuple[Any, ...] = (file, offset, first, first + count)
    parts = cosines, unread, candidates.contiguous(), queries.contiguous()
    run(lambda *parts: _fill_from_file(*parts, *shared), *parts)
    if unread.any():
        raise OSError(f"{int(unread.sum())} keys cannot be read from their file")


@jit()
def _store_keys(states: Any, places: Any, keys: Any) -> None:
    B, T, D = states.shape
    lanes = np.empty(LANES, np.float32)
    for b in range(B):
        for t in range(T):
            if places[b, t] >= 0:
                state, key = states[b, t], keys[places[b, t]]
                norm = max(math.sqrt(_similarity(state, state, lanes)), 1e-12)
                for d in range(D):
                    key[d] = store(state[d] / np.float32(norm), key[d])


def store_keys(states: Tensor, places: Tensor, keys: Tensor) -> None:
    """Writes normalised states (B, T, D) float32 to keys (N, D) bfloat16 at their places (B, T); -1 for none."""
    (B, T, D), (N, _) = sizes(states, "states (B, T, D)", 3), sizes(keys, "keys (N, D)", 2)
    expect(states, "states (B, T, D)", (B, T, D), torch.float32)
    expect(places, "places (B, T)", (B, T), torch.int64)
    expect(keys, "keys (N, D)", (N, D), torch.bfloat16, in_place=True)
    expect_places(places, "places", N, -1)
    if not states.is_contiguous():
        states, places = states.transpose(0, 1), places.transpose(0, 1)  # as torch.nn.LSTM returns them
    shared: tuple[Any, ...] = (as_array(keys),)
    run(lambda *parts: _store_keys(*parts, *shared), states.contiguous(), places.contiguous())


def _check_search(queries: Tensor, keys: Tensor, usable: Tensor, neighbours: int) -> tuple[int, int]:
    """Checks the arguments of a search; returns Q and N."""
    (Q, D), (N, _) = sizes(queries, "queries (Q, D)", 2), sizes(keys, "keys (N, D)", 2)
    expect(queries, "queries (Q, D)", (Q, D), torch.float32)
    expect(keys, "keys (N, D)", (N, D), torch.bfloat16)
    expect(usable, "usable (N,)", (N,), torch.bool)
    check_neighbours(neighbours)
    return Q, N


def nearest_of_scores(
    scores: Tensor, queries: Tensor, keys: Tensor, usable: Tensor, slack: float, neighbours: int
) -> tuple[Tensor, Tensor]:
    """Returns what `nearest` of bank/nearest.py does, given scores (Q, N) with errors of at most `slack` / 2."""
    Q, N = _check_search(queries, keys, usable, neighbours)
    expect(scores, "scores (Q, N)", (Q, N), torch.float32, torch.bfloat16)
    similarity = torch.zeros(len(queries), neighbours)
    index = torch.full((len(queries), neighbours), -1)
    shared: tuple[Any, ...] = (as_array(keys.contiguous()), usable.contiguous().numpy(), np.float32(slack))
    run(lambda *parts: _nearest(*parts, *shared), scores.contiguous(), queries.contiguous(), similarity, index)
    return similarity, index


Codes = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # axes, steps, codes, others and rest of a `Sketch`


def _check_codes(sketch: Codes, N: int, D: int) -> None:
    axes, steps, codes, others, rest = sketch
    m, half = sizes(axes, "axes (m, D)", 2)[0], sizes(codes, "codes (chunks, h, CHUNK)", 3)[1]
    expect(axes, "axes (m, D)", (m, D), torch.float32)
    expect(steps, "steps (m,)", (m,), torch.float32)
    expect(codes, "codes (chunks, h, CHUNK)", (-(-N // CHUNK), min(half, m), CHUNK), torch.int8)
    expect(others, "others (N, m - h)", (N, m - half), torch.int8)
    expect(rest, "rest (2, N)", (2, N), torch.float32)


def nearest_of_codes(
    sketch: Codes,
    error: float,
    slack: float,
    queries: Tensor,
    keys: Tensor,
    usable: Tensor,
    neighbours: int,
    most: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Searches by a sketch; see bank/sketch.py, which explains the bounds.

    Args:
        sketch: Its tensors.
        error, slack: Its bounds on |A r| and on roundings.
        queries, keys, usable, neighbours: As in `nearest` of bank/nearest.py, of one part.
        most: Largest number of entries whose keys are read for a query; a query that needs more is not answered.

    Returns:
        Similarity (Q, K) float32 and index (Q, K) int64, as `nearest` returns them, and whether a query was answered,
        (Q,) bool.
    """
    _, N = _check_search(queries, keys, usable, neighbours)
    _check_codes(sketch, N, keys.shape[1])
    if most < 0:
        raise ValueError(f"at least 0 entries can be left; got {most}")
    most = min(most, N)
    found = torch.zeros(len(queries), dtype=torch.bool)
    similarity = torch.zeros(len(queries), neighbours)
    index = torch.full((len(queries), neighbours), -1)
    arrays = [as_array(part.contiguous()) for part in sketch]
    numbers = np.float32(error), np.float32(slack)
    shared: tuple[Any, ...] = (as_array(keys.contiguous()), usable.contiguous().numpy(), (*arrays, *numbers), most)
    run(lambda *parts: _nearest_of_codes(*parts, *shared), queries.contiguous(), found, similarity, index)
    return similarity, index, found
