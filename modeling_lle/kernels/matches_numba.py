"""Numba kernel of the exact matches: reads tokens into a ring buffer, and finds the longest matches of each position.

Notable: no table of hashes is kept. A single token looks for its earlier occurrences in one pass over the tokens, 64
at once; the tokens of a longer segment follow chains of equal tokens, which one pass makes. Imported on first use;
the fallback is in history/matches.py. Shapes: B batch, T time, C slots of the buffer, K matches.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, sizes
from .numba_tools import LANES, jit, run

CHAINED = 8  # tokens of a segment from which on chains cost less than passes


@jit()
def _length(tokens: Any, room: Any, here: Any, there: Any, back: Any, longest: Any) -> Any:
    """How many tokens before and at two slots are alike; at most `back` before the second one exist."""
    length, most = 0, min(longest, back + 1)
    while length < most:
        token = tokens[here]
        if token < 0 or token != tokens[there]:
            break
        length += 1
        here = here - 1 if here > 0 else room - 1
        there = there - 1 if there > 0 else room - 1
    return length


@jit()
def _take(
    number: Any, tokens: Any, usable: Any, count: Any, room: Any, longest: Any, found: Any, lengths: Any, seen: Any
) -> None:
    """Notes the match that ends at token `number`, if its next token may be recalled."""
    there = number % room
    if not usable[there + 1 if there + 1 < room else 0]:
        return
    length = _length(tokens, room, (count - 1) % room, there, number, longest)
    place = seen[0]
    found[place], lengths[place] = number, length
    seen[0] += 1
    seen[length] += 1


@jit()
def _find_by_pass(
    tokens: Any, usable: Any, count: Any, window: Any, room: Any, longest: Any, K: Any, found: Any, lengths: Any,
    seen: Any,
) -> None:  # fmt: skip
    token, last = tokens[(count - 1) % room], count - 1
    oldest = max(0, last - window)
    stop = last  # numbers below this one are still to be looked at
    while stop > oldest and seen[longest] < K:
        end = (stop - 1) % room + 1  # slots [begin, end) hold consecutive numbers up to stop - 1
        begin = max(0, end - (stop - oldest), end - LANES)
        equal = np.int32(0)  # as wide as a token, so that the loop vectorises
        for slot in range(begin, end):
            equal |= np.int32(tokens[slot] == token)
        if equal:
            for slot in range(end - 1, begin - 1, -1):
                if tokens[slot] == token and seen[longest] < K:
                    number = stop - (end - slot)
                    _take(number, tokens, usable, count, room, longest, found, lengths, seen)
        stop -= end - begin


@jit()
def _find_by_chain(
    chain: Any, tokens: Any, usable: Any, count: Any, window: Any, room: Any, longest: Any, K: Any, found: Any,
    lengths: Any, seen: Any,
) -> None:  # fmt: skip
    last = count - 1
    number = chain[last % room]
    while number >= 0 and last - number <= window and seen[longest] < K:
        _take(number, tokens, usable, count, room, longest, found, lengths, seen)
        number = chain[number % room]


@jit()
def _choose(found: Any, lengths: Any, seen: Any, longest: Any, last: Any, usable: Any, tokens: Any, room: Any,
            length_out: Any, age_out: Any, outcome_out: Any) -> None:  # fmt: skip
    """Writes the longest of the matches, of equal ones the newest; they were found from the newest on."""
    K, total = len(length_out), 0
    least = longest
    while least > 1 and total + seen[least] < K:
        total += seen[least]
        least -= 1
    free, place = K - total, 0  # of the shortest ones as many as are free
    for n in range(seen[0]):
        length = lengths[n]
        if length < least or (length == least and free == 0):
            continue
        free -= length == least
        length_out[place], age_out[place] = length, last - found[n]
        outcome_out[place] = tokens[(found[n] + 1) % room]
        place += 1
        if place == K:
            break


@jit()
def _read(
    tokens: Any, usable: Any, count: Any, given: Any, known: Any, real: Any, lengths: Any, ages: Any, outcomes: Any,
    window: Any, longest: Any, types: Any,
) -> None:  # fmt: skip
    T, K = given.shape[1], lengths.shape[2]
    C, room = tokens.shape[1], window + longest
    found, own = np.empty(min(window, C) + 1, np.int64), np.empty(min(window, C) + 1, np.int64)
    seen = np.zeros(longest + 1, np.int64)  # [0]: all matches; [l]: those of length l
    chained = types > 0
    chain, heads = np.empty(C if chained else 0, np.int64), np.empty(types, np.int64)
    for b in range(len(given)):
        if chained:
            heads[:] = -1
            for number in range(max(0, count[b] - room), count[b]):
                token = tokens[b, number % room]
                if token >= 0:
                    chain[number % room] = heads[token]
                    heads[token] = number
        for t in range(T):
            if not real[b, t]:
                continue
            token, last = given[b, t], count[b]
            slot = last % room
            tokens[b, slot], usable[b, slot] = token, known[b, t]
            count[b] += 1
            if token < 0:
                continue
            seen[:] = 0
            parts = tokens[b], usable[b], last + 1, window, room, longest, K, found, own, seen
            if chained:
                chain[slot] = heads[token]
                heads[token] = last
                _find_by_chain(chain, *parts)
            else:
                _find_by_pass(*parts)
            if seen[0]:
                _choose(found, own, seen, longest, last, usable[b], tokens[b], room,
                        lengths[b, t], ages[b, t], outcomes[b, t])  # fmt: skip


def read_matches(
    tokens: Tensor,
    usable: Tensor,
    count: Tensor,
    given: Tensor,
    known: Tensor,
    real: Tensor,
    window: int,
    longest: int,
    neighbours: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reads a segment into the buffer of `Matches`, in place, and returns lengths, ages and outcomes (B, T, K) int64.

    Args:
        tokens: (B, C) int32, token n of a row in slot n % (window + longest), -1 for one that equals none.
        usable: (B, C) bool, whether that token may be recalled.
        count: (B,) int64, tokens of each row.
        given: (B, T) int32, the tokens of the segment, which the buffer has room for.
        known: (B, T) bool, whether they may be recalled.
        real: (B, T) bool, False at padding.
        window: The largest age of a match.
        longest: Tokens of a match that are counted.
        neighbours: K.
    """
    (B, C), (_, T) = sizes(tokens, "tokens (B, C)", 2), sizes(given, "given (B, T)", 2)
    expect(tokens, "tokens (B, C)", (B, C), torch.int32, in_place=True)
    expect(usable, "usable (B, C)", (B, C), torch.bool, in_place=True)
    expect(count, "count (B,)", (B,), torch.int64, in_place=True)
    expect(given, "given (B, T)", (B, T), torch.int32)
    for part, name in ((known, "known (B, T)"), (real, "real (B, T)")):
        expect(part, name, (B, T), torch.bool)
    if min(window, longest, neighbours) < 1 or (int(count.max()) + T > C and window + longest > C):
        raise ValueError(f"a buffer of {C} slots has no room for {T} tokens after {int(count.max())}")
    lengths, ages, outcomes = torch.zeros(3, B, T, neighbours, dtype=torch.int64)
    types = 0 if T < CHAINED else 1 + max(int(tokens.max()), int(given.max()), 0)
    parts = tokens, usable, count, given.contiguous(), known.contiguous(), real.contiguous(), lengths, ages, outcomes
    run(lambda *parts: _read(*parts, window, longest, types), *parts)
    return lengths, ages, outcomes
