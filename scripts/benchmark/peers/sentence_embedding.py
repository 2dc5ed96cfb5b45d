"""Pretrained sentence embeddings of wordllama, and nearest neighbours among them.

The embedding of a query is the normalised mean of 256-dimensional token embeddings. They were distilled from large
language models, so this peer has seen far more text than the data set. Nearest neighbours learn later intents by
storing their queries, without gradients:

    p(y | query) ∝ sum over the k nearest (key, label) of [label = y] exp(sharpness cosine(query, key))

Notable: wordllama's wheel includes the model, so nothing is downloaded; version 0.4 finds its tokenizer only if its
own folder is given as the cache. The out-of-scope score is the negative cosine of the nearest neighbour. Shapes: Q
queries, N examples, D width, K neighbours, L intents.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..intents import Answers, Examples

try:
    import wordllama
except ImportError as error:
    raise ImportError("sentence embeddings need wordllama: pip install modeling_lle[benchmark]") from error

FOLDER = Path(wordllama.__file__).parent
FILES = (
    FOLDER / "weights" / "l2_supercat_256.safetensors",
    FOLDER / "tokenizers" / "l2_supercat_tokenizer_config.json",
)
NEIGHBOURS = (1, 5, 10, 20, 40)
SHARPNESS = (0.0, 5.0, 10.0, 20.0, 40.0)
CHUNK = 512  # queries compared with all keys at once


class SentenceEmbedding:
    """Embeddings of queries."""

    def __init__(self) -> None:
        self.model = wordllama.WordLlama.load(cache_dir=FOLDER, disable_download=True)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Normalised embeddings of Q queries, (Q, D) float32."""
        return self.model.embed(texts, norm=True)

    @property
    def bytes(self) -> int:
        """Bytes of weights and tokenizer."""
        return sum(file.stat().st_size for file in FILES)


class EmbeddingNeighbours:
    """Stored queries with intents, classified by nearest neighbours.

    Args:
        embed: Embeddings.
        neighbours: K.
        sharpness: Factor of the cosine.

    Attributes:
        keys: (N, D) float32, normalised.
        labels: (N,) int64, indices in `names`.
        names: L intents.
    """

    def __init__(self, embed: SentenceEmbedding, neighbours: int, sharpness: float) -> None:
        self.embed, self.neighbours, self.sharpness = embed, neighbours, sharpness
        self.keys = torch.zeros(0, embed.model.embedding.shape[1])
        self.labels = torch.zeros(0, dtype=torch.long)
        self.names: list[str] = []

    @property
    def bytes(self) -> int:
        """Bytes of embeddings, keys and labels."""
        return self.embed.bytes + self.keys.nbytes + self.labels.nbytes

    def add(self, examples: Examples) -> "EmbeddingNeighbours":
        """Stores queries of known or new intents; returns itself."""
        names = examples.labels.tolist()
        self.names = list(dict.fromkeys([*self.names, *names]))
        places = {name: place for place, name in enumerate(self.names)}
        self.keys = torch.cat([self.keys, torch.from_numpy(self.embed(examples.texts))])
        self.labels = torch.cat([self.labels, torch.tensor([places[name] for name in names])])
        return self

    def search(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Cosines of the nearest entries, highest first, and their labels, (Q, K) each."""
        queries = torch.from_numpy(self.embed(texts))
        neighbours = min(self.neighbours, len(self.keys))
        found = [(part @ self.keys.T).topk(neighbours) for part in queries.split(CHUNK)]
        cosines, places = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cosines, self.labels[places]

    def vote(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """Probabilities of intents (Q, L) by the neighbours (Q, K)."""
        shares = (self.sharpness * cosines).softmax(1)
        return shares.new_zeros(len(shares), len(self.names)).scatter_add_(1, labels, shares)

    def answer(self, texts: list[str]) -> Answers:
        """Labels of Q queries, with negative cosines of the nearest entries, and shares of the labels."""
        cosines, labels = self.search(texts)
        shares, chosen = self.vote(cosines, labels).max(1)
        return Answers(np.array(self.names)[chosen.numpy()], -cosines[:, 0].numpy(), shares.numpy())

    @classmethod
    def tuned(cls, embed: SentenceEmbedding, tuning: Examples, validation: Examples) -> "EmbeddingNeighbours":
        """Empty classifier with the K and sharpness that are best on validation data with `tuning` stored."""
        peer = cls(embed, max(NEIGHBOURS), 0.0).add(tuning)
        cosines, labels = peer.search(validation.texts)
        names = np.array(peer.names)

        def accuracy(numbers: tuple[int, float]) -> float:
            neighbours, peer.sharpness = numbers
            chosen = peer.vote(cosines[:, :neighbours], labels[:, :neighbours]).argmax(1)
            return float((names[chosen.numpy()] == validation.labels).mean())

        return cls(embed, *max(itertools.product(NEIGHBOURS, SHARPNESS), key=accuracy))
