"""Candidates: the entries of the sentence pairs that suit a sentence, and how far a translation follows each of them.

    kernel     l_i = sharpness * (h . k_i - 1) + match * (f_i - 1) + continuation * (c_i - 1) + length * (n_i - 1)

where f_i is the fuzzy match score of the pair of entry i, n_i how many of the last tokens of the translation stand
before the entry in its pair too, as a share of `LONGEST`, and c_i whether any does. A pair that has been followed so
far is followed further, so that a similar translation is copied, until its keys or the base say something else.

Beside them each position recalls the entries of all pairs that are nearest to its state, as in kNN-MT (Khandelwal et
al. 2021, arXiv:2010.00710), with f_i = c_i = n_i = 0 unless they are candidates: for a sentence without a similar pair
the memory still knows the words. Shapes: E sources, B = E * R targets, R of each source side by side, T time, D width,
K candidates, n nearest entries.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..bank.protocol import Search, Snapshot
from ..common.precision import outside_autocast
from ..configuration import BankConfig
from ..kernels.available import fused
from .cache import LLECache
from .rule import Recall, kernel
from .source import BANK, Evidence

LONGEST = 6  # tokens of a context that are counted
NOT_BEGUN = -1  # in place of a length
UNKNOWN, ANOTHER = -1, -2  # tokens that equal none, nor each other
NOWHERE = -1  # in place of the entry before the first one of a pair, and of ids where there is no entry


@dataclass
class Others:
    """The entries of the whole memory, of which each position recalls the nearest.

    Attributes:
        state: The state of the bank that is searched.
        namespaces: Where; None: everywhere.
        neighbours: Number of entries that are recalled, n.
        search: How they are found, as in `Bank.search`.
        left_out: (E, X) int64, ids of entries that a sentence may not recall, -1 for none.
    """

    state: Snapshot
    namespaces: tuple[str, ...] | None
    neighbours: int
    search: Search
    left_out: Tensor

    def find(self, queries: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The entries nearest to normalised queries (B, T, D), without those that are candidates already.

        Args:
            queries: Those of the targets of a sentence lie one after another.
            known: (E, K) int64, ids of the candidates of each sentence, -1 for none.

        Returns:
            Cosines float32, ids and outcomes int64, (B, T, n) each; an id is -1 where there is no entry.
        """
        found = self.state.search(queries.flatten(0, 1), self.neighbours, self.namespaces, self.search)
        parts = (part.to(queries.device) for part in (found.similarity, found.ids, found.outcomes))
        similarity, ids, outcomes = (part.view(*queries.shape[:2], self.neighbours) for part in parts)
        taken = torch.cat([known, self.left_out.to(known.device)], dim=1).sort(dim=1).values
        if taken.shape[1]:
            own = ids.reshape(len(known), -1)  # all of a sentence
            place = torch.searchsorted(taken, own).clamp(max=taken.shape[1] - 1)
            ids = own.masked_fill(taken.gather(1, place) == own, NOWHERE).view_as(ids)
        return similarity, ids, outcomes


@dataclass
class Candidates:
    """The entries that each sentence may recall.

    Attributes:
        keys: (E, D, K) float32, normalised.
        outcomes: (E, K) int64, target tokens.
        ids: (E, K) int64, ids of the entries, -1 where there is none; entries come first.
        before: (E, K) int64, the place of the entry before each one in its pair, -1 for the first of a pair.
        match: (E, K) float32, fuzzy match scores of the pairs with the sentence.
        others: The entries of all pairs; None where only candidates are recalled.
    """

    keys: Tensor
    outcomes: Tensor
    ids: Tensor
    before: Tensor
    match: Tensor
    others: Others | None = None

    def to(self, device: torch.device) -> "Candidates":
        """The same on a device."""
        names = ("keys", "outcomes", "ids", "before", "match")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def lengths(self, tokens: Tensor, mask: Tensor | None, state: Tensor) -> Tensor:
        """How many tokens a translation and the pair of each entry have in common before it, without a gap.

        Args:
            tokens: (B, T) int64, the decoder's input, the start token first; -1 for one that equals none.
            mask: (B, T) bool, False at padding; None for none.
            state: (B, K) int64, the lengths after the tokens before these; -1 where a target has not begun. Its first
                token is taken for the start, which every pair begins with.

        Returns:
            (B, T, K) int64; those of the last position are the next state.
        """
        repeats = len(tokens) // max(1, len(self.before))
        before, outcomes = (part.repeat_interleave(repeats, 0) for part in (self.before, self.outcomes))
        first, place = before < 0, before.clamp(min=0)
        said = outcomes.gather(1, place).masked_fill(first, ANOTHER)
        found = []
        for step in range(tokens.shape[1]):
            longer = (state.gather(1, place) + 1) * (said == tokens[:, step, None])
            after = torch.where(state < 0, first.long(), longer)
            state = after if mask is None else torch.where(mask[:, step, None], after, state)
            found.append(state)
        return torch.stack(found, dim=1) if found else state.new_zeros(*tokens.shape, state.shape[1])


def follow(
    candidates: Candidates | None,
    tokens: Tensor | None,
    mask: Tensor | None = None,
    cache: LLECache | None = None,
) -> Tensor | None:
    """How far targets follow each candidate of their source, (B, T, K) int64; None without candidates.

    Args:
        candidates: Those of the sources.
        tokens: (B, T) int64, as in `Candidates.lengths`, or (B, T, D) floating, embedded ones, which equal none.
        mask: (B, T) or longer, of 0 and 1, 0 at padding; None for none.
        cache: The targets so far, before the decoder reads these tokens; what comes after them goes on from here.
    """
    if candidates is None or tokens is None:
        return None
    if tokens.is_floating_point():
        tokens = tokens[..., 0].long().fill_(UNKNOWN)
    begins = cache is None or cache.seen_tokens == 0
    state = tokens.new_full((len(tokens), candidates.ids.shape[1]), NOT_BEGUN if begins else 0)
    if cache is not None and cache.followed is not None and cache.followed.shape == state.shape:
        state = cache.followed
    lengths = candidates.lengths(tokens, None if mask is None else mask[:, -tokens.shape[1] :].bool(), state)
    if cache is not None:
        cache.followed = lengths[:, -1]
    return lengths


@dataclass
class PairRecalled:
    """`Recalled` from candidates."""

    similarity: Tensor
    more: dict[str, Tensor]
    ids: Tensor
    recall: Recall
    gate: Sequence[float]
    source: str = BANK

    def evidence(self, row: Tensor, column: Tensor, targets: Tensor) -> Evidence:
        """See `Recalled.evidence`."""
        return Evidence(
            similarity=self.similarity[row, column],
            log_age=None,
            log_count=None,
            valid=self.identities()[row, column] >= 0,
            hit=self.recall.outcomes.expand(self.similarity.shape)[row, column] == targets[:, None],
            more={name: value.expand_as(self.similarity)[row, column] for name, value in self.more.items()},
        )

    def identities(self) -> Tensor:
        """The ids of the entries, -1 where there is none."""
        return self.ids.expand(self.similarity.shape)


class PairSource:
    """The candidates of sentences.

    Args:
        candidates: The entries.
        lengths: (B, T, K) int64, what `follow` returned.
        numbers: The bank's section of the configuration.
    """

    name = BANK

    def __init__(self, candidates: Candidates, lengths: Tensor, numbers: BankConfig) -> None:
        self.candidates, self.lengths, self.numbers = candidates, lengths, numbers
        self._positions = slice(None)
        self._counts = (candidates.ids >= 0).sum(1)

    def blocks(self, blocks: Iterable[slice]) -> Iterator[slice]:
        """The positions of each block, which `recall` is for."""
        for positions in blocks:
            self._positions = positions
            yield positions

    @outside_autocast
    def recall(self, states: Tensor, features: Tensor) -> PairRecalled:
        """See `Source.recall`; the B = E * R states of the targets of a sentence lie one after another."""
        own, numbers = self.candidates, self.numbers
        repeats = len(states) // len(own.keys)
        queries = nn.functional.normalize(states.float(), dim=-1)
        ids, outcomes, match = (
            part.repeat_interleave(repeats, 0)[:, None] for part in (own.ids, own.outcomes, own.match)
        )
        lengths = self.lengths[:, self._positions]
        more = {
            "match": match,
            "continuation": (lengths > 0).float(),
            "length": lengths.clamp(0, LONGEST).float() / LONGEST,
        }
        offsets = numbers.match * (match - 1) + numbers.continuation * (more["continuation"] - 1)
        offsets = offsets + numbers.length * (more["length"] - 1)
        if states.shape[1] == 1 and fused(queries):
            from ..kernels.recall_numba import recall_candidates

            parts = recall_candidates(queries[:, 0], own.keys, self._counts, offsets[:, 0], numbers.sharpness)
            similarity, weights, mass = (part[:, None] for part in parts)
            recall = Recall(weights, outcomes, mass)
        else:
            together = queries.reshape(len(own.keys), -1, queries.shape[-1])  # the beams of a sentence share its keys
            similarity = (together @ own.keys).view(*states.shape[:2], own.keys.shape[2])
            scores = kernel(similarity, None, numbers.sharpness) + offsets
            recall = Recall.from_scores(scores, ids >= 0, outcomes.expand(scores.shape))
        recalled = PairRecalled(similarity, more, ids, recall, numbers.gate)
        return recalled if own.others is None else self._with_others(recalled, own.others, queries)

    def _with_others(self, candidates: PairRecalled, others: Others, queries: Tensor) -> PairRecalled:
        """What candidates and the entries nearest to the normalised queries (B, T, D) recall together."""
        numbers, own = self.numbers, candidates.recall
        similarity, ids, outcomes = others.find(queries, self.candidates.ids)
        scores = kernel(similarity, None, numbers.sharpness) - (numbers.match + numbers.continuation + numbers.length)
        recall = own.joined(Recall.from_scores(scores, ids >= 0, outcomes))
        shape = *queries.shape[:2], -1
        nothing = torch.zeros_like(similarity)
        more = {name: torch.cat([value.expand(shape), nothing], -1) for name, value in candidates.more.items()}
        similarity = torch.cat([candidates.similarity, similarity], -1)
        return PairRecalled(similarity, more, torch.cat([candidates.ids.expand(shape), ids], -1), recall, numbers.gate)
