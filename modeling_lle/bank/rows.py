"""Rows: the documents of a segment one by one, as a bank lists them, and as Parquet files and Milvus keep them.

Shapes: n entries of a document, D width.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .found import Document
from .segment import Segment


def documents_of(namespace: str, segment: Segment, tokens: torch.Tensor, kept: torch.Tensor) -> Iterator[Document]:
    """The documents of a segment with at least one entry that is kept.

    Args:
        namespace: The namespace of the segment.
        segment: The segment.
        tokens: (T,) int32, its tokens, -1 where one was forgotten.
        kept: (N,) bool, which entries can be recalled.
    """
    every, positions = tokens.tolist(), segment.positions[kept]
    ids, outcomes = segment.ids[kept].tolist(), segment.tokens[positions].tolist()
    starts, first = segment.starts.tolist(), torch.searchsorted(positions, segment.starts).tolist()
    for number, (begin, end) in enumerate(itertools.pairwise(first)):
        if begin < end:  # else none of its entries is left
            columns = dict(segment.documents[number])
            yield Document(
                namespace=namespace,
                source=columns.pop("source"),
                row=columns.pop("row"),
                columns=columns,
                tokens=every[starts[number] : starts[number + 1]],
                ids=ids[begin:end],
                outcomes=outcomes[begin:end],
            )


def rows_of(segment: Segment) -> Iterator[dict[str, Any]]:
    """The documents of a segment, each a row.

    Yields:
        `source`, `row`, `columns` (JSON), `tokens` (int32), and of the document's n entries `positions` in the tokens
        (int32), `counts` (int32), `copies` (int32 pairs: which entry, and the position of a further occurrence) and
        `keys` (bytes of n x D bfloat16).
    """
    owners = segment.owners.numpy()
    first = np.searchsorted(owners, np.arange(len(segment.documents) + 1))
    copy_owners = segment.owners[segment.copies[:, 0]].numpy()
    for number, document in enumerate(segment.documents):
        own = slice(first[number], first[number + 1])
        start, end = segment.starts[number : number + 2].tolist()
        copies = segment.copies[torch.from_numpy(copy_owners == number)] - torch.tensor([first[number], start])
        yield {
            "source": document["source"],
            "row": document["row"],
            "columns": json.dumps({k: v for k, v in document.items() if k not in ("source", "row")}),
            "tokens": segment.tokens[start:end].numpy(),
            "positions": (segment.positions[own] - start).int().numpy(),
            "counts": segment.counts[own].numpy(),
            "copies": copies.flatten().int().numpy(),
            "keys": segment.keys[own].contiguous().view(torch.uint8).numpy().tobytes(),
        }


def segment_of(rows: Sequence[dict[str, Any]], width: int) -> Segment:
    """The segment of rows of `rows_of`, with keys of a width and ids from 0."""

    def joined(name: str, offsets: np.ndarray | None = None) -> torch.Tensor:
        parts = [np.array(row[name], dtype=np.int64) for row in rows]
        if offsets is not None:
            parts = [part + offset for part, offset in zip(parts, offsets, strict=True)]
        return torch.from_numpy(np.concatenate(parts))

    starts = np.cumsum([0, *(len(row["tokens"]) for row in rows)])
    entries = np.cumsum([0, *(len(row["positions"]) for row in rows)])
    copies = [
        np.array(row["copies"], dtype=np.int64).reshape(-1, 2) + np.array([entry, start])
        for row, entry, start in zip(rows, entries[:-1], starts[:-1], strict=True)
    ]
    keys = torch.frombuffer(bytearray(b"".join(row["keys"] for row in rows)), dtype=torch.bfloat16)
    return Segment(
        keys=keys.view(-1, width),
        ids=torch.arange(int(entries[-1])),
        positions=joined("positions", starts[:-1]),
        counts=joined("counts").int(),
        copies=torch.from_numpy(np.concatenate(copies)),
        tokens=joined("tokens").int(),
        starts=torch.from_numpy(starts),
        documents=[{"source": row["source"], "row": row["row"], **json.loads(row["columns"])} for row in rows],
    )
