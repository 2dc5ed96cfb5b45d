"""Predictions of the plain network, and their linear interpolation with entries recalled by a peer.

Shapes: T positions of a segment, D width, V vocabulary, Q positions of all segments.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modeling_lle import LLEForCausalLM
from modeling_lle.history.rule import Recall, base_prediction
from modeling_lle.kernels.linear import linear

from ..inputs import read_states

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


@torch.no_grad()
def read(model: LLEForCausalLM, ids: np.ndarray) -> Iterator[Segment]:
    """Predictions of a text without history: each token but the first is a target."""
    for states, targets in read_states(model, ids):
        log_probs, _ = base_prediction(linear(states, model.lm_head.weight, model.lm_head.bias))
        yield Segment(states, targets, log_probs.gather(1, targets[:, None])[:, 0])


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
