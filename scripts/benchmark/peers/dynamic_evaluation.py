"""Dynamic evaluation (Krause et al. 2018, arXiv:1709.07432): gradient steps on text read, with decay.

After each segment of 5 tokens, with the gradient g of its mean cross entropy,

    SGD   theta += decay (theta_0 - theta) - rate g                                            (equations 4 and 5)
    RMS   theta += decay d (theta_0 - theta) - rate g / (rms + epsilon)                        (equations 7 and 8)

where theta_0 are the trained weights, rms the root mean square of each weight's gradient over batches of the training
text, and d = rms / mean(rms), at most 1 / decay. As in the authors' code, the batches have 100 rows of 5 tokens, and
the mean is that over the weight matrices and vectors of each one's mean.

Notable: all weights of a copy of the model change, tied embeddings included. For a fair comparison of speeds, the rule
is one kernel over the weights, and gradients of the few embeddings read are added to those of the output layer instead
of being spread over the vocabulary. Shapes: B batch, T time, D width.
"""

import copy
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from modeling_lle import LLECache, LLEForCausalLM
from modeling_lle.data import StreamDataset
from modeling_lle.kernels.numba_tools import jit, run

from .mixture import Segment

SEGMENT = 5
ROWS = 100  # of the batches for root mean squares
EPSILON = 2e-5
# Initial rate and decay of the search, for SGD and RMS (defaults of the authors' code).
BEGINNING = ((0.3, 0.002), (5e-5, 0.002))
STEP = 1.5  # between neighbours in the search
TOLERANCE = 1e-4  # nats per token that a better pair must save


@jit()
def _sgd(rate: Any, decay: Any, weight: Any, trained: Any, slope: Any) -> None:
    for i in range(len(weight)):
        weight[i] += decay * (trained[i] - weight[i]) - rate * slope[i]


@jit()
def _rms(rate: Any, decay: Any, epsilon: Any, weight: Any, trained: Any, slope: Any, rms: Any) -> None:
    for i in range(len(weight)):
        pull = decay * rms[i]
        pull = pull if pull < weight.dtype.type(1) else weight.dtype.type(1)
        weight[i] += pull * (trained[i] - weight[i]) - rate * slope[i] / (rms[i] + epsilon)


def _numbers(start: tuple[float, float], place: tuple[int, int]) -> tuple[float, float]:
    """Pair at a position of the grid."""
    return start[0] * STEP ** place[0], start[1] * STEP ** place[1]


def _weights(model: LLEForCausalLM) -> list[Tensor]:
    return list(model.parameters())


def _slopes(
    model: LLEForCausalLM, ids: Tensor, targets: Tensor, cache: LLECache
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """States (B, T, D), log p of the targets (B, T), and gradients of the mean cross entropy."""
    weights, table = _weights(model), model.model.embed_tokens.weight
    embedded = table.detach()[ids].requires_grad_()
    with torch.enable_grad():
        states = model.model(inputs_embeds=embedded, past_key_values=cache.detach(), use_cache=False).last_hidden_state
        logits = functional.linear(states, model.lm_head.weight, model.lm_head.bias)
        nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        *slopes, of_embedded = torch.autograd.grad(nats.mean(), [*weights, embedded], materialize_grads=True)
    place = next(place for place, weight in enumerate(weights) if weight is table)
    slopes[place].index_add_(0, ids.flatten(), of_embedded.flatten(0, 1))
    return states.detach(), -nats.detach().view(targets.shape), slopes


def root_mean_squares(model: LLEForCausalLM, ids: np.ndarray, batches: int) -> list[Tensor]:
    """Root mean square of each weight's gradient over the first batches of a training text in 100 rows."""
    rows = max(1, min(ROWS, (len(ids) - 1) // SEGMENT))
    whole = (len(ids) - 1) // (rows * SEGMENT)
    stream = StreamDataset(ids[: whole * rows * SEGMENT + 1], rows, SEGMENT, evaluation=True)
    batches = min(batches, whole)
    cache, squares = LLECache(), [torch.zeros_like(weight) for weight in _weights(model)]
    for index in range(batches):
        items = [stream[index * rows + row] for row in range(rows)]
        batch = {name: torch.stack([item[name] for item in items]) for name in ("input_ids", "shift_labels")}
        _, _, slopes = _slopes(model, batch["input_ids"], batch["shift_labels"], cache)
        for square, slope in zip(squares, slopes, strict=True):
            square.addcmul_(slope, slope)
    return [square.div_(batches).sqrt_() for square in squares]


class DynamicEvaluation:
    """A copy of a model that learns from the text it reads.

    Args:
        model: Trained model, unchanged.
        rate: Learning rate.
        decay: Strength of the decay towards the trained weights.
        rms: `root_mean_squares` of the gradients, for the RMS rule; None: SGD.
    """

    def __init__(self, model: LLEForCausalLM, rate: float, decay: float, rms: list[Tensor] | None = None) -> None:
        self.rate, self.decay, self.rms = rate, decay, rms
        self.trained = [weight.detach() for weight in _weights(model)]
        self.model = copy.deepcopy(model).eval()
        if rms is None:
            self.step = functools.partial(_sgd, np.float32(rate), np.float32(decay))
        else:
            mean = sum(float(part.mean()) for part in rms) / len(rms)
            numbers = rate, decay / mean, EPSILON
            self.step = functools.partial(_rms, *map(np.float32, numbers))

    @property
    def bytes(self) -> int:
        """Bytes of the copied weights and root mean squares."""
        return sum(tensor.nbytes for tensor in itertools.chain(_weights(self.model), self.rms or []))

    def read(self, ids: np.ndarray) -> Iterator[Segment]:
        """Predictions of a text by segments, learning from each segment after its prediction."""
        stream, cache = StreamDataset(ids, 1, SEGMENT, evaluation=True), LLECache()
        for index in range(len(stream)):
            segment = stream[index]
            targets = segment["shift_labels"]
            states, log_probs, slopes = _slopes(self.model, segment["input_ids"][None], targets[None], cache)
            yield Segment(states[0], targets, log_probs[0])
            self._learn(slopes)

    @classmethod
    def tuned(
        cls, model: LLEForCausalLM, ids: np.ndarray, rms: list[Tensor] | None = None, most: int = 20
    ) -> tuple["DynamicEvaluation", list[Segment]]:
        """Learner with the rate and decay that are best on a text, and its predictions of the text.

        The search moves to neighbours of the best pair on a geometric grid, until none is better or `most` pairs have
        been tried.
        """
        start = BEGINNING[rms is not None]
        nats: dict[tuple[int, int], float] = {}
        best, segments = (0, 0), []
        waiting, bar = [best], tqdm(desc="pairs of rate and decay", total=most, mininterval=10)
        while waiting and len(nats) < most:
            place = waiting.pop(0)
            read = list(cls(model, *_numbers(start, place), rms).read(ids))
            mean = -float(torch.cat([segment.base for segment in read]).mean())
            nats[place] = mean if math.isfinite(mean) else math.inf
            if place == best or nats[place] < nats[best] - TOLERANCE:
                best, segments = place, read
                around = [(best[0] + i, best[1] + j) for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))]
                waiting = [near for near in around if near not in nats]
            bar.set_postfix(nats=nats[best], refresh=False)
            bar.update()
        bar.close()
        return cls(model, *_numbers(start, best), rms), segments

    def _learn(self, slopes: list[Tensor]) -> None:
        statistics = [[part] for part in self.rms] if self.rms else [[] for _ in slopes]
        for weight, trained, slope, rms in zip(_weights(self.model), self.trained, slopes, statistics, strict=True):
            run(
                self.step,
                weight.detach().view(-1),
                trained.view(-1),
                slope.reshape(-1),
                *(part.view(-1) for part in rms),
            )
