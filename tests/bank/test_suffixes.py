"""Suffixes: which entries are found after the same tokens, by the kernel and without it, in any segments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lle.bank import suffixes as module
from modeling_lle.bank.suffixes import Suffixes, Texts

Found = list[tuple[int, ...]]


def make_texts(seed: int, first_id: int = 0) -> Texts:
    """A few texts of three types of tokens, some of them forgotten, of which four in five make entries."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 12, (4,), generator=generator)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    tokens = torch.randint(-1, 3, (int(starts[-1]),), generator=generator, dtype=torch.int32)
    chosen = (torch.rand(len(tokens), generator=generator) < 0.8) & (tokens >= 0)
    positions = chosen.nonzero()[:, 0]
    counts = torch.randint(1, 3, (len(positions),), generator=generator, dtype=torch.int32)
    return Texts(tokens, starts, positions, torch.arange(len(positions)) + first_id, counts)


def by_definition(parts: list[Texts], context: list[int], longest: int, neighbours: int, most: int) -> Found:
    """Lengths, kinds, counts, outcomes and newest ids of the matches of a context, whose last token comes first."""
    alike = []  # (length, outcome, id, count)
    for texts in parts:
        columns = (column.tolist() for column in (texts.positions, texts.ids, texts.counts))
        for place, number, count in zip(*columns, strict=True):
            begin = int(texts.starts[(texts.starts <= place).nonzero()[-1]])
            before, length = texts.tokens[begin:place].flip(0).tolist(), 0
            while length < min(longest, len(before), len(context)) and before[length] == context[length] >= 0:
                length += 1
            alike.append((length, int(texts.tokens[place]), number, count))
    found: Found = []
    for length in range(longest, 0, -1):
        if sum(entry[0] >= length for entry in alike) > most:
            break
        kinds = len({entry[1] for entry in alike if entry[0] >= length})
        own: dict[int, tuple[int, int]] = {}
        for _, outcome, number, count in (entry for entry in alike if entry[0] == length):
            total, newest = own.get(outcome, (0, -1))
            own[outcome] = total + count, max(newest, number)
        groups = sorted(own.items(), key=lambda item: item[1], reverse=True)
        found += [(length, kinds, count, outcome, newest) for outcome, (count, newest) in groups]
    return found[:neighbours]


@pytest.mark.parametrize("way", ["kernel", "torch"])
@given(
    seeds=st.lists(st.integers(0, 999), max_size=3),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 9), st.sampled_from([3, 1000])),
    contexts=st.lists(st.lists(st.integers(-1, 3), min_size=6, max_size=6), min_size=1, max_size=8),
)
@settings(deadline=None, max_examples=40)
def test_the_longest_are_found_with_their_counts(
    way: str, seeds: list[int], sizes: tuple[int, int, int], contexts: list[list[int]]
) -> None:
    if way == "kernel":
        pytest.importorskip("numba")
    longest, neighbours, most = sizes
    parts = [make_texts(seed, 100 * number) for number, seed in enumerate(seeds)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST", most)
        if way == "torch":
            patch.setattr(module, "takes_numba", lambda tensor: False)
        found = Suffixes(parts, longest).find(torch.tensor(contexts, dtype=torch.int32), neighbours)
        again = Suffixes(parts[::-1], longest).find(torch.tensor(contexts, dtype=torch.int32), neighbours)
    columns = [getattr(found, name) for name in found.__dataclass_fields__]
    assert all(torch.equal(column, getattr(again, name)) for name, column in vars(found).items())
    for row, context in enumerate(contexts):
        expected = by_definition(parts, context, longest, neighbours, most)
        blank = [(0, 0, 0, 0, -1)] * (neighbours - len(expected))
        assert list(zip(*(column[row].tolist() for column in columns), strict=True)) == expected + blank


def test_a_part_is_sorted_once() -> None:
    texts = make_texts(3)
    assert Suffixes([texts], 4).ends is texts.sorted(4).ends
    assert texts.sorted(4) is texts.sorted(4) is not texts.sorted(5)
    with pytest.raises(ValueError, match="at least one token"):
        Suffixes([texts], 0)
