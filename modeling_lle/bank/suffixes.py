"""Suffixes: the entries of a bank in the order of the tokens before them, to find those after the same tokens.

Notable: a suffix array (Manber and Myers 1993) over the tokens that the texts of a bank keep, also those whose entries
were left out or merged when it was built; only entries are found. Each segment is sorted once, for all states of the
bank in which it has the same entries. The result does not depend on which segments hold the entries.
Shapes: T tokens of all texts together, N entries, Q queries, C tokens of a context, K matches.
"""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from ..common.checks import check_neighbours
from ..kernels.available import takes_numba

MOST = 65_536  # entries: a suffix that occurs more often is skipped, with those that it ends in: it says little


@dataclasses.dataclass
class Sorted:
    """Entries that follow at least one token of their text, sorted by the tokens before them, the last one first.

    Attributes:
        ends: (N,) int64, place of the last token before each entry.
        depths: (N,) int16, tokens up to there in a row that are known, at most those that were asked for.
        outcomes: (N,) int32.
        ids: (N,) int64.
        counts: (N,) int32.
    """

    ends: Tensor
    depths: Tensor
    outcomes: Tensor
    ids: Tensor
    counts: Tensor


@dataclasses.dataclass(eq=False)
class Texts:
    """Texts with their entries that can be recalled, those of one segment.

    Attributes:
        tokens: (T,) int32, the texts one after another; -1 where a token was forgotten.
        starts: (texts + 1,) int64, where each text begins in `tokens`; T at the end.
        positions: (N,) int64, ascending; the index of the outcome of each entry in `tokens`.
        ids: (N,) int64.
        counts: (N,) int32, how often each entry occurred.
    """

    tokens: Tensor
    starts: Tensor
    positions: Tensor
    ids: Tensor
    counts: Tensor
    _sorted: dict[int, Sorted] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def sorted(self, longest: int) -> Sorted:
        """The entries, sorted by the last `longest` tokens before them; done once."""
        if longest not in self._sorted:
            self._sorted[longest] = self._sort(longest)
        return self._sorted[longest]

    def _sort(self, longest: int) -> Sorted:
        place = torch.arange(len(self.tokens))
        first = torch.zeros_like(place)  # of the known tokens in a row that each place is in
        begins = self.starts[self.starts < len(place)]
        first[begins] = begins
        first = torch.where(self.tokens < 0, place + 1, first).cummax(0).values
        depths = place + 1 - first
        ends = self.positions - 1
        follows = (ends >= 0) & (first[self.positions] <= ends) & (depths[ends.clamp(min=0)] > 0)
        chosen = follows.nonzero()[:, 0]
        order = chosen[_ranks(self.tokens, depths, longest)[ends[chosen]].argsort(stable=True)]
        return Sorted(
            ends=ends[order],
            depths=depths[ends[order]].clamp(max=longest).short(),
            outcomes=self.tokens[self.positions[order]],
            ids=self.ids[order],
            counts=self.counts[order],
        )


def _ranks(tokens: Tensor, depths: Tensor, longest: int) -> Tensor:
    """Ranks (T,) int64 of the places by at least the last `longest` tokens up to them, by doubling their number."""
    ranks, width = (tokens.long() + 1).masked_fill(depths == 0, 0), 1
    while width < longest:
        before = torch.zeros_like(ranks)
        before[width:] = ranks[:-width]
        before.masked_fill_(depths <= width, 0)
        both = ranks * (int(ranks.max()) + 1 if len(ranks) else 1) + before
        ranks = (torch.unique(both, return_inverse=True)[1] + 1).masked_fill_(depths == 0, 0)
        width *= 2
    return ranks


@dataclasses.dataclass
class SuffixMatches:
    """Entries after the tokens of a context; those of one outcome after equally many of them are taken together.

    Attributes:
        lengths: (Q, K) int64, tokens that are alike, descending; 0 for no match.
        kinds: (Q, K) int64, different outcomes after that many tokens alike or more; 0 for no match.
        counts: (Q, K) int64, how often the outcome occurred after exactly that many tokens alike; 0 for no match.
        outcomes: (Q, K) int64; 0 for no match.
        ids: (Q, K) int64, of the newest of these entries; -1 for no match.
    """

    lengths: Tensor
    kinds: Tensor
    counts: Tensor
    outcomes: Tensor
    ids: Tensor

    @classmethod
    def none(cls, queries: int, neighbours: int) -> "SuffixMatches":
        """No match for any of the queries."""
        blank = torch.zeros(5, queries, neighbours, dtype=torch.long)
        blank[4] = -1
        return cls(*blank)


class Suffixes:
    """The entries of texts, to find those that stand after the same tokens.

    Args:
        texts: The texts, in parts.
        longest: Tokens before an entry that count.
    """

    def __init__(self, texts: Iterable[Texts], longest: int) -> None:
        parts = list(texts)
        if longest < 1:
            raise ValueError(f"matches need a length of at least one token, got {longest}")
        self.longest = longest
        own, shift = [part.sorted(longest) for part in parts], 0
        ends = []
        for part, entries in zip(parts, own, strict=True):
            ends.append(entries.ends + shift if shift else entries.ends)
            shift += len(part.tokens)
        self.bounds = torch.tensor([0, *(len(entries.ids) for entries in own)]).cumsum(0)  # of the parts
        self.tokens = _cat([part.tokens for part in parts], torch.int32)
        self.ends = _cat(ends, torch.int64)
        self.depths = _cat([entries.depths for entries in own], torch.int16)
        self.outcomes = _cat([entries.outcomes for entries in own], torch.int32)
        self.ids = _cat([entries.ids for entries in own], torch.int64)
        self.counts = _cat([entries.counts for entries in own], torch.int32)
        self.types = 1 + int(self.outcomes.max()) if len(self) else 0

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, contexts: Tensor, neighbours: int) -> SuffixMatches:
        """The matches of contexts: of the longest ones first, of equally long ones the most frequent, then the newest.

        Args:
            contexts: (Q, C) int32, at most `longest` tokens each, the last one first; from -1 on nothing is alike.
            neighbours: K.
        """
        check_neighbours(neighbours)
        if not len(self):
            return SuffixMatches.none(len(contexts), neighbours)
        contexts = contexts[:, : self.longest].cpu().int().contiguous()
        if takes_numba(contexts):
            from ..kernels.suffixes_numba import find_suffixes

            columns = self.tokens, self.ends, self.depths, self.outcomes, self.ids, self.counts
            return SuffixMatches(*find_suffixes(contexts, *columns, self.bounds, self.types, MOST, neighbours))
        found = SuffixMatches.none(len(contexts), neighbours)
        for number, context in enumerate(contexts):
            filled = 0
            for part in self._levels(context):
                own = part[:, : neighbours - filled]
                for name, column in zip(SuffixMatches.__dataclass_fields__, own, strict=True):
                    getattr(found, name)[number, filled : filled + own.shape[1]] = column
                filled += own.shape[1]
                if filled == neighbours:
                    break
        return found

    def _levels(self, context: Tensor) -> Iterable[Tensor]:
        """The columns of `SuffixMatches` (5, n) int64 of a context (C,), of one length after another."""
        alike = [torch.arange(len(self))]
        for back, token in enumerate(context.tolist()):
            near = alike[-1][self.depths[alike[-1]] > back]
            near = near[self.tokens[self.ends[near] - back] == token]
            if token < 0 or not len(near):
                break
            alike.append(near)
        longer = alike[0][:0]
        for length in range(len(alike) - 1, 0, -1):
            own = alike[length]
            if len(own) > MOST:
                return
            kinds = len(self.outcomes[own].unique())
            own, longer = own[~torch.isin(own, longer)], own
            outcomes, group = self.outcomes[own].unique(return_inverse=True)
            counts = torch.zeros(len(outcomes), dtype=torch.long).index_add_(0, group, self.counts[own].long())
            newest = torch.full_like(counts, -1).scatter_reduce_(0, group, self.ids[own], "amax")
            order = newest.argsort(descending=True)
            order = order[counts[order].argsort(descending=True, stable=True)]
            columns = counts[order], outcomes[order].long(), newest[order]
            yield torch.stack([torch.full_like(order, length), torch.full_like(order, kinds), *columns])


def _cat(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The parts one after another; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat([torch.zeros(0, dtype=dtype), *parts])
