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
    number: Any, tokens: Any, usable: Any, last: Any, room: Any, longest: Any, lengths: Any, ages: Any, outcomes: Any,
    found: Any,
) -> None:  # fmt: skip
    """Notes the match that ends at token `number`, unless a longer one is known, or K newer ones as long.

    `found` holds the length of the longest match, and how many are noted.
    """
    there = number % room
    following = there + 1 if there + 1 < room else 0
    if not usable[following]:
        return
    length = _length(tokens, room, last % room, there, number, longest)
    if length > found[0]:
        found[0], found[1] = length, 0
    if length == found[0] and found[1] < len(lengths):
        place = found[1]
        lengths[place], ages[place], outcomes[place] = length, last - number, tokens[following]
        found[1] += 1


@jit()
def _find_by_pass(
    tokens: Any, usable: Any, last: Any, window: Any, room: Any, longest: Any, lengths: Any, ages: Any, outcomes: Any,
    found: Any,
) -> None:  # fmt: skip
    token, oldest, stop, K = tokens[last % room], max(0, last - window), last, len(lengths)
    while stop > oldest and not (found[0] == longest and found[1] == K):  # numbers below `stop` are still to be seen
        end = (stop - 1) % room + 1  # slots [begin, end) hold consecutive numbers up to stop - 1
        begin = max(0, end - (stop - oldest), end - LANES)
        equal = np.int32(0)  # as wide as a token, so that the loop vectorises
        for slot in range(begin, end):
            equal |= np.int32(tokens[slot] == token)
        if equal:
            for slot in range(end - 1, begin - 1, -1):
                if tokens[slot] == token:
                    number = stop - (end - slot)
                    _take(number, tokens, usable, last, room, longest, lengths, ages, outcomes, found)
        stop -= end - begin


@jit()
def _find_by_chain(
    chain: Any, tokens: Any, usable: Any, last: Any, window: Any, room: Any, longest: Any, lengths: Any, ages: Any,
    outcomes: Any, found: Any,
) -> None:  # fmt: skip
    number, K = chain[last % room], len(lengths)
    while number >= 0 and last - number <= window and not (found[0] == longest and found[1] == K):
        _take(number, tokens, usable, last, room, longest, lengths, ages, outcomes, found)
        number = chain[number % room]


@jit()
def _judge(named: Any, token: Any, success: Any, kept: Any) -> Any:
    """The success after a token, of which the outcomes of the matches before it were `named`."""
    right, known = 0, 0
    for k in range(len(named)):
        if named[k] >= 0:
            known += 1
            right += np.int64(named[k] == token)
    return success if known == 0 else np.float32(kept * success + (1 - kept) * right / known)


@jit()
def _read(
    tokens: Any, usable: Any, count: Any, named: Any, success: Any, given: Any, known: Any, real: Any, lengths: Any,
    ages: Any, outcomes: Any, successes: Any, window: Any, longest: Any, types: Any, kept: Any,
) -> None:  # fmt: skip
    T, C, room = given.shape[1], tokens.shape[1], window + longest
    chained = types > 0
    chain, heads = np.empty(C if chained else 0, np.int64), np.empty(types, np.int64)
    found = np.zeros(2, np.int64)
    for b in range(len(given)):
        if chained:
            heads[:] = -1
            for number in range(max(0, count[b] - room), count[b]):
                token = tokens[b, number % room]
                if token >= 0:
                    chain[number % room] = heads[token]
                    heads[token] = number
        for t in range(T):
            successes[b, t] = success[b]
            if not real[b, t]:
                continue
            token, last = given[b, t], count[b]
            if known[b, t] and token >= 0:
                success[b] = _judge(named[b], token, success[b], kept)
                successes[b, t] = success[b]
            named[b] = -1
            slot = last % room
            tokens[b, slot], usable[b, slot] = token, known[b, t]
            count[b] += 1
            if token < 0:
                continue
            found[:] = 0
            length, age, outcome = lengths[b, t], ages[b, t], outcomes[b, t]
            if chained:
                chain[slot] = heads[token]
                heads[token] = last
                _find_by_chain(chain, tokens[b], usable[b], last, window, room, longest, length, age, outcome, found)
            else:
                _find_by_pass(tokens[b], usable[b], last, window, room, longest, length, age, outcome, found)
            for part in (length, age, outcome):
                part[found[1] :] = 0  # of shorter matches that were noted first
            named[b, : found[1]] = outcome[: found[1]]


def read_matches(
    tokens: Tensor,
    usable: Tensor,
    count: Tensor,
    named: Tensor,
    success: Tensor,
    given: Tensor,
    known: Tensor,
    real: Tensor,
    window: int,
    longest: int,
    neighbours: int,
    kept: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reads a segment into the buffer of `Matches`, in place.

    Args:
        tokens: (B, C) int32, token n of a row in slot n % (window + longest), -1 for one that equals none.
        usable: (B, C) bool, whether that token may be recalled.
        count: (B,) int64, tokens of each row.
        named: (B, K) int64, outcomes of the matches of the last position, -1 for none.
        success: (B,) float32, how often matches were right.
        given: (B, T) int32, the tokens of the segment, which the buffer has room for.
        known: (B, T) bool, whether they may be recalled.
        real: (B, T) bool, False at padding.
        window: The largest age of a match.
        longest: Tokens of a match that are counted.
        neighbours: K.
        kept: Share of the success that stays where matches are put to the test.

    Returns:
        Lengths, ages and outcomes (B, T, K) int64, and the success after each position (B, T) float32.
    """
    (B, C), (_, T) = sizes(tokens, "tokens (B, C)", 2), sizes(given, "given (B, T)", 2)
    expect(tokens, "tokens (B, C)", (B, C), torch.int32, in_place=True)
    expect(usable, "usable (B, C)", (B, C), torch.bool, in_place=True)
    expect(count, "count (B,)", (B,), torch.int64, in_place=True)
    expect(named, "named (B, K)", (B, neighbours), torch.int64, in_place=True)
    expect(success, "success (B,)", (B,), torch.float32, in_place=True)
    expect(given, "given (B, T)", (B, T), torch.int32)
    for part, name in ((known, "known (B, T)"), (real, "real (B, T)")):
        expect(part, name, (B, T), torch.bool)
    if min(window, longest, neighbours) < 1 or (int(count.max()) + T > C and window + longest > C):
        raise ValueError(f"a buffer of {C} slots has no room for {T} tokens after {int(count.max())}")
    (lengths, ages, outcomes), successes = torch.zeros(3, B, T, neighbours, dtype=torch.int64), torch.zeros(B, T)
    types = 0 if T < CHAINED else 1 + max(int(tokens.max()), int(given.max()), 0)
    text = (part.contiguous() for part in (given, known, real))
    parts = tokens, usable, count, named, success, *text, lengths, ages, outcomes, successes
    shared = window, longest, types, kept
    run(lambda *parts, shared=shared: _read(*parts, *shared), *parts)
    return lengths, ages, outcomes, successes
