"""Records that a bank returns: search results, the text around an entry, documents, and keys with their outcomes.

Shapes: Q queries, K neighbours, N entries, T tokens of a document, D width.
"""

from collections.abc import Mapping
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

    @classmethod
    def of(
        cls,
        number: int,
        namespace: str,
        document: Mapping[str, Any],
        tokens: Tensor,
        position: int,
        sides: tuple[int, int],
    ) -> "EntryText":
        """The text around an entry.

        Args:
            number: Id of the entry.
            namespace: Its namespace.
            document: Its document: `source`, `row` and the other columns.
            tokens: (T,) int32, the document's tokens.
            position: Index of the outcome in `tokens`.
            sides: Numbers of tokens before the entry and after it.
        """
        columns, (before, after) = dict(document), sides
        return cls(
            id=number,
            namespace=namespace,
            source=columns.pop("source"),
            row=columns.pop("row"),
            columns=columns,
            before=tokens[max(0, position - before) : position].tolist(),
            outcome=int(tokens[position]),
            after=tokens[position + 1 : position + 1 + after].tolist(),
            since=tokens[1:position],
        )


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
