"""A linear support vector machine on TF-IDF of words and characters, by scikit-learn.

Features are word unigrams and bigrams, and character n-grams of 2 to 5 within words, with log counts. Published with
such features: Banking77 90.3; CLINC150, bag of words, 91.0 (Larson et al. 2019, arXiv:1909.02027). The out-of-scope
score is the negative largest decision value, which separated more out-of-scope queries of CLINC150's validation split
than the margin to the second largest.

Notable: weights are float32 with those of a feature contiguous, so that single queries need no transposition.
Shapes: Q queries, L intents.
"""

from typing import Any

import numpy as np

from ..intents import Answers, Examples

try:
    import scipy.sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC
except ImportError as error:
    raise ImportError("the linear classifier needs scikit-learn: pip install modeling_lle[benchmark]") from error

PENALTIES = (0.3, 1.0, 3.0)  # C of scikit-learn: smaller is stronger regularisation


class Features:
    """TF-IDF of words and characters.

    Args:
        texts: Queries for the counts.
    """

    def __init__(self, texts: list[str]) -> None:
        shared: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32}
        self.parts = (
            TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b", **shared),
            TfidfVectorizer(ngram_range=(2, 5), analyzer="char_wb", **shared),
        )
        for part in self.parts:
            part.fit(texts)

    def __call__(self, texts: list[str]) -> Any:
        """Features of Q queries, a sparse matrix (Q, features) float32."""
        return scipy.sparse.hstack([part.transform(texts) for part in self.parts], format="csr")

    @property
    def bytes(self) -> int:
        """Bytes of the features' UTF-8 text, and a float32 weight each."""
        return sum(len(term.encode()) + 4 for part in self.parts for term in part.vocabulary_)


class LinearClassifier:
    """The fitted classifier.

    Args:
        features: TF-IDF.
        machine: `LinearSVC` of at least three intents.
    """

    def __init__(self, features: Features, machine: Any) -> None:
        self.features = features
        self.labels = machine.classes_
        self.weights = np.ascontiguousarray(machine.coef_.T, dtype=np.float32)
        self.biases = machine.intercept_.astype(np.float32)

    @property
    def bytes(self) -> int:
        """Bytes of features, weights and biases."""
        return self.features.bytes + self.weights.nbytes + self.biases.nbytes

    def decide(self, texts: list[str]) -> np.ndarray:
        """Decision values of Q queries, (Q, L) float32."""
        return self.features(texts) @ self.weights + self.biases

    def answer(self, texts: list[str]) -> Answers:
        """Labels of Q queries with negative largest decision values, without probabilities."""
        values = self.decide(texts)
        return Answers(self.labels[values.argmax(1)], -values.max(1))

    @classmethod
    def fit(cls, examples: Examples, penalty: float) -> "LinearClassifier":
        """Learns from queries and their intents."""
        features = Features(examples.texts)
        machine = LinearSVC(C=penalty, random_state=0).fit(features(examples.texts), examples.labels)
        return cls(features, machine)
