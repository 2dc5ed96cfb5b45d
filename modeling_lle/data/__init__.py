"""Text, and the continuous streams that it is read as."""

from .corpus import python_corpus
from .streams import StreamDataset, StreamIterableDataset
from .text import TextTokens, collect, load_texts, tokenize

__all__ = [
    "StreamDataset",
    "StreamIterableDataset",
    "TextTokens",
    "collect",
    "load_texts",
    "python_corpus",
    "tokenize",
]
