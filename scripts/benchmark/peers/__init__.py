"""What LLE is measured against, each written from its paper: other ways to learn from what has been read.

Each reads a text once, as one row, with the state carried from the first to the last token, and predicts every token
before it takes it in. The classifiers that LLE's is measured against are in the modules linear_classifier,
sentence_embedding and small_encoder, which need the extra "benchmark" and are imported where they are used.
"""

from .dynamic_evaluation import DynamicEvaluation, root_mean_squares
from .mixture import Segment, read
from .nearest_neighbours import Datastore, NearestNeighbours
from .neural_cache import NeuralCache

__all__ = [
    "Datastore",
    "DynamicEvaluation",
    "NearestNeighbours",
    "NeuralCache",
    "Segment",
    "read",
    "root_mean_squares",
]
