"""The neural cache (Grave, Joulin and Usunier 2016, arXiv:1612.04426): raw states, and a linear interpolation.

    p_cache(w | h_t) ∝ sum_{i < t} [x_{i+1} = w] exp(theta h_t . h_i)        (equation 3)
    p(w) = (1 - lambda) p_vocab(w) + lambda p_cache(w)                       (equation 6)

Notable: LLE's kernel with raw states and without recency is this cache, as softmax ignores a common offset; both share
code, so their speeds compare. Shapes: T positions of a segment, N entries, D width.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from modeling_lle.history.rule import Recall, recall_stream
from modeling_lle.history.stream import Block

from .mixture import Recalled, Segment, best_numbers

WINDOWS = (500, 2000, 3785)  # of the paper, and of AWD-LSTM on WikiText-2
# Norms of states differ between networks: theta is searched relative to the mean of h . h, in steps of 1.4.
SHARPNESS = tuple(2 ** (step / 2) for step in range(-2, 15))


class NeuralCache:
    """The last states and the tokens that followed.

    Args:
        width: D.
        window: Maximum number of entries.
        theta: Factor of the product of query and key.
        share: Weight of the cache in the mixture, lambda.

    Attributes:
        keys: (N, D) float32.
        outcomes: (N,) int64.
    """

    def __init__(self, width: int, window: int, theta: float, share: float) -> None:
        self.window, self.theta, self.share = window, theta, share
        self.keys = torch.zeros(0, width)
        self.outcomes = torch.zeros(0, dtype=torch.long)

    @property
    def bytes(self) -> int:
        """Bytes of the entries."""
        return self.keys.nbytes + self.outcomes.nbytes

    def _recall(self, segment: Segment, theta: float, window: int) -> Recall:
        """Recall of each position from the entries before it, up to that of its own token."""
        before, length = len(self.keys), len(segment.targets)
        block = Block(
            positions=slice(0, length),
            queries=segment.states[None],
            keys=[self.keys[None], segment.states[None]],
            outcomes=torch.cat([self.outcomes, segment.targets])[None],
            serial=torch.arange(before + length)[None],
            made=before + torch.arange(length)[None],
            window=window,
        )
        return recall_stream(block, theta, 0.0)

    def _take_in(self, segment: Segment) -> None:
        self.keys = torch.cat([self.keys, segment.states])[-self.window :]
        self.outcomes = torch.cat([self.outcomes, segment.targets])[-self.window :]

    @torch.no_grad()
    def read(self, segments: Iterable[Segment]) -> Iterator[Tensor]:
        """Yields log P of the targets of each segment, (T,) float32 nats."""
        for segment in segments:
            recall = self._recall(segment, self.theta, self.window)
            self._take_in(segment)
            yield Recalled.of(segment, recall).log_probs(self.share)

    @classmethod
    @torch.no_grad()
    def tuned(cls, segments: Iterable[Segment], windows: Sequence[int] = WINDOWS) -> "NeuralCache":
        """Empty cache with the window, theta and lambda of a grid that are best on a text."""
        segments = list(segments)
        states = torch.cat([segment.states for segment in segments])
        scale = 1 / float(states.square().sum(1).mean())
        reader = cls(states.shape[1], max(windows), 0.0, 0.0)
        candidates: dict[tuple[int, float], list[Recalled]] = defaultdict(list)
        for segment in segments:
            for window in windows:
                for theta in (sharpness * scale for sharpness in SHARPNESS):
                    candidates[window, theta].append(Recalled.of(segment, reader._recall(segment, theta, window)))
            reader._take_in(segment)
        (window, theta), share = best_numbers(candidates)
        return cls(states.shape[1], window, theta, share)
