"""Numba kernel of the exact matches in a bank: finds the entries that stand after the tokens of a context.

Notable: entries that are alike in more tokens lie within the range of those that are alike in fewer, so that each
range is found from the one before. Imported on first use; the fallback is in bank/suffixes.py. Shapes: Q queries,
C tokens of a context, T tokens of the texts, N entries in S sorted parts, K matches.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, expect_places, sizes
from .numba_tools import as_array, jit


@jit()
def _alike(context: Any, tokens: Any, end: Any, depth: Any) -> Any:
    """How many tokens are alike, from the last one on."""
    length, most = 0, min(depth, len(context))
    while length < most and context[length] == tokens[end - length]:
        length += 1
    return length


@jit()
def _place(context: Any, tokens: Any, ends: Any, depths: Any, begin: Any, stop: Any) -> Any:
    """The first entry of a part that does not sort before the context."""
    while begin < stop:
        middle = (begin + stop) // 2
        end, depth = ends[middle], depths[middle]
        length = _alike(context, tokens, end, depth)
        token = np.int32(-1) if length >= depth else tokens[end - length]
        if length < len(context) and token < context[length]:
            begin = middle + 1
        else:
            stop = middle
    return begin


@jit()
def _lower(context: Any, tokens: Any, ends: Any, depths: Any, begin: Any, known: Any, length: Any) -> Any:
    """The first entry from which on all up to `known` have `length` tokens alike."""
    step = 1
    while known - step >= begin and _alike(context, tokens, ends[known - step], depths[known - step]) >= length:
        known -= step
        step *= 2
    low = max(begin, known - step)
    while low < known:
        middle = (low + known) // 2
        if _alike(context, tokens, ends[middle], depths[middle]) >= length:
            known = middle
        else:
            low = middle + 1
    return known


@jit()
def _upper(context: Any, tokens: Any, ends: Any, depths: Any, known: Any, stop: Any, length: Any) -> Any:
    """The entry up to which all from `known` on have `length` tokens alike."""
    step = 1
    while known + step <= stop and _alike(context, tokens, ends[known + step - 1], depths[known + step - 1]) >= length:
        known += step
        step *= 2
    high = min(stop, known + step - 1)
    while known < high:
        middle = (known + high) // 2
        if _alike(context, tokens, ends[middle], depths[middle]) >= length:
            known = middle + 1
        else:
            high = middle
    return known


@jit()
def _take(touched: Any, about: Any, first: Any, counts: Any, outcomes: Any, ids: Any) -> Any:
    """Sorts the outcomes that were touched into the places from `first` on, and returns the end of those taken."""
    taken, K = first, len(counts)
    for outcome in touched:
        count, newest = about[outcome, 1], about[outcome, 2]
        place = taken
        while place > first and (
            counts[place - 1] < count or (counts[place - 1] == count and ids[place - 1] < newest)
        ):
            place -= 1
        if place == K:
            continue
        taken = min(K, taken + 1)
        for other in range(taken - 1, place, -1):
            counts[other], outcomes[other], ids[other] = counts[other - 1], outcomes[other - 1], ids[other - 1]
        counts[place], outcomes[place], ids[place] = count, outcome, newest
    return taken


@jit()
def _find(
    contexts: Any, tokens: Any, ends: Any, depths: Any, outcome_of: Any, id_of: Any, count_of: Any, bounds: Any,
    about: Any, most: Any, lengths: Any, kinds: Any, counts: Any, outcomes: Any, ids: Any,
) -> None:  # fmt: skip
    S, K, level = len(bounds) - 1, lengths.shape[1], 0
    low, high = np.empty(S, np.int64), np.empty(S, np.int64)
    lower, upper = np.empty(S, np.int64), np.empty(S, np.int64)
    touched = np.empty(min(most, len(about)), np.int64)
    for q in range(len(contexts)):
        context, longest = contexts[q], 0
        for s in range(S):
            place = _place(context, tokens, ends, depths, bounds[s], bounds[s + 1])
            low[s] = high[s] = place
            for near in range(max(bounds[s], place - 1), min(bounds[s + 1], place + 1)):
                longest = max(longest, _alike(context, tokens, ends[near], depths[near]))
        filled = different = 0
        for length in range(longest, 0, -1):
            places, level, number = 0, level + 1, 0
            for s in range(S):
                lower[s] = _lower(context, tokens, ends, depths, bounds[s], low[s], length)
                upper[s] = _upper(context, tokens, ends, depths, high[s], bounds[s + 1], length)
                places += upper[s] - lower[s]
            if places > most or filled == K:
                break
            for s in range(S):
                for begin, stop in ((lower[s], low[s]), (high[s], upper[s])):
                    for i in range(begin, stop):
                        own = about[outcome_of[i]]  # level, count and newest id of it, and the query that it is of
                        if own[0] != level:
                            own[0], own[1], own[2] = level, 0, -1
                            touched[number] = outcome_of[i]
                            number += 1
                            if own[3] != q + 1:
                                own[3] = q + 1
                                different += 1
                        own[1] += count_of[i]
                        own[2] = max(own[2], id_of[i])
                low[s], high[s] = lower[s], upper[s]
            end = _take(touched[:number], about, filled, counts[q], outcomes[q], ids[q])
            lengths[q, filled:end], kinds[q, filled:end] = length, different
            filled = end


def find_suffixes(
    contexts: Tensor,
    tokens: Tensor,
    ends: Tensor,
    depths: Tensor,
    outcomes: Tensor,
    ids: Tensor,
    counts: Tensor,
    bounds: Tensor,
    types: int,
    most: int,
    neighbours: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The columns of `SuffixMatches`, (Q, K) int64 each.

    Args:
        contexts: (Q, C) int32, the last token first; from -1 on nothing is alike.
        tokens: (T,) int32.
        ends, depths, outcomes, ids, counts: (N,) int64, int16, int32, int64 and int32, the columns of `Sorted`.
        bounds: (S + 1,) int64, where each sorted part begins; N at the end.
        types: All outcomes are below it.
        most: Entries alike from which on shorter suffixes are not looked at.
        neighbours: K.
    """
    (Q, C), (N,) = sizes(contexts, "contexts (Q, C)", 2), sizes(ids, "ids (N,)", 1)
    expect(contexts, "contexts (Q, C)", (Q, C), torch.int32)
    expect(tokens, "tokens (T,)", (len(tokens),), torch.int32)
    for column, name, dtype in (
        (ends, "ends (N,)", torch.int64),
        (depths, "depths (N,)", torch.int16),
        (outcomes, "outcomes (N,)", torch.int32),
        (ids, "ids (N,)", torch.int64),
        (counts, "counts (N,)", torch.int32),
    ):
        expect(column, name, (N,), dtype)
    expect(bounds, "bounds (S + 1,)", (len(bounds),), torch.int64)
    expect_places(bounds, "bounds", N + 1)
    if min(C, most, neighbours, N) < 1:
        raise ValueError(f"contexts, entries and matches should not be none; got {C}, {N} and {neighbours}")
    columns = [as_array(part) for part in (contexts, tokens, ends, depths, outcomes, ids, counts, bounds)]
    about = np.zeros((types, 4), np.int64)  # pages that no outcome is in are never made
    found = torch.zeros(5, Q, neighbours, dtype=torch.int64)
    found[4] = -1
    parts = (*columns, about, most, *found.numpy())
    _find(*parts)
    return found[0], found[1], found[2], found[3], found[4]
