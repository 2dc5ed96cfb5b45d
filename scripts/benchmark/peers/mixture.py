"""What the plain network gives to a text, and its linear interpolation with what a peer recalls.

Shapes: T positions of a segment, N tokens of a text, D width, V vocabulary, S shares.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modeling_lle.history.rule import Recall, base_prediction
from modeling_lle.kernels.linear import linear

from ..inputs import read_states

SHARES = torch.arange(1, 96) / 100  # of what is recalled, for tuning


class Segment(NamedTuple):
    """Consecutive positions of a text.

    Attributes:
        states: (T, D) float32, what the output layer reads at each position.
        targets: (T,) int64, the token that followed.
        base: (T,) float32 nats, log p of the targets without what is recalled.
    """

    states: Tensor
    targets: Tensor
    base: Tensor


@torch.no_grad()
def read(model: Any, ids: np.ndarray) -> Iterator[Segment]:
    """What the model, without any history, gives to a text (N,): every token but the first is a target."""
    for states, targets in read_states(model, ids):
        log_probs, _ = base_prediction(linear(states, model.lm_head.weight, model.lm_head.bias))
        yield Segment(states, targets, log_probs.gather(1, targets[:, None])[:, 0])


def joined(segments: Iterable[Segment], positions: int) -> Iterator[Segment]:
    """The same positions in segments of at least so many, but for the last one."""
    waiting: list[Segment] = []
    for segment in segments:
        waiting.append(segment)
        if sum(len(part.targets) for part in waiting) >= positions:
            yield Segment(*map(torch.cat, zip(*waiting, strict=True)))
            waiting = []
    if waiting:
        yield Segment(*map(torch.cat, zip(*waiting, strict=True)))


class Recalled(NamedTuple):
    """What is mixed at N positions.

    Attributes:
        base: (N,) float32 nats, log p of the targets.
        probability: (N,) float32, what the recalled entries give to the targets.
        some: (N,) bool, whether there were any.
    """

    base: Tensor
    probability: Tensor
    some: Tensor

    @classmethod
    def of(cls, segment: Segment, recall: Recall) -> "Recalled":
        """What a recall (1, T, entries) gives to the targets of a segment."""
        probability = recall.probability(segment.targets[None])[0]
        return cls(segment.base, probability, recall.mass[0].isfinite())

    def log_probs(self, share: Tensor | float) -> Tensor:
        """log((1 - share) p + share q), (..., N) for shares (..., 1); log p where nothing could be recalled.

        Grave et al. 2016, equation 6; Khandelwal et al. 2020, equation 3.
        """
        share = torch.where(self.some, torch.as_tensor(share), 0.0)
        return torch.logaddexp(self.base + torch.log1p(-share), (share * self.probability).log())

    def best_share(self) -> tuple[float, float]:
        """The one of `SHARES` that is best in the mean, and the nats per token with it."""
        nats = -self.log_probs(SHARES[:, None]).mean(1)
        best = int(nats.argmin())
        return round(float(SHARES[best]), 2), float(nats[best])


def best_numbers(candidates: dict[Any, list[Recalled]]) -> tuple[Any, float]:
    """The key of the candidate, and the share, that give the fewest nats over all segments."""
    results = {}
    for key, parts in candidates.items():
        results[key] = Recalled(*map(torch.cat, zip(*parts, strict=True))).best_share()
    best = min(results, key=lambda key: results[key][1])
    return best, results[best][0]
