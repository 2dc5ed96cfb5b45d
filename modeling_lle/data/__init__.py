"""Loading of texts, labelled texts and sentence pairs, and streams for training.

Notable: names are imported when they are used, so that reading a small file need not wait for `datasets`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .corpus import python_corpus
    from .gather import Survey, survey
    from .labelled import check_labelled, load_labelled, split_out_of_scope
    from .pairs import load_pairs
    from .streams import StreamDataset, StreamIterableDataset
    from .text import TextTokens, collect, load_texts, tokenize

_MODULES = {
    "corpus": ("python_corpus",),
    "gather": ("Survey", "survey"),
    "labelled": ("check_labelled", "load_labelled", "split_out_of_scope"),
    "pairs": ("load_pairs",),
    "streams": ("StreamDataset", "StreamIterableDataset"),
    "text": ("TextTokens", "collect", "load_texts", "tokenize"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "StreamDataset",
    "StreamIterableDataset",
    "Survey",
    "TextTokens",
    "check_labelled",
    "collect",
    "load_labelled",
    "load_pairs",
    "load_texts",
    "python_corpus",
    "split_out_of_scope",
    "survey",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
