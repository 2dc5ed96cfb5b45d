"""Training with history: the stream's rule as part of the loss, and its numbers learned along with the weights.

Notable: a position recalls the entries of its own row, within this segment and carried from earlier ones, and those
that the other rows made in this segment, as two sources of one mixture; so the numbers that come out are those of the
stream as it is used afterwards, beside any other source. Keys and queries of the segment receive gradients (Zhong et
al. 2022, arXiv:2205.12674, section 3), what was carried does not. They are the states without output dropout: its mask
changes from segment to segment, and the history has none when it is used. Shapes: B batch, T time, D width,
N entries, S sources.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration import LLEConfig
from .calibration import from_values, store_values, to_values
from .loss import RecalledTargets, check_targets, head_cross_entropy
from .rule import Recall, kernel, log_age, recall_stream
from .stream import Block, Stream

logger = logging.getLogger(__name__)

# Mean and standard deviation of entropy and largest log probability, in nats, in a language model that is trained:
# roughly, for they only make the descent well-conditioned.
MEAN, DEVIATION = (4.0, -1.5), (2.0, 1.0)


def recall_targets_reference(
    block: Block, targets: Tensor, sharpness: Tensor | float, recency: Tensor | float
) -> tuple[Tensor, Tensor]:
    """`recall_targets`, written plainly."""
    scores = kernel(block.similarity(), log_age(block.age), sharpness, recency)
    recall = Recall.from_scores(scores, block.valid, block.outcomes)
    return (recall.weights * (block.outcomes[:, None] == targets[..., None])).sum(-1), recall.mass


class _RecallTargets(torch.autograd.Function):
    """With weights w and probability r, d r / d l_i = w_i ([y_i = y] - r), and d m / d l_i = w_i."""

    @staticmethod
    def forward(
        ctx: Any, similarity: Tensor, sharpness: Tensor, recency: Tensor | float, block: Block, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        # A copy, because the kernel works in place; without a gradient, which would keep it away.
        scores = similarity.detach().to(torch.float32, copy=True)
        recall = recall_stream(block, sharpness.detach(), torch.as_tensor(recency).detach(), scores)
        probability = recall.probability(targets)
        ctx.save_for_backward(
            similarity, sharpness, recall.weights, probability, block.outcomes, targets, block.made, block.serial
        )
        return probability, recall.mass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_probability: Tensor, d_mass: Tensor) -> tuple[Tensor | None, ...]:
        similarity, sharpness, weights, probability, outcomes, targets, made, serial = ctx.saved_tensors
        hit = outcomes[:, None] == targets[..., None]
        missed = d_mass - d_probability * probability
        slope = torch.where(hit, (missed + d_probability)[..., None], missed[..., None]) * weights
        d_sharpness = (slope * similarity).sum() - slope.sum() if ctx.needs_input_grad[1] else None
        d_recency = None
        if ctx.needs_input_grad[2]:
            d_recency = -(slope * log_age(made[:, :, None] - serial[:, None, :])).sum()
        return (slope * sharpness).to(similarity.dtype), d_sharpness, d_recency, None, None


def recall_targets(block: Block, targets: Tensor, sharpness: Tensor, recency: Tensor | float) -> tuple[Tensor, Tensor]:
    """What the positions of a block recall of their targets; queries, keys and numbers receive gradients.

    Args:
        block: The positions and their entries, (B, T, N).
        targets: (B, T) int64.
        sharpness, recency: The numbers of the kernel, scalars; `recency` is 0 for entries that have no age.

    Returns:
        The probability of the target, and the mass, (B, T) float32 each.
    """
    return _RecallTargets.apply(block.similarity(), sharpness, recency, block, targets)


class HistoryLoss(nn.Module):
    """The cross entropy of a language model that recalls while it is trained.

    It holds the numbers of the sources as they are learned. They are no weights of the model: `store` writes them into
    the configuration, and `load` begins with those that are there.

    Args:
        config: The configuration; `history.training` says what is recalled.
    """

    def __init__(self, config: LLEConfig) -> None:
        super().__init__()
        self.config = config
        self.values = nn.Parameter(torch.zeros(len(self._sections()), 6))  # see `to_values`
        self.stored: Tensor | None = None

    def _sections(self) -> list[Any]:
        return [self.config.stream] + ([self.config.training] if self.config.training.other_rows else [])

    @torch.no_grad()
    def load(self) -> None:
        """Takes the numbers from the configuration."""
        mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
        self.values.copy_(torch.stack([to_values(section, mean, deviation) for section in self._sections()]))
        self.stored = self.values.detach().cpu().clone()

    @torch.no_grad()
    def store(self) -> None:
        """Writes the numbers into the configuration, if they were learned since this was last done."""
        values = self.values.detach().cpu()
        if self.stored is None or torch.equal(values, self.stored):
            return
        if not bool(values.isfinite().all()):
            logger.warning("training has diverged: the numbers of the history stay as they were, instead of NaN")
            return
        for section, own in zip(self._sections(), values, strict=True):
            store_values(section, own.float(), torch.tensor(MEAN), torch.tensor(DEVIATION))
        self.stored = values.clone()

    def forward(
        self,
        stream: Stream | None,
        states: Tensor,
        dropped: Tensor,
        tokens: Tensor | None,
        mask: Tensor | None,
        targets: Tensor,
        output: nn.Module,
    ) -> Tensor:
        """The summed cross entropy of the mixture over a segment, in nats, a scalar float32.

        Args:
            stream: The entries carried from earlier segments, to which this one's are added; None: of this one only.
            states: (B, T, D) floating, the backbone's states, which are queries and keys.
            dropped: (B, T, D) floating, the same after output dropout, which the output layer reads.
            tokens: (B, T) int64, the tokens that were read, or None.
            mask: (B, T) bool, False at padding, or None.
            targets: (B, T) int64, -100 where nothing counts.
            output: The output layer.
        """
        targets = check_targets(targets, states.shape[:2], self.config.vocab_size, "targets")
        stream = Stream(self.config.training.window) if stream is None else stream
        block = stream.read_whole(states, tokens, mask)
        blocks = [block, block.other_rows()][: len(self.values)]
        mean, deviation = self.values.new_tensor(MEAN), self.values.new_tensor(DEVIATION)
        columns = []
        for source, (own, values) in enumerate(zip(blocks, self.values, strict=True)):
            sharpness, recency, numbers = from_values(values, mean, deviation)
            probability, mass = recall_targets(own, targets, sharpness, recency if source == 0 else 0.0)
            columns.append((probability, mass, numbers))
        probabilities, masses, gates = zip(*columns, strict=True)
        recalled = RecalledTargets(torch.stack(probabilities, -1), torch.stack(masses, -1), torch.stack(gates))
        return head_cross_entropy(dropped, output, targets, recalled)
