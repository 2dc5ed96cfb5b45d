"""The numba kernels of the search; imported on first use."""

import ctypes
import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .numba_lle import as_array, jit, load, run, store

LANES = 64
CHUNK = 256  # scores that are compared with the least of the best together


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
    """Puts `value` in the place of the least number of a heap."""
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
def _nearest(scores: Any, queries: Any, similarity: Any, index: Any, keys: Any, usable: Any, slack: Any) -> None:
    Q, N = scores.shape
    K = similarity.shape[1]
    row, lanes, few = np.empty(N, np.float32), np.empty(LANES, np.float32), np.empty(16, np.float32)
    chunks = (N + CHUNK - 1) // CHUNK
    peaks, heap = np.empty(chunks, np.float32), np.empty(K, np.float32)
    candidates, exact = np.empty(N, np.int64), np.empty(N, np.float32)
    for q in range(Q):
        heap[:] = -np.inf
        for n in range(N):
            row[n] = load(scores[q, n])
        for chunk in range(chunks):
            start, stop = chunk * CHUNK, min(N, (chunk + 1) * CHUNK)
            if stop - start == CHUNK:
                few[:] = row[start : start + 16]
                for part in range(start + 16, stop, 16):
                    for lane in range(16):
                        few[lane] = row[part + lane] if row[part + lane] > few[lane] else few[lane]
                peaks[chunk] = few.max()
            else:
                peaks[chunk] = row[start:stop].max()
            if peaks[chunk] > heap[0]:
                for n in range(start, stop):
                    if row[n] > heap[0] and usable[n]:
                        _replace_least(heap, row[n])
        least = heap[0] - slack
        count = 0
        for chunk in range(chunks):
            if peaks[chunk] >= least:
                for n in range(chunk * CHUNK, min(N, (chunk + 1) * CHUNK)):
                    if row[n] >= least and usable[n]:
                        candidates[count] = n
                        exact[count] = -_similarity(queries[q], keys[n], lanes)
                        count += 1
        order = np.argsort(exact[:count], kind="mergesort")  # stable: equal ones stay in their order
        for k in range(min(K, count)):
            similarity[q, k] = -exact[order[k]]
            index[q, k] = candidates[order[k]]


@jit()
def _fill_similarities(cosines: Any, candidates: Any, queries: Any, keys: Any, first: Any) -> None:
    Q, C = candidates.shape
    lanes = np.empty(LANES, np.float32)
    for q in range(Q):
        for c in range(C):
            place = candidates[q, c] - first
            if 0 <= place < len(keys):
                cosines[q, c] = _similarity(queries[q], keys[place], lanes)


def fill_similarities(cosines: Tensor, candidates: Tensor, queries: Tensor, keys: Tensor, first: int) -> None:
    """Fills in the cosines (Q, C) of those candidates (Q, C) that are among the keys; the first is `first`."""
    shared: tuple[Any, ...] = (as_array(keys.contiguous()), first)
    run(lambda *parts: _fill_similarities(*parts, *shared), cosines, candidates.contiguous(), queries.contiguous())


pread: Any = ctypes.CDLL(None).pread if hasattr(os, "pread") else None
if pread is not None:
    pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
    pread.restype = ctypes.c_ssize_t


@jit(cache=False)  # numba does not cache what calls into the C library
def _fill_from_file(cosines: Any, candidates: Any, queries: Any, file: Any, begin: Any, first: Any, stop: Any) -> Any:
    Q, C = candidates.shape
    D = queries.shape[1]
    key, lanes = np.empty(D, np.int16), np.empty(LANES, np.float32)
    for q in range(Q):
        for c in range(C):
            place = candidates[q, c]
            if first <= place < stop:
                size = pread(file, key.ctypes, 2 * D, begin + 2 * D * (place - first))
                cosines[q, c] = _similarity(queries[q], key, lanes) if size == 2 * D else np.float32(np.nan)


def fill_from_file(
    cosines: Tensor, candidates: Tensor, queries: Tensor, file: int, offset: int, first: int, count: int
) -> None:
    """As `fill_similarities`, of `count` keys in bfloat16 that lie in a file from `offset` bytes on.

    Unlike those of a mapped file, they do not stay in the memory of the process.
    """
    shared: tuple[Any, ...] = (file, offset, first, first + count)
    run(lambda *parts: _fill_from_file(*parts, *shared), cosines, candidates.contiguous(), queries.contiguous())


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
    """Writes states (B, T, D) float32, normalised, into keys (N, D) bfloat16 at their places (B, T); -1 is none."""
    if not states.is_contiguous():
        states, places = states.transpose(0, 1), places.transpose(0, 1)  # as torch.nn.LSTM returns them
    shared: tuple[Any, ...] = (as_array(keys),)
    run(lambda *parts: _store_keys(*parts, *shared), states.contiguous(), places.contiguous())


def nearest_of_scores(
    scores: Tensor, queries: Tensor, keys: Tensor, usable: Tensor, slack: float, neighbours: int
) -> tuple[Tensor, Tensor]:
    """What `nearest` of nearest_lle.py returns, from scores (Q, N) that err by `slack` / 2 at most."""
    similarity = torch.zeros(len(queries), neighbours)
    index = torch.full((len(queries), neighbours), -1)
    shared: tuple[Any, ...] = (as_array(keys.contiguous()), usable.numpy(), np.float32(slack))
    run(lambda *parts: _nearest(*parts, *shared), scores.contiguous(), queries.contiguous(), similarity, index)
    return similarity, index
