"""A prediction: what the base gives, what each source of the history recalls, and the mixture of any of them.

Shapes: B batch, T time, V vocabulary, N entries of the stream, K entries of the bank, S sources, n positions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..bank.found import Found
from .cache import LLECache
from .loss import IGNORED
from .rule import Evidence, Recall, gate, log_age, mixed_distribution, mixed_log_prob
from .stream import Block

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
        ages: (B, T, N) int64, how many tokens ago the entry was made, 1 for the newest.
        bank_shares, bank_outcomes: (B, T, K), the same of the entries of the bank, if one is attached.
        bank_ids: (B, T, K) int64, ids of those entries, -1 where there is none.
    """

    base_share: Tensor | None = None
    shares: Tensor | None = None
    outcomes: Tensor | None = None
    ages: Tensor | None = None
    bank_shares: Tensor | None = None
    bank_outcomes: Tensor | None = None
    bank_ids: Tensor | None = None

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


@dataclass
class ScoreOutput(ModelOutput):
    """What a model gave to the tokens that came next.

    Attributes:
        log_probs: (B, T) float32 nats, with history (equal to `base_log_probs` without); 0 where the target is -100.
        base_log_probs: (B, T) float32 nats, of the plain output layer.
        stream_log_probs, bank_log_probs: (B, T) float32 nats, with that source alone; None without a bank.
        stream_share, bank_share: (B, T) float32, the shares of the sources in the mixture.
        past_key_values: The cache that continues the text.
    """

    log_probs: Tensor | None = None
    base_log_probs: Tensor | None = None
    stream_log_probs: Tensor | None = None
    bank_log_probs: Tensor | None = None
    stream_share: Tensor | None = None
    bank_share: Tensor | None = None
    past_key_values: LLECache | None = None


@dataclass
class Prediction:
    """The prediction of one block: the base's log p (B, T, V) and its features (B, T, 2), and what is mixed in.

    `recalls` and `gates` have an item for each source; `block` and `found` are what the stream and the bank offer.
    """

    positions: slice
    base: Tensor
    features: Tensor
    recalls: dict[str, Recall] = field(default_factory=dict)
    gates: dict[str, list[float]] = field(default_factory=dict)
    block: Block | None = None
    found: Found | None = None

    def add(self, source: str, recall: Recall, numbers: list[float]) -> None:
        """Mixes a source in; `numbers` are those of its gate."""
        self.recalls[source], self.gates[source] = recall, numbers

    def log_shares(self, sources: Iterable[str]) -> Tensor:
        """Log shares of the base and of the sources, if they are the only ones, (B, T, 1 + S)."""
        sources = list(sources)
        return gate([self.recalls[name].mass for name in sources], self.features, [self.gates[s] for s in sources])

    def base_log_probs(self, targets: Tensor) -> Tensor:
        """log p of the targets (B, T), 0 where the target is -100."""
        ignored = targets == IGNORED
        return self.base.gather(-1, targets.masked_fill(ignored, 0)[..., None])[..., 0].masked_fill(ignored, 0.0)

    def log_probs(self, targets: Tensor) -> Tensor:
        """log P of the targets (B, T), 0 where the target is -100."""
        base = self.base_log_probs(targets)
        if not self.recalls:
            return base
        recalled = [recall.probability(targets) for recall in self.recalls.values()]
        return mixed_log_prob(base, recalled, self.log_shares(self.recalls)).masked_fill(targets == IGNORED, 0.0)

    def scores(self, targets: Tensor) -> dict[str, Tensor]:
        """The columns of a `ScoreOutput` for the targets (B, T)."""
        base, ignored = self.base_log_probs(targets), targets == IGNORED
        recalled = {name: recall.probability(targets) for name, recall in self.recalls.items()}

        def mixed(sources: Sequence[str], log_shares: Tensor) -> Tensor:
            log_probs = mixed_log_prob(base, [recalled[name] for name in sources], log_shares)
            return log_probs.masked_fill(ignored, 0.0)

        log_shares = self.log_shares(self.recalls)
        columns = {"base_log_probs": base, "stream_share": torch.zeros_like(base)}
        columns |= {f"{name}_share": log_shares[..., place].exp() for place, name in enumerate(self.recalls, start=1)}
        columns["log_probs"] = mixed(list(self.recalls), log_shares) if recalled else base
        if "bank" in recalled:
            columns["stream_log_probs"] = base
            columns |= {f"{name}_log_probs": mixed([name], self.log_shares([name])) for name in recalled}
        return columns

    def distribution(self) -> Tensor:
        """log P of every token, (B, T, V); uses up `base`."""
        if not self.recalls:
            return self.base
        return mixed_distribution(self.base, list(self.recalls.values()), self.log_shares(self.recalls))

    def sample(self, row: Tensor, column: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, list[Evidence]]:
        """What `Calibration.add` takes of the positions (row, column), (n,) int64 each, with their targets (n,)."""
        sources = []
        if "stream" in self.recalls:
            assert self.block is not None
            sources.append(
                Evidence(
                    similarity=self.block.similarity()[row, column].float(),
                    log_age=log_age(self.block.age[row, column]),
                    log_count=None,
                    valid=self.block.valid[row, column],
                    hit=self.block.outcomes[row] == targets[:, None],
                )
            )
        if "bank" in self.recalls:
            assert self.found is not None
            counts = self.found.counts[row, column]
            sources.append(
                Evidence(
                    similarity=self.found.similarity[row, column],
                    log_age=None,
                    log_count=counts.clamp(min=1).log(),
                    valid=counts > 0,
                    hit=self.found.outcomes[row, column] == targets[:, None],
                )
            )
        return self.base[row, column, targets], self.features[row, column], sources

    def history(self) -> HistoryOutput:
        """The entries and their shares."""
        shares = self.log_shares(self.recalls).exp()
        output = HistoryOutput(base_share=shares[..., 0])
        for place, (name, recall) in enumerate(self.recalls.items(), start=1):
            own = recall.weights * shares[..., place : place + 1]
            outcomes = recall.outcomes.expand(own.shape).clone()  # the stream may go on writing into them
            if name == "stream":
                assert self.block is not None
                output.shares, output.outcomes, output.ages = own, outcomes, self.block.age
            else:
                assert self.found is not None
                output.bank_shares, output.bank_outcomes, output.bank_ids = own, outcomes, self.found.ids
        return output


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
