"""Peers of LLE, written from their papers: other methods that learn from text read.

Each reads a text once, as one row with carried state, and predicts each token before reading it. Peer classifiers are
in linear_classifier, logistic_regression, sentence_embedding, encoders, fine_tuned and small_encoder, which need the
extra "benchmark" or packages that they name, and are imported on use.
"""

from .dynamic_evaluation import DynamicEvaluation, root_mean_squares
from .mixture import Segment, read
from .nearest_neighbours import Datastore, NearestNeighbours
from .neural_cache import NeuralCache
from .ngrams import KneserNey, read_cache

__all__ = [
    "Datastore",
    "DynamicEvaluation",
    "KneserNey",
    "NearestNeighbours",
    "NeuralCache",
    "Segment",
    "read",
    "read_cache",
    "root_mean_squares",
]
