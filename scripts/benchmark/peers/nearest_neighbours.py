"""kNN-LM (Khandelwal et al. 2020, arXiv:1911.00172): the nearest states of the training text, and an interpolation.

    p_kNN(w | h) ∝ sum over the k nearest (key, outcome) of [outcome = w] exp(-d(h, key)^2 / T)      (equation 2)
    p(w) = (1 - lambda) p_LM(w) + lambda p_kNN(w)                                                    (equation 3)

As published: d is the Euclidean distance of raw states, k = 1024, keys are kept in float16, and FAISS searches 32 of
4,096 cells. Keys are not quantised further, so that distances of neighbours are exact, which the authors report to be
better. The temperature is 1 in the paper; states of other networks differ in norm, so it is tuned.
Shapes: T positions of a segment, N entries, D width, K neighbours.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from modeling_lle import LLEForCausalLM
from modeling_lle.history.rule import Recall

from ..inputs import read_states
from .mixture import Recalled, Segment, best_numbers

NEIGHBOURS = 1024
CELLS, CELLS_READ = 4096, 32
SAMPLE_PER_CELL = 64  # keys for learning the cells; FAISS needs 39
CHUNK = 65_536  # keys converted at once
TEMPERATURES = tuple(2 ** (step / 2) for step in range(-16, 5))  # relative to the mean squared distance of neighbours


def _make_index(keys: np.ndarray) -> Any:
    """Index of keys (N, D) float16, with cells learned from an even sample."""
    cells = min(CELLS, 1 << int(math.log2(max(1, len(keys) // SAMPLE_PER_CELL))))
    index = faiss.index_factory(keys.shape[1], f"IVF{cells},SQfp16", faiss.METRIC_L2)
    sample = np.linspace(0, len(keys) - 1, min(len(keys), SAMPLE_PER_CELL * cells)).astype(np.int64)
    index.train(keys[sample].astype(np.float32))
    for start in range(0, len(keys), CHUNK):
        index.add(keys[start : start + CHUNK].astype(np.float32))
    faiss.extract_index_ivf(index).nprobe = min(CELLS_READ, cells)
    return index


class Datastore:
    """States of a text and the tokens that followed, with a search index.

    Args:
        model: Network.
        ids: (N + 1,) integers, text read as one stream.
        neighbours: K.
        context: As in `read_states`.
    """

    def __init__(
        self, model: LLEForCausalLM, ids: np.ndarray, neighbours: int = NEIGHBOURS, context: int | None = None
    ) -> None:
        keys = np.empty((len(ids) - 1, model.config.hidden_size), dtype=np.float16)
        self.outcomes = torch.from_numpy(np.asarray(ids[1:], dtype=np.int32))
        self.neighbours = min(neighbours, len(keys))
        place = 0
        for states, _ in read_states(model, ids, context):
            keys[place : place + len(states)] = states.cpu().numpy()
            place += len(states)
        self.index = _make_index(keys)

    @property
    def bytes(self) -> int:
        """Bytes of the index (keys, their ids, centres of the cells) and the outcomes."""
        of_index = self.index.ntotal * (self.index.code_size + 8) + self.index.nlist * self.index.d * 4
        return of_index + self.outcomes.nbytes

    def search(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distances of the nearest entries, their existence, and their outcomes, (T, K) each."""
        distances, found = map(torch.from_numpy, self.index.search(states.contiguous().numpy(), self.neighbours))
        return distances, found >= 0, self.outcomes[found.clamp(min=0)].long()


class NearestNeighbours:
    """The mixture of kNN-LM.

    Args:
        datastore: Entries.
        temperature: Temperature of the squared distances.
        share: Weight of the neighbours in the mixture, lambda.
    """

    def __init__(self, datastore: Datastore, temperature: float, share: float) -> None:
        self.datastore, self.temperature, self.share = datastore, temperature, share

    def read(self, segments: Iterable[Segment]) -> Iterator[Tensor]:
        """Yields log P of the targets of each segment, (T,) float32 nats."""
        for segment in segments:
            recall = _recall(*self.datastore.search(segment.states), self.temperature)
            yield Recalled.of(segment, recall).log_probs(self.share)

    @classmethod
    def tuned(cls, datastore: Datastore, segments: Iterable[Segment]) -> "NearestNeighbours":
        """kNN-LM with the temperature and share of a grid that are best on a text."""
        candidates: dict[float, list[Recalled]] = defaultdict(list)
        scale = 0.0
        for segment in segments:
            distances, valid, outcomes = datastore.search(segment.states)
            scale = scale or float(distances[valid].mean())
            for temperature in TEMPERATURES:
                recall = _recall(distances, valid, outcomes, temperature * scale)
                candidates[temperature * scale].append(Recalled.of(segment, recall))
        temperature, share = best_numbers(candidates)
        return cls(datastore, temperature, share)


def _recall(distances: Tensor, valid: Tensor, outcomes: Tensor, temperature: float) -> Recall:
    return Recall.from_scores(-distances[None] / temperature, valid[None], outcomes[None])
