"""A prediction: what the base gives, what each source of the history recalls, and the mixture of any of them.

Shapes: B batch, T time, V vocabulary, N entries of the stream, K entries of the bank, S sources, n positions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .bank_matches import BankMatchesRecalled
from .cache import LLECache
from .loss import IGNORED
from .rule import base_prediction, gate, mixed_distribution, mixed_log_prob
from .source import STREAM, Evidence, MatchesRecalled, Recalled, Source
from .stream import blocks_of

BLOCK = 256  # positions that are predicted together
BLOCK_ELEMENTS = 1 << 24  # at most so many scores or log probabilities at once


def block_size(rows: int, widest: int) -> int:
    """How many positions of `rows` texts are predicted together, given the most numbers that one of them needs."""
    return max(1, min(BLOCK, BLOCK_ELEMENTS // (rows * widest)))


@dataclass
class HistoryOutput(ModelOutput):
    """Which entries moved the predictions, and by exactly how much.

    Attributes:
        base_share: (B, T) float32, the base's share of the mixture, g_0.
        shares: (B, T, N) float32, each entry's share: P(y) = base_share * p(y) + sum of the shares with outcome y.
        outcomes: (B, T, N) int64, the token that followed each entry; its share is 0 where there is no entry.
        ages: (B, T, N) int64, ages of the entries, 1 for the newest.
        matches_shares, matches_outcomes, matches_ages: (B, T, K), the same of the exact matches, if they are on; an
            age is how many tokens ago a match ended, 0 where there is none.
        matches_lengths: (B, T, K) int64, how many tokens are alike.
        bank_shares, bank_outcomes: (B, T, K), the same of the entries of the bank, if one is attached.
        bank_ids: (B, T, K) int64, ids of those entries, -1 where there is none.
        bank_matches_shares, bank_matches_outcomes, bank_matches_ids: (B, T, K), the same of the exact matches in the
            bank, if they are on; an id is that of the newest of the entries with this outcome and length.
        bank_matches_lengths, bank_matches_counts: (B, T, K) int64, how many tokens are alike, and how often the
            outcome occurs after exactly that many; 0 where there is none.
    """

    base_share: Tensor | None = None
    shares: Tensor | None = None
    outcomes: Tensor | None = None
    ages: Tensor | None = None
    matches_shares: Tensor | None = None
    matches_outcomes: Tensor | None = None
    matches_ages: Tensor | None = None
    matches_lengths: Tensor | None = None
    bank_shares: Tensor | None = None
    bank_outcomes: Tensor | None = None
    bank_ids: Tensor | None = None
    bank_matches_shares: Tensor | None = None
    bank_matches_outcomes: Tensor | None = None
    bank_matches_ids: Tensor | None = None
    bank_matches_lengths: Tensor | None = None
    bank_matches_counts: Tensor | None = None

    @classmethod
    def join(cls, parts: list["HistoryOutput"]) -> "HistoryOutput":
        """The outputs of consecutive blocks as one; entries that a block did not see get share 0."""

        def joined(name: str) -> Tensor | None:
            tensors = [part[name] for part in parts if part.get(name) is not None]
            if not tensors or tensors[0].dim() < 3:
                return torch.cat(tensors, dim=1) if tensors else None
            width = max(tensor.shape[-1] for tensor in tensors)
            return torch.cat([nn.functional.pad(t, (0, width - t.shape[-1])) for t in tensors], dim=1)

        return cls(**{field.name: joined(field.name) for field in fields(cls)})

    def row(self, number: int) -> "HistoryOutput":
        """That of one text of the batch, without the dimension B."""
        return HistoryOutput(**{name: tensor[number] for name, tensor in self.items()})


@dataclass
class ScoreOutput(ModelOutput):
    """What a model gave to the tokens that came next.

    Attributes:
        log_probs: (B, T) float32 nats, with history (equal to `base_log_probs` without); 0 where the target is -100.
        base_log_probs: (B, T) float32 nats, of the plain output layer.
        stream_log_probs, matches_log_probs, bank_log_probs, bank_matches_log_probs: (B, T) float32 nats, with that
            source alone; None if it takes no part, or is the only one.
        stream_share, matches_share, bank_share, bank_matches_share: (B, T) float32, the shares of the sources in the
            mixture.
        past_key_values: The cache that continues the text.
    """

    log_probs: Tensor | None = None
    base_log_probs: Tensor | None = None
    stream_log_probs: Tensor | None = None
    matches_log_probs: Tensor | None = None
    bank_log_probs: Tensor | None = None
    bank_matches_log_probs: Tensor | None = None
    stream_share: Tensor | None = None
    matches_share: Tensor | None = None
    bank_share: Tensor | None = None
    bank_matches_share: Tensor | None = None
    past_key_values: LLECache | None = None


@dataclass
class Prediction:
    """The predictions at a block of positions: the base's, and the entries of each source that are mixed in.

    Attributes:
        positions: Which positions of the segment these are.
        base: (B, T, V) float32, log p of every token.
        features: (B, T, 2) float32, `base_features`.
        recalled: What each source recalls.
    """

    positions: slice
    base: Tensor
    features: Tensor
    recalled: list[Recalled] = field(default_factory=list)

    def log_shares(self, recalled: Sequence[Recalled]) -> Tensor:
        """Log shares (B, T, 1 + S) of the base and of sources, if they are the only ones."""
        return gate([own.recall.mass for own in recalled], self.features, [list(own.gate) for own in recalled])

    def base_log_probs(self, targets: Tensor) -> Tensor:
        """log p of the targets (B, T), 0 where the target is -100."""
        ignored = targets == IGNORED
        return self.base.gather(-1, targets.masked_fill(ignored, 0)[..., None])[..., 0].masked_fill(ignored, 0.0)

    def log_probs(self, targets: Tensor) -> Tensor:
        """log P of the targets (B, T), 0 where the target is -100."""
        base = self.base_log_probs(targets)
        if not self.recalled:
            return base
        probabilities = [own.recall.probability(targets) for own in self.recalled]
        mixed = mixed_log_prob(base, probabilities, self.log_shares(self.recalled))
        return mixed.masked_fill(targets == IGNORED, 0.0)

    def scores(self, targets: Tensor) -> dict[str, Tensor]:
        """The columns of a `ScoreOutput` for the targets (B, T)."""
        base, ignored = self.base_log_probs(targets), targets == IGNORED
        probabilities = [own.recall.probability(targets) for own in self.recalled]
        columns = {"base_log_probs": base, "log_probs": base, f"{STREAM}_share": torch.zeros_like(base)}
        if not self.recalled:
            return columns
        log_shares = self.log_shares(self.recalled)
        columns["log_probs"] = mixed_log_prob(base, probabilities, log_shares).masked_fill(ignored, 0.0)
        columns |= {f"{own.source}_share": log_shares[..., s].exp() for s, own in enumerate(self.recalled, start=1)}
        if any(own.source != STREAM for own in self.recalled):
            columns[f"{STREAM}_log_probs"] = base
            for own, probability in zip(self.recalled, probabilities, strict=True):
                alone = mixed_log_prob(base, [probability], self.log_shares([own]))
                columns[f"{own.source}_log_probs"] = alone.masked_fill(ignored, 0.0)
        return columns

    def distribution(self) -> Tensor:
        """log P of every token, (B, T, V); overwrites `base`."""
        if not self.recalled:
            return self.base
        recalls = [own.recall for own in self.recalled]
        return mixed_distribution(self.base, recalls, self.log_shares(self.recalled))

    def evidence(self, row: Tensor, column: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, list[Evidence]]:
        """The base log probability (n,), `base_features` (n, 2) and evidence of each source for n predictions.

        Args:
            row, column: (n,) int64 each, where they are made.
            targets: (n,) int64, the right tokens.
        """
        sources = [own.evidence(row, column, targets) for own in self.recalled]
        return self.base[row, column, targets], self.features[row, column], sources

    def history(self) -> HistoryOutput:
        """The entries and their shares."""
        shares = self.log_shares(self.recalled).exp()
        output = HistoryOutput(base_share=shares[..., 0])
        for place, own in enumerate(self.recalled, start=1):
            share = own.recall.weights * shares[..., place : place + 1]
            outcomes = own.recall.outcomes.expand(share.shape).clone()  # the stream may go on writing into them
            if own.source == STREAM:
                output.shares, output.outcomes, output.ages = share, outcomes, own.identities()
            elif isinstance(own, MatchesRecalled):
                output.matches_shares, output.matches_outcomes = share, outcomes
                output.matches_ages, output.matches_lengths = own.found.ages, own.found.lengths
            elif isinstance(own, BankMatchesRecalled):
                output.bank_matches_shares, output.bank_matches_outcomes = share, outcomes
                output.bank_matches_ids, output.bank_matches_lengths = own.identities(), own.found.lengths
                output.bank_matches_counts = own.found.counts
            else:
                output.bank_shares, output.bank_outcomes, output.bank_ids = share, outcomes, own.identities()
        return output


def predict(
    states: Tensor, logits: Callable[[Tensor], Tensor], sources: Sequence[Source], blocks: Iterable[slice]
) -> Iterator[Prediction]:
    """The predictions from states, block by block; each must be used before the next one is asked for.

    Args:
        states: (B, T, D) floating, of a segment.
        logits: The output layer: (B, n, D) to (B, n, V).
        sources: What is mixed in.
        blocks: The positions of each block.
    """
    for positions in blocks:
        own = states[:, positions]
        base, features = base_prediction(logits(own))
        yield Prediction(positions, base, features, [source.recall(own, features) for source in sources])


def even_blocks(rows: int, length: int, widest: int, first: int = 0) -> Iterator[slice]:
    """The positions of a segment in blocks of `block_size`, one of which begins at `first`."""
    size = block_size(rows, widest)  # in the generator: torch.export traces no size that nobody asks for
    yield from blocks_of(length, size, first)


def collect(
    predictions: Iterable[Prediction], targets: Tensor | None, with_logits: bool, with_history: bool
) -> tuple[Tensor | None, Tensor | None, HistoryOutput | None]:
    """The summed loss, the logits and the history that a head returns, each as far as it is asked for.

    Args:
        predictions: Consecutive blocks; each is used up before the next one is asked for.
        targets: (B, T) int64, -100 where there is none; None: no loss.
        with_logits, with_history: What is asked for.
    """
    nats, logits, history = [], [], []
    for prediction in predictions:
        if targets is not None:
            nats.append(prediction.log_probs(targets[:, prediction.positions]).sum())
        if with_history:
            history.append(prediction.history())
        if with_logits:
            logits.append(prediction.distribution())
    return (
        -torch.stack(nats).sum() if nats else None,
        (logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)) if logits else None,
        HistoryOutput.join(history) if history else None,
    )
