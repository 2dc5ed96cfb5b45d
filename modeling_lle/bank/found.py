"""Records that a bank returns: search results, the text around an entry, documents, and keys with their outcomes.

Shapes: Q queries, K neighbours, N entries, T tokens of a document, D width.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Found:
    """Search result.

    Attributes:
        similarity: (Q, K) float32, cosines, descending.
        ids: (Q, K) int64, ids of the entries; -1 where there are fewer than K.
        outcomes: (Q, K) int64, the outcome of each entry: a token id, or in a bank of labels the number of a label.
        counts: (Q, K) int32, how often each entry occurred; 0 where there is none.
    """

    similarity: Tensor
    ids: Tensor
    outcomes: Tensor
    counts: Tensor


@dataclass(frozen=True)
class EntryText:
    """Text around an entry, and where it was added.

    Attributes:
        id: Id of the entry.
        namespace, source, row: Where its document was added.
        columns: The document's other columns.
        before: Token ids up to the entry's key, the oldest first; -1 where one was forgotten, as in `after`.
        outcome: The outcome of the entry.
        after: Token ids after the outcome.
        since: (T,) int32, the tokens of its document from the second one to the key, -1 where one was forgotten.
    """

    id: int
    namespace: str
    source: str
    row: int
    columns: dict[str, Any]
    before: list[int]
    outcome: int
    after: list[int]
    since: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32), compare=False, repr=False)


@dataclass(slots=True)
class Document:
    """One added row of which at least one entry can be recalled.

    Attributes:
        namespace, source, row: Where it was added.
        columns: Its other columns; those of a labelled example are `text` and `label`, those of a sentence pair `text`
            and `translation`.
        tokens: Its T token ids, -1 where one was forgotten: a text or the target of a sentence pair after its start
            token; a labelled text followed by its outcomes.
        ids: Ids of its entries, ascending, without those that were forgotten.
        outcomes: The outcome of each of these entries.
    """

    namespace: str
    source: str
    row: int
    columns: dict[str, Any]
    tokens: list[int]
    ids: list[int]
    outcomes: list[int]


@dataclass(frozen=True)
class Entries:
    """Entries of one namespace with their keys.

    Attributes:
        namespace: The namespace.
        keys: (N, D) bfloat16, normalised.
        ids: (N,) int64.
        outcomes: (N,) int64.
        counts: (N,) int32, how often each entry occurred.
    """

    namespace: str
    keys: Tensor
    ids: Tensor
    outcomes: Tensor
    counts: Tensor
