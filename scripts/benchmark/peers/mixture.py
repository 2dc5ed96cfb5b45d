"""Predictions of the plain network, and their linear interpolation with entries recalled by a peer.

Shapes: T positions of a segment, D width, V vocabulary, Q positions of all segments.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modeling_lle import LLEForCausalLM
from modeling_lle.history.calibration import fit
from modeling_lle.history.rule import Recall

from ..inputs import read_states
from .ngrams import Counted

SHARES = torch.arange(1, 96) / 100  # of recalled entries, for tuning


class Segment(NamedTuple):
    """Consecutive positions of a text.

    Attributes:
        states: (T, D) float32, inputs of the output layer.
        targets: (T,) int64, tokens that followed.
        base: (T,) float32 nats, log p of the targets without recalled entries.
    """

    states: Tensor
    targets: Tensor
    base: Tensor


def read(model: LLEForCausalLM, ids: np.ndarray) -> Iterator[Segment]:
    """Predictions of a text without history: each token but the first is a target."""
    return (segment for segment, _ in read_with_features(model, ids))


@torch.no_grad()
def read_with_features(
    model: LLEForCausalLM, ids: np.ndarray, context: int | None = None
) -> Iterator[tuple[Segment, Tensor]]:
    """As `read`, with the `base_features` (T, 2) of each prediction; `context` as in `read_states`."""
    for states, targets in read_states(model, ids, context):
        parts = list(model.predictions(states[None], None, None, None, None))
        base = torch.cat([part.base_log_probs(targets[None, part.positions])[0] for part in parts])
        yield Segment(states, targets, base), torch.cat([part.features[0] for part in parts])


def joined(segments: Iterable[Segment], positions: int) -> Iterator[Segment]:
    """Joins segments to at least the given length, except the last one."""
    waiting: list[Segment] = []
    for segment in segments:
        waiting.append(segment)
        if sum(len(part.targets) for part in waiting) >= positions:
            yield Segment(*map(torch.cat, zip(*waiting, strict=True)))
            waiting = []
    if waiting:
        yield Segment(*map(torch.cat, zip(*waiting, strict=True)))


class Recalled(NamedTuple):
    """Parts of the mixture at Q positions.

    Attributes:
        base: (Q,) float32 nats, log p of the targets.
        probability: (Q,) float32, probability of the targets by recalled entries.
        some: (Q,) bool, whether there were any.
    """

    base: Tensor
    probability: Tensor
    some: Tensor

    @classmethod
    def of(cls, segment: Segment, recall: Recall) -> "Recalled":
        """Mixture of a recall (1, T, entries) and the targets of a segment."""
        probability = recall.probability(segment.targets[None])[0]
        return cls(segment.base, probability, recall.mass[0].isfinite())

    def log_probs(self, share: Tensor | float) -> Tensor:
        """log((1 - share) p + share q), (..., Q) for shares (..., 1); log p without recalled entries.

        Grave et al. 2016, equation 6; Khandelwal et al. 2020, equation 3.
        """
        share = torch.where(self.some, torch.as_tensor(share), 0.0)
        return torch.logaddexp(self.base + torch.log1p(-share), (share * self.probability).log())

    def best_share(self) -> tuple[float, float]:
        """Best of `SHARES` on average, and its nats per token."""
        nats = -self.log_probs(SHARES[:, None]).mean(1)
        best = int(nats.argmin())
        return round(float(SHARES[best]), 2), float(nats[best])


def best_numbers(candidates: dict[Any, list[Recalled]]) -> tuple[Any, float]:
    """Key of the candidate, and share, with the fewest nats over all segments."""
    results = {}
    for key, parts in candidates.items():
        results[key] = Recalled(*map(torch.cat, zip(*parts, strict=True))).best_share()
    best = min(results, key=lambda key: results[key][1])
    return best, results[best][0]


class GatedCounts:
    """A mixture with counts, whose share is told by what they rest on and by how certain the network is.

        share = sigmoid(a_k + b . (log n_k, entropy of p, max log p))

    where the longest context that occurred has k tokens and occurred n_k times. It is the gate of LLE's rule with a
    bias for each order, so that counts are mixed in with no less care.

    Args:
        bias: (orders,) float32, a.
        weights: (3,) float32, b.
    """

    def __init__(self, bias: Tensor, weights: Tensor) -> None:
        self.bias, self.weights = bias, weights

    def log_probs(self, base: Tensor, features: Tensor, counted: Counted) -> Tensor:
        """log P (Q,), nats: log p where nothing was counted.

        Args:
            base: (Q,) float32 nats, log p of the targets.
            features: (Q, 2) float32, `base_features`.
            counted: What the counts give to the same targets.
        """
        seen = torch.cat([counted.log_total[:, None], features], dim=1)
        gate = self.bias[counted.order.clamp(min=0)] + seen @ self.weights
        recalled = counted.probability.clamp(min=1e-38).log() + torch.nn.functional.logsigmoid(gate)
        mixed = torch.logaddexp(base + torch.nn.functional.logsigmoid(-gate), recalled)
        return torch.where(counted.order >= 0, mixed, base)

    @classmethod
    def tuned(cls, base: Tensor, features: Tensor, counted: Counted, steps: int = 60) -> tuple["GatedCounts", float]:
        """The gate that is best for a text, and its nats per token."""
        orders = 1 + int(counted.order.max().clamp(min=0))

        def made(values: Tensor) -> "GatedCounts":
            return cls(values[:orders], values[orders:])

        start = torch.zeros(orders + 3)
        found = fit(lambda values: -made(values).log_probs(base, features, counted).mean(), start, steps)
        return made(found.values), found.after
