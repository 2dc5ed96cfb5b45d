"""Loading of texts, labelled texts and sentence pairs, and streams for training.

Notable: modules are imported when a name is used, so that reading a small file need not wait for `datasets`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .corpus import python_corpus
    from .gather import Survey, survey
    from .glossary import Glossary, Term, load_glossary
    from .labelled import check_labelled, load_labelled, split_out_of_scope
    from .pairs import load_pairs
    from .streams import StreamDataset, StreamIterableDataset
    from .text import TextTokens, collect, load_texts, tokenize

__all__ = [
    "Glossary",
    "StreamDataset",
    "StreamIterableDataset",
    "Survey",
    "Term",
    "TextTokens",
    "check_labelled",
    "collect",
    "load_glossary",
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
    from . import corpus, gather, glossary, labelled, pairs, streams, text

    homes = {
        corpus: ("python_corpus",),
        gather: ("Survey", "survey"),
        glossary: ("Glossary", "Term", "load_glossary"),
        labelled: ("check_labelled", "load_labelled", "split_out_of_scope"),
        pairs: ("load_pairs",),
        streams: ("StreamDataset", "StreamIterableDataset"),
        text: ("TextTokens", "collect", "load_texts", "tokenize"),
    }
    return next(getattr(module, name) for module, names in homes.items() if name in names)
