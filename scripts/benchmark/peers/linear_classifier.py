"""A linear support vector machine on TF-IDF of words and characters, by scikit-learn.

Features are single words and pairs of them, and two to five consecutive characters within a word, with the logarithm
of their counts. Published with such features: Banking77 90.3; CLINC150, bag of words, 91.0 (Larson et al. 2019,
arXiv:1909.02027). The out-of-scope score is minus the largest decision value, which on CLINC150's validation split
told more queries out of scope from the others than the distance to the second largest.

Notable: one query must not wait for scikit-learn to turn its matrix around, so the weights are kept as float32 with
the numbers of a feature side by side. Shapes: N queries, F features, C intents.
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

PENALTIES = (0.3, 1.0, 3.0)  # of an error, C: the smaller, the stronger the regularisation


class Features:
    """TF-IDF of words and characters.

    Args:
        texts: The queries that they are counted on.
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
        """The features of N queries, a sparse matrix (N, F) float32."""
        return scipy.sparse.hstack([part.transform(texts) for part in self.parts], format="csr")

    @property
    def bytes(self) -> int:
        """Their text in UTF-8, and a float32 weight of each."""
        return sum(len(term.encode()) + 4 for part in self.parts for term in part.vocabulary_)


class LinearClassifier:
    """The fitted classifier.

    Args:
        features: TF-IDF.
        machine: A `LinearSVC` of at least three intents.
    """

    def __init__(self, features: Features, machine: Any) -> None:
        self.features = features
        self.labels = machine.classes_
        self.weights = np.ascontiguousarray(machine.coef_.T, dtype=np.float32)
        self.biases = machine.intercept_.astype(np.float32)

    @property
    def bytes(self) -> int:
        """Features, weights and biases."""
        return self.features.bytes + self.weights.nbytes + self.biases.nbytes

    def decide(self, texts: list[str]) -> np.ndarray:
        """The decision values of N queries, (N, C) float32."""
        return self.features(texts) @ self.weights + self.biases

    def answer(self, texts: list[str]) -> Answers:
        """Labels of N queries, with minus their largest decision values; there are no probabilities."""
        values = self.decide(texts)
        return Answers(self.labels[values.argmax(1)], -values.max(1))

    @classmethod
    def fit(cls, examples: Examples, penalty: float) -> "LinearClassifier":
        """Learns from queries and their intents."""
        features = Features(examples.texts)
        machine = LinearSVC(C=penalty, random_state=0).fit(features(examples.texts), examples.labels)
        return cls(features, machine)
