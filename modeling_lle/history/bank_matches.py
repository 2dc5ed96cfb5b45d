"""Exact matches in a bank: the entries that stand after the same tokens as the last ones of the text being read.

    kernel     l_i = sharpness * (length_i / longest - 1) + log(count_i / kinds_i)

where an entry i is an outcome that occurs count_i times in the bank after length_i tokens alike, and kinds_i different
outcomes occur after that many tokens alike or more. Shorter matches count beside the longest ones, as in smoothed
models of n-grams, and a context that went on in many ways counts little (Witten and Bell 1991).
Shapes: B batch, T time, D width, K matches, C tokens of a context, n predictions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bank.protocol import Snapshot
from ..bank.suffixes import Suffixes, SuffixMatches
from ..common.precision import outside_autocast
from ..configuration import BankMatchesConfig
from .attachment import Attachment
from .rule import Recall, kernel
from .source import BANK_MATCHES, Evidence, tokens_of


class LastTokens:
    """The last tokens of each row of texts that are being read.

    Args:
        number: C.

    Attributes:
        tokens: (B, C) int32, the newest last; -1 where there is none.
    """

    tensors = ("tokens",)

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens: Tensor | None = None

    def read(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Takes in a segment, and returns the last tokens at each of its positions, (B, T, C) int32, the newest first.

        Args:
            tokens: (B, T) int64; -1 for one that equals none.
            mask: (B, T) bool, False at padding, where all of them are -1; None for none.
        """
        own = tokens.int()
        if self.tokens is None:
            self.tokens = own.new_full((len(own), self.number), -1)
        if mask is not None:  # the real tokens of each row first
            own = own.gather(1, (~mask).long().argsort(dim=1, stable=True))
        windows = torch.cat([self.tokens, own], dim=1).unfold(1, self.number, 1)  # (B, T + 1, C)
        if mask is None:
            self.tokens = windows[:, -1].clone()
            return windows[:, 1:].flip(-1)
        rows, read = torch.arange(len(own), device=own.device), mask.cumsum(1)
        self.tokens = windows[rows, read[:, -1]]
        return windows[rows[:, None], read].flip(-1).masked_fill(~mask[..., None], -1)

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replaces the tokens by `change(tokens)`, to reorder, repeat or move the rows."""
        self.tokens = None if self.tokens is None else change(self.tokens)


@dataclass
class BankMatchesRecalled:
    """`Recalled` from exact matches in a bank; what was found is (B, T, K)."""

    found: SuffixMatches
    similarity: Tensor
    log_count: Tensor
    recall: Recall
    gate: Sequence[float]
    source: str = BANK_MATCHES

    def evidence(self, row: Tensor, column: Tensor, targets: Tensor) -> Evidence:
        """See `Recalled.evidence`."""
        return Evidence(
            similarity=self.similarity[row, column],
            log_age=None,
            log_count=self.log_count[row, column],
            valid=self.found.lengths[row, column] > 0,
            hit=self.found.outcomes[row, column] == targets[:, None],
        )

    def identities(self) -> Tensor:
        """The ids of the newest entries, -1 where there is none."""
        return self.found.ids


class BankMatchSource:
    """The entries of a bank after the last tokens of the text that is being read, those after the most of them first.

    Args:
        last: The last tokens of the text.
        attachment: The bank and its namespaces, pinned to one state of it; None: the text is only taken in.
        numbers: Its section of the configuration.
    """

    name = BANK_MATCHES

    def __init__(self, last: LastTokens, attachment: Attachment | None, numbers: BankMatchesConfig) -> None:
        self.last, self.attachment, self.numbers = last, attachment, numbers
        self._contexts: Tensor | None = None

    def read(self, entries: Tensor | None, mask: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
        """Takes in a segment, and returns the contexts of its positions, as `LastTokens.read`.

        Args:
            entries, mask, shape, device: As in `MatchSource.read`.
        """
        return self.last.read(tokens_of(entries, shape, device)[0], mask)

    def blocks(
        self, entries: Tensor | None, mask: Tensor | None, states: Tensor, blocks: Iterable[slice]
    ) -> Iterator[slice]:
        """The positions of each block of a segment, which `recall` is for; it is taken in with the first one.

        Args:
            entries, mask, states, blocks: As in `MatchSource.blocks`.
        """
        contexts = self.read(entries, mask, states.shape[:2], states.device)
        for positions in blocks:
            self._contexts = contexts[:, positions]
            yield positions

    @outside_autocast
    def recall(self, states: Tensor, features: Tensor) -> BankMatchesRecalled:
        """See `Source.recall`; the block is the newest of `blocks`."""
        assert self._contexts is not None
        numbers, contexts = self.numbers, self._contexts
        nearest = self._suffixes().find(contexts.flatten(0, 1), numbers.neighbours)
        shape = *contexts.shape[:2], numbers.neighbours
        found = SuffixMatches(*(column.view(shape).to(states.device) for column in vars(nearest).values()))
        similarity, valid = found.lengths.float() / numbers.longest, found.lengths > 0
        log_count = (found.counts.clamp(min=1) / found.kinds.clamp(min=1)).log()
        scores = kernel(similarity, None, numbers.sharpness) + log_count
        recall = Recall.from_scores(scores, valid, found.outcomes)
        return BankMatchesRecalled(found, similarity, log_count, recall, numbers.gate)

    def _suffixes(self) -> Suffixes:
        """Those of the namespaces, in the state of the bank that the attachment is pinned to."""
        attachment, longest = self.attachment, self.numbers.longest
        assert attachment is not None

        def make(state: Snapshot) -> Suffixes:
            return Suffixes(state.kept_texts(state.held(attachment.namespaces)), longest)

        return attachment.derived((Suffixes, longest), make)
