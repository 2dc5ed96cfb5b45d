"""Sources of the history: each recalls entries for given states, and keeps what calibration and explanation need.

Notable: a source is the only place that knows where its entries come from; `Prediction` and `Calibration` treat all of
them alike. Shapes: B batch, T time, D width, N entries, n predictions, E source sentences, K candidates.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..bank.found import Found
from ..common.precision import outside_autocast
from ..configuration import BankConfig, MatchesConfig, StreamConfig
from ..kernels.linear import linear
from .attachment import Attachment
from .matches import Matched, Matches
from .rule import Recall, kernel, log_age, recall_bank, recall_stream
from .stream import Block, Stream

STREAM, MATCHES, BANK, BANK_MATCHES = "stream", "matches", "bank", "bank_matches"
MORE = ("agreement", "success", "match", "continuation", "length")  # of matches, and of the pairs of a memory


@dataclass
class Evidence:
    """The entries that a source offers to n predictions, before its numbers are applied.

    Attributes:
        similarity: (n, N) float32, cosines, or lengths of matches as shares of the longest.
        log_age: (n, N) float32, or None for entries without age.
        log_count: (n, N) float32, logarithm of how often each entry occurred, or None for once.
        valid: (n, N) bool, whether the position may recall the entry.
        hit: (n, N) bool, whether the entry's outcome is the target.
        more: What else is known of the entries, by the names of `MORE`, (n, N) float32 each, at most 1.
    """

    similarity: Tensor
    log_age: Tensor | None
    log_count: Tensor | None
    valid: Tensor
    hit: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)

    def recall(self, sharpness: Tensor, recency: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        """Mass and probability of the target, (n,) float32 each; `more` are the numbers of `MORE`."""
        scores = kernel(self.similarity, self.log_age, sharpness, recency)
        for name, number in zip(MORE, more, strict=True):
            scores = scores + number * (self.more[name] - 1) if name in self.more else scores
        scores = scores if self.log_count is None else scores + self.log_count
        recall = Recall.from_scores(scores[:, None], self.valid[:, None], self.hit.long()[:, None])
        return recall.mass[:, 0], recall.probability(torch.ones_like(recall.mass, dtype=torch.long))[:, 0]

    def select(self, keep: Tensor) -> "Evidence":
        """The positions where `keep` (n,) bool."""
        return self._map(lambda column: column[keep])

    @classmethod
    def join(cls, parts: list["Evidence"]) -> "Evidence":
        """The positions of all parts, their entries padded to one width."""
        width = max(part.valid.shape[1] for part in parts)
        padded = [
            part._map(lambda column: torch.nn.functional.pad(column, (0, width - column.shape[1]))) for part in parts
        ]
        columns = zip(*(part._columns() for part in padded), strict=True)
        joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
        joined.append({name: torch.cat([part.more[name] for part in padded]) for name in padded[0].more})
        return cls(*joined)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Evidence":
        changed: list[Any] = [None if column is None else change(column) for column in self._columns()]
        changed.append({name: change(column) for name, column in self.more.items()})
        return Evidence(*changed)

    def _columns(self) -> list[Tensor | None]:
        return [self.similarity, self.log_age, self.log_count, self.valid, self.hit]


class Recalled(Protocol):
    """The entries that a source recalls for a block of B x T predictions.

    Attributes:
        source: The name of the source.
        recall: Weights, outcomes and mass by the kernel.
        gate: Bias, and weights of mass, entropy and largest log probability.
    """

    source: str
    recall: Recall
    gate: Sequence[float]

    def evidence(self, row: Tensor, column: Tensor, targets: Tensor) -> Evidence:
        """The evidence for n predictions, at (row, column), (n,) int64 each, of the targets (n,) int64."""
        ...

    def identities(self) -> Tensor:
        """(B, T, N) int64, ages of entries of the text, ids of those of a bank; -1 where a bank has none."""
        ...


class Source(Protocol):
    """Recalls entries for states.

    Attributes:
        name: "stream", "matches", "bank" or "bank_matches".
    """

    name: str

    def recall(self, states: Tensor, features: Tensor) -> Recalled:
        """The entries for a block of states (B, T, D), whose base predictions have the `base_features` (B, T, 2)."""
        ...


@dataclass
class StreamRecalled:
    """`Recalled` from the entries of a block of the stream."""

    block: Block
    recall: Recall
    gate: Sequence[float]
    source: str = STREAM

    def evidence(self, row: Tensor, column: Tensor, targets: Tensor) -> Evidence:
        """See `Recalled.evidence`."""
        return Evidence(
            similarity=self.block.similarity()[row, column].float(),
            log_age=log_age(self.block.age[row, column]),
            log_count=None,
            valid=self.block.valid[row, column],
            hit=self.block.outcomes[row] == targets[:, None],
        )

    def identities(self) -> Tensor:
        """The ages of the entries, 1 for the newest."""
        return self.block.age


class StreamSource:
    """The stream of the text that is being read.

    Args:
        stream: The ring buffer.
        numbers: Its section of the configuration.
    """

    name = STREAM

    def __init__(self, stream: Stream, numbers: StreamConfig) -> None:
        self.stream, self.numbers = stream, numbers
        self._block: Block | None = None

    def blocks(
        self, states: Tensor, outcomes: Tensor | None, mask: Tensor | None, size: int, first: int = 0
    ) -> Iterator[slice]:
        """The positions of each block of a segment, which `recall` is for; see `Stream.read`."""
        for block in self.stream.read(states, outcomes, mask, size, first):
            self._block = block
            yield block.positions

    def recall(self, states: Tensor, features: Tensor) -> StreamRecalled:
        """See `Source.recall`; the block is the newest of `blocks`."""
        assert self._block is not None
        numbers = self.numbers
        return StreamRecalled(
            self._block, recall_stream(self._block, numbers.sharpness, numbers.recency), numbers.gate
        )

    def step(
        self, states: Tensor, outcomes: Tensor | None, logits: Tensor, matches: "MatchSource | None" = None
    ) -> Tensor:
        """Takes in one position of each row, and returns log P of every token after it.

        Args:
            states: (B, 1, D) floating, without gradients, on a CPU with numba.
            outcomes: (B, 1) int64, as in `Stream.read`.
            logits: (B, 1, V) floating, of the base, which may be overwritten.
            matches: The only other source.

        Returns:
            (B, 1, V) float32: what `Prediction.distribution` gives.
        """
        from ..kernels.mixture_numba import mix_step

        found: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        of_matches: tuple[float, ...] = ()
        if matches is not None:
            found, of_matches = matches.step(outcomes, states)
            if outcomes is not None and int(outcomes.max()) < 0:
                outcomes = None  # for the stream, which makes no entry of them, in less time
        queries, stream, numbers = self.stream.step(states, outcomes), self.stream, self.numbers
        assert stream.keys is not None
        similarity = torch.zeros(stream.keys.shape[:2])
        for row, used in enumerate(stream.count.clamp(max=similarity.shape[1]).tolist()):
            similarity[row, :used] = linear(queries[row], stream.keys[row, :used])
        parts = logits.float().contiguous()[:, 0], similarity, stream.outcomes, stream.count, stream.window
        return mix_step(*parts, numbers.sharpness, numbers.recency, numbers.gate, found, of_matches)[:, None]


@dataclass
class MatchesRecalled:
    """`Recalled` from exact matches."""

    found: Matched
    similarity: Tensor
    agreement: Tensor
    recall: Recall
    gate: Sequence[float]
    source: str = MATCHES

    def evidence(self, row: Tensor, column: Tensor, targets: Tensor) -> Evidence:
        """See `Recalled.evidence`."""
        return Evidence(
            similarity=self.similarity[row, column],
            log_age=log_age(self.found.ages[row, column]),
            log_count=None,
            valid=self.found.lengths[row, column] > 0,
            hit=self.found.outcomes[row, column] == targets[:, None],
            more={
                "agreement": self.agreement[row, column],
                "success": self.found.success[row, column][:, None].expand(-1, self.agreement.shape[-1]),
            },
        )

    def identities(self) -> Tensor:
        """The ages of the matches in tokens; 0 where there is none."""
        return self.found.ages


def tokens_of(entries: Tensor | None, shape: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """The tokens of a segment (B, T) int64, and which of them may be recalled (B, T) bool.

    Args:
        entries: (B, T) int64, `-1 - token` for one that is not to be recalled; None: it has none, and matches nothing.
        shape: (B, T), of the segment.
        device: Where it is.
    """
    if entries is None:
        nothing = torch.full(shape, -1, dtype=torch.long, device=device)
        return nothing, nothing >= 0
    given = entries >= 0
    return torch.where(given, entries, -1 - entries), given


class MatchSource:
    """The longest exact matches of the last tokens in the text that is being read.

    Args:
        matches: The tokens of the text.
        numbers: Its section of the configuration.
    """

    name = MATCHES

    def __init__(self, matches: Matches, numbers: MatchesConfig) -> None:
        self.matches, self.numbers = matches, numbers
        self._found: Matched | None = None

    def read(self, entries: Tensor | None, mask: Tensor | None, shape: torch.Size, device: torch.device) -> Matched:
        """Takes in a segment, and returns the matches of its positions.

        Args:
            entries, shape, device: As in `tokens_of`.
            mask: (B, T) bool, False at padding; None for none.
        """
        return self.matches.read(*tokens_of(entries, shape, device), mask, self.numbers.neighbours)

    def blocks(
        self, entries: Tensor | None, mask: Tensor | None, states: Tensor, blocks: Iterable[slice]
    ) -> Iterator[slice]:
        """The positions of each block of a segment, which `recall` is for; it is taken in with the first one.

        Args:
            entries, mask: As in `read`.
            states: (B, T, D), of the segment.
            blocks: Positions of the blocks.
        """
        found = self.read(entries, mask, states.shape[:2], states.device)
        for positions in blocks:
            self._found = found.at(positions)
            yield positions

    def step(
        self, entries: Tensor | None, states: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], tuple[float, ...]]:
        """Takes in one position of each row; returns what `mix_step` takes: the matches, and the numbers."""
        found, own = self.read(entries, None, states.shape[:2], states.device), self.numbers
        parts = found.lengths[:, 0], found.ages[:, 0], found.outcomes[:, 0], found.success[:, 0]
        return parts, (*own.gate, own.longest, own.sharpness, own.recency, own.agreement, own.success)

    @outside_autocast
    def recall(self, states: Tensor, features: Tensor) -> MatchesRecalled:
        """See `Source.recall`; the block is the newest of `blocks`."""
        assert self._found is not None
        found, numbers = self._found, self.numbers
        similarity, agreement = found.lengths.float() / numbers.longest, found.agreement()
        scores = kernel(similarity, log_age(found.ages), numbers.sharpness, numbers.recency)
        scores += numbers.agreement * (agreement - 1) + numbers.success * (found.success[..., None] - 1)
        recall = Recall.from_scores(scores, found.lengths > 0, found.outcomes)
        return MatchesRecalled(found, similarity, agreement, recall, numbers.gate)


@dataclass
class FoundRecalled:
    """`Recalled` from the nearest entries of a bank."""

    found: Found
    recall: Recall
    gate: Sequence[float]
    source: str = BANK

    def evidence(self, row: Tensor, column: Tensor, targets: Tensor) -> Evidence:
        """See `Recalled.evidence`."""
        counts = self.found.counts[row, column]
        return Evidence(
            similarity=self.found.similarity[row, column],
            log_age=None,
            log_count=counts.clamp(min=1).log(),
            valid=counts > 0,
            hit=self.found.outcomes[row, column] == targets[:, None],
        )

    def identities(self) -> Tensor:
        """The ids of the entries, -1 where there is none."""
        return self.found.ids


class BankSource:
    """The nearest entries of a bank; none where the base is certain (`skip_above`).

    Args:
        attachment: The bank and its namespaces, pinned to one state of it.
        numbers: The bank's section of the configuration.
    """

    name = BANK

    def __init__(self, attachment: Attachment, numbers: BankConfig) -> None:
        self.attachment, self.numbers = attachment, numbers

    def recall(self, states: Tensor, features: Tensor) -> FoundRecalled:
        """See `Source.recall`."""
        numbers = self.numbers
        asked = (features[..., 1].exp() < numbers.skip_above) | (numbers.skip_above >= 1)
        queries = nn.functional.normalize(states[asked].float(), dim=-1)
        nearest = self.attachment.search(queries, numbers.neighbours, numbers.search)

        def placed(values: Tensor, blank: int) -> Tensor:
            whole = values.new_full((*asked.shape, numbers.neighbours), blank, device=states.device)
            whole[asked] = values.to(states.device)
            return whole

        found = Found(
            placed(nearest.similarity, 0),
            placed(nearest.ids, -1),
            placed(nearest.outcomes, 0),
            placed(nearest.counts, 0),
        )
        recall = recall_bank(found.similarity, found.outcomes, found.counts, numbers.sharpness)
        return FoundRecalled(found, recall, numbers.gate)
