"""Candidates: the entries of the sentence pairs that suit a sentence, and how far a translation follows each of them.

    kernel     l_i = sharpness * (h . k_i - 1) + match * (f_i - 1) + continuation * (c_i - 1) + length * (n_i - 1)

where f_i is the fuzzy match score of the pair of entry i, n_i how many of the last tokens of the translation stand
before the entry in its pair too, as a share of `LONGEST`, and c_i whether any does. A pair that has been followed so
far is followed further, so that a similar translation is copied, until its keys or the base say something else.
Shapes: E sources, B = E * R targets, R of each source side by side, T time, D width, K candidates.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
class Candidates:
    """The entries that each sentence may recall.

    Attributes:
        keys: (E, D, K) float32, normalised.
        outcomes: (E, K) int64, target tokens.
        ids: (E, K) int64, ids of the entries, -1 where there is none; entries come first.
        before: (E, K) int64, the place of the entry before each one in its pair, -1 for the first of a pair.
        match: (E, K) float32, fuzzy match scores of the pairs with the sentence.
    """

    keys: Tensor
    outcomes: Tensor
    ids: Tensor
    before: Tensor
    match: Tensor

    def to(self, device: torch.device) -> "Candidates":
        """The same on a device."""
        return Candidates(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

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
            valid=self.ids[row, 0] >= 0,
            hit=self.recall.outcomes[row, 0] == targets[:, None],
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
        return PairRecalled(similarity, more, ids, recall, numbers.gate)
