"""A logistic regression of scikit-learn on sentence embeddings of any kind.

The out-of-scope score is the negative largest logit. Shapes: Q queries, D width, L intents.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from ..intents import Answers, Examples

try:
    from sklearn.linear_model import LogisticRegression
except ImportError as error:
    raise ImportError("the logistic regression needs scikit-learn: pip install modeling_lle[benchmark]") from error

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)  # C of scikit-learn: smaller is stronger regularisation


class Embed(Protocol):
    """Makes embeddings of queries."""

    @property
    def bytes(self) -> int:
        """Bytes of weights and tokenizer on disk."""
        ...

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Normalised embeddings of Q queries, (Q, D) float32."""
        ...


class Remembered:
    """Embeddings, each computed once.

    Args:
        embed: Makes them.
        texts: Those that are computed at once.
    """

    def __init__(self, embed: Embed, texts: Iterable[str] = ()) -> None:
        self.embed = embed
        self.known: dict[str, np.ndarray] = {}
        self.add(texts)

    @property
    def bytes(self) -> int:
        """Bytes of weights and tokenizer on disk."""
        return self.embed.bytes

    def add(self, texts: Iterable[str]) -> None:
        """Computes the embeddings of those texts that are new."""
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        if new:
            self.known |= zip(new, self.embed(new), strict=True)

    def copy(self) -> "Remembered":
        """What is known now, to which more can be added apart."""
        other = Remembered(self.embed)
        other.known = dict(self.known)
        return other

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Normalised embeddings of Q queries, (Q, D) float32."""
        self.add(texts)
        return np.stack([self.known[text] for text in texts])


class EmbeddingClassifier:
    """A logistic regression on embeddings.

    Args:
        embed: Embeddings.
        regression: Fitted `LogisticRegression` of at least three intents.
    """

    def __init__(self, embed: Embed, regression: Any) -> None:
        self.embed = embed
        self.labels = regression.classes_
        self.weights = regression.coef_.T.astype(np.float32)
        self.biases = regression.intercept_.astype(np.float32)

    @property
    def bytes(self) -> int:
        """Bytes of embeddings, weights and biases."""
        return self.embed.bytes + self.weights.nbytes + self.biases.nbytes

    def answer(self, texts: list[str]) -> Answers:
        """Labels of Q queries, with negative largest logits and probabilities."""
        logits = self.embed(texts) @ self.weights + self.biases
        largest = logits.max(1)
        return Answers(self.labels[logits.argmax(1)], -largest, 1 / np.exp(logits - largest[:, None]).sum(1))

    def label(self, embedding: np.ndarray) -> str:
        """Label of one embedding (D,)."""
        return self.labels[(embedding @ self.weights + self.biases).argmax()]

    @classmethod
    def fit(cls, embed: Embed, examples: Examples, penalty: float) -> "EmbeddingClassifier":
        """Learns from queries and their intents."""
        return cls(embed, LogisticRegression(C=penalty, max_iter=1000).fit(embed(examples.texts), examples.labels))
