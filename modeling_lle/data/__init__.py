"""Loading of texts, labelled texts and sentence pairs, and streams for training."""

from .corpus import python_corpus
from .labelled import check_labelled, load_labelled, split_out_of_scope
from .pairs import load_pairs
from .streams import StreamDataset, StreamIterableDataset
from .text import TextTokens, collect, load_texts, tokenize

__all__ = [
    "StreamDataset",
    "StreamIterableDataset",
    "TextTokens",
    "check_labelled",
    "collect",
    "load_labelled",
    "load_pairs",
    "load_texts",
    "python_corpus",
    "split_out_of_scope",
    "tokenize",
]
