"""Loading of texts, labelled texts and sentence pairs, and streams for training.

Notable: modules are imported when a name is used, so that reading a small file need not wait for `datasets`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .corpus import python_corpus
    from .gather import Survey, survey
    from .labelled import check_labelled, load_labelled, split_out_of_scope
    from .pairs import load_pairs
    from .streams import StreamDataset, StreamIterableDataset
    from .text import TextTokens, collect, load_texts, tokenize

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
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import corpus, gather, labelled, pairs, streams, text

    modules = (gather, labelled, pairs, streams, text, corpus)  # corpus last: it has the tokenize of Python
    return next(vars(module)[name] for module in modules if name in vars(module))
