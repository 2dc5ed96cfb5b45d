"""Segment: entries of one namespace and the texts that they come from, as one file of a bank holds them.

Shapes: N entries, D width, T tokens of all documents together.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .manifest import BankError, Manifest, SegmentInfo

ROUNDING = 2.0**-6  # largest deviation of the norm of a key from 1: several times the rounding error of bfloat16
CHUNK = 65_536  # keys whose norms are computed at once
_INTEGER = 1 << 63


@dataclasses.dataclass
class Segment:
    """Entries of one namespace, with the texts that they come from.

    Attributes:
        keys: (N, D) bfloat16, normalised states.
        ids: (N,) int64, ascending.
        positions: (N,) int64, ascending; the index of the outcome in `tokens`.
        counts: (N,) int32, number of occurrences: more than one where duplicates were merged.
        copies: (copies, 2) int64, for each further occurrence the index of its entry, and its position.
        tokens: (T,) int32, the documents one after another; -1 where a token was forgotten.
        starts: (documents + 1,) int64, where each document begins in `tokens`; T at the end.
        documents: For each document a mapping with `source`, `row` and the other columns of the row.
    """

    keys: Tensor
    ids: Tensor
    positions: Tensor
    counts: Tensor
    copies: Tensor
    tokens: Tensor
    starts: Tensor
    documents: list[dict[str, Any]]

    tensors = ("keys", "ids", "positions", "counts", "copies", "tokens", "starts")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def outcomes(self) -> Tensor:
        """(N,) int64, the token that follows each key, or the number of its label."""
        return self.tokens[self.positions].long()

    @property
    def owners(self) -> Tensor:
        """(N,) int64, index of the document of each entry."""
        return torch.searchsorted(self.starts, self.positions, right=True) - 1

    @classmethod
    def join(cls, segments: Sequence["Segment"]) -> "Segment":
        """Concatenates segments."""
        entries = torch.tensor([0, *(len(segment) for segment in segments)]).cumsum(0)
        tokens = torch.tensor([0, *(len(segment.tokens) for segment in segments)]).cumsum(0)
        copies = [
            segment.copies + torch.stack([entry, token])
            for segment, entry, token in zip(segments, entries, tokens, strict=False)
        ]
        starts = [segment.starts[:-1] + token for segment, token in zip(segments, tokens, strict=False)]
        return cls(
            keys=torch.cat([segment.keys for segment in segments]),
            ids=torch.cat([segment.ids for segment in segments]),
            positions=torch.cat([part.positions + token for part, token in zip(segments, tokens, strict=False)]),
            counts=torch.cat([segment.counts for segment in segments]),
            copies=torch.cat(copies),
            tokens=torch.cat([segment.tokens for segment in segments]),
            starts=torch.cat([*starts, tokens[-1:]]),
            documents=[document for segment in segments for document in segment.documents],
        )

    def tokens_without(self, forgotten: Tensor) -> Tensor:
        """The tokens (T,) int32, with -1 for those of the entries that are `forgotten` (N,) bool."""
        tokens = self.tokens.clone()
        tokens[self.positions[forgotten]] = -1
        tokens[self.copies[forgotten[self.copies[:, 0]], 1]] = -1
        return tokens

    def without(self, forgotten: Tensor) -> "Segment":
        """A copy without the entries that are `forgotten` (N,) bool, and without documents that have none left.

        The tokens of forgotten entries become -1 in the documents that stay.
        """
        tokens, kept, kept_copies = self.tokens_without(forgotten), ~forgotten, ~forgotten[self.copies[:, 0]]
        documents = torch.unique(self.owners[kept])
        lengths = self.starts.diff()
        stays = torch.zeros(len(self.documents), dtype=torch.bool)
        stays[documents] = True
        token_stays = stays.repeat_interleave(lengths)
        place = token_stays.long().cumsum(0) - 1  # new index of each token
        entry = kept.long().cumsum(0) - 1  # new index of each entry
        copies = self.copies[kept_copies]
        return Segment(
            keys=self.keys[kept],
            ids=self.ids[kept],
            positions=place[self.positions[kept]],
            counts=self.counts[kept],
            copies=torch.stack([entry[copies[:, 0]], place[copies[:, 1]]], dim=1),
            tokens=tokens[token_stays],
            starts=torch.cat([lengths.new_zeros(1), lengths[documents].cumsum(0)]),
            documents=[self.documents[index] for index in documents.tolist()],
        )


LAYOUT = {  # dtype and number of dimensions of each tensor in a file
    "keys": (torch.bfloat16, 2),
    "ids": (torch.int64, 1),
    "positions": (torch.int64, 1),
    "counts": (torch.int32, 1),
    "copies": (torch.int64, 2),
    "tokens": (torch.int32, 1),
    "starts": (torch.int64, 1),
    "documents": (torch.uint8, 1),
}


def check_layout(tensors: Mapping[str, Tensor], info: SegmentInfo) -> None:
    """Raises a BankError unless the tensors of a file have the names, dtypes and sizes of this segment."""
    if set(tensors) != set(LAYOUT):
        raise BankError(f"holds the tensors {', '.join(sorted(tensors)):.200}, not those of a segment")
    for name, (dtype, dimensions) in LAYOUT.items():
        if tensors[name].dtype != dtype or tensors[name].dim() != dimensions:
            raise BankError(f"has {name} of {tensors[name].dtype} {tuple(tensors[name].shape)}")
    due = {"keys": info.entries, "ids": info.entries, "positions": info.entries, "counts": info.entries}
    due |= {"tokens": info.tokens, "starts": info.documents + 1}
    for name, length in due.items():
        if len(tensors[name]) != length:
            raise BankError(f"has {len(tensors[name])} {name}, and its manifest says {length}")
    if tensors["copies"].shape[1] != 2:
        raise BankError(f"has copies of the shape {tuple(tensors['copies'].shape)}")


def parse_documents(lines: Tensor, count: int, of_labels: bool) -> list[dict[str, Any]]:
    """Reads the documents of a segment from their bytes (1-D uint8); raises a BankError if they are invalid."""
    try:
        # Not splitlines(): JSON does not escape the line breaks of Unicode, such as U+2028.
        parts = lines.numpy().tobytes().decode().split("\n")
        documents = [json.loads(line) for line in parts if line]
    except (ValueError, RecursionError) as error:
        raise BankError(f"has documents that cannot be read ({error})") from error
    if len(documents) != count:
        raise BankError(f"has {len(documents)} documents, and its manifest says {count}")
    check_documents(documents, of_labels)
    return documents


def check_documents(documents: Sequence[Any], of_labels: bool) -> None:
    """Raises a BankError unless these can be documents of a bank, one of labels if `of_labels`."""
    texts = ("source", "text", "label") if of_labels else ("source",)
    for number, document in enumerate(documents):
        right = isinstance(document, dict) and all(isinstance(document.get(name), str) for name in texts)
        if not right or type(document.get("row")) is not int or not 0 <= document["row"] < _INTEGER:
            raise BankError(f"has a document {number} without {', '.join(texts)} and row")


def check_values(segment: "Segment", manifest: Manifest) -> None:
    """Raises a BankError unless the values of a segment are possible in this bank."""
    size, length = len(segment), len(segment.tokens)
    ids, positions, copies, starts = segment.ids, segment.positions, segment.copies, segment.starts
    outcomes = len(manifest.labels) if manifest.labels is not None else manifest.vocab_size
    if {len(segment.keys), len(positions), len(segment.counts)} != {size}:
        raise BankError("has not as many keys, positions and counts as ids")
    if segment.keys.shape[1] != manifest.width:
        raise BankError(f"has keys of the width {segment.keys.shape[1]}, and its manifest says {manifest.width}")
    if not _is_ascending(ids) or not _is_within(ids, 0, manifest.next_id):
        raise BankError("has ids that are not ascending, or that were never given")
    if not _is_ascending(positions) or not _is_within(positions, 0, length):
        raise BankError("has entries that stand in no text")
    if int(starts[0]) != 0 or int(starts[-1]) != length or bool((starts.diff() < 0).any()):
        raise BankError("has documents that do not follow one another")
    if not _is_within(copies[:, 0], 0, size) or not _is_within(copies[:, 1], 0, length):
        raise BankError("has copies of no entry")
    if not _is_within(segment.counts, 1, None):
        raise BankError("has entries that never occurred")
    if not _is_within(segment.outcomes, 0, outcomes):
        raise BankError(f"has outcomes that are none of the {outcomes} of its manifest")
    of_text = torch.ones(length, dtype=torch.bool)
    of_text[positions] = False
    if not _is_within(segment.tokens[of_text], -1, manifest.vocab_size):
        raise BankError("has tokens that are not in its vocabulary")
    for part in segment.keys.split(CHUNK):
        norms = torch.linalg.vector_norm(part.float(), dim=1)
        if not bool((((norms - 1).abs() <= ROUNDING) | (norms == 0)).all()):  # a state may be zero
            raise BankError("has keys that are not normalised")


def check_together(segments: Sequence["Segment"], forgotten: Tensor) -> None:
    """Raises a BankError if two entries of a bank share an id, or a forgotten id (1-D int64) does not exist."""
    ids = torch.cat([torch.zeros(0, dtype=torch.long), *(segment.ids for segment in segments)])
    if not _is_ascending(ids):
        ids = ids.sort().values  # of segments that were not joined in their order
    if not _is_ascending(ids):
        raise BankError("names segments with entries of one id")
    place = torch.searchsorted(ids, forgotten).clamp(max=max(0, len(ids) - 1))
    if len(forgotten) and not (len(ids) and torch.equal(ids[place], forgotten)):
        raise BankError("names forgotten entries that it does not have")


def check_forgotten(tensors: Mapping[str, Tensor], next_id: int) -> Tensor:
    """The ids (N,) int64 in a file of forgotten entries; raises a BankError if they are invalid."""
    ids = tensors.get("ids")
    if set(tensors) != {"ids"} or ids is None or ids.dtype != torch.int64 or ids.dim() != 1:
        raise BankError("does not hold the ids of forgotten entries")
    if not _is_ascending(ids) or not _is_within(ids, 0, next_id):
        raise BankError("has ids that are not ascending, or that were never given")
    return ids


def _is_ascending(values: Tensor) -> bool:
    return not bool((values[1:] <= values[:-1]).any())


def _is_within(values: Tensor, least: int, end: int | None) -> bool:
    """Whether all values are at least `least` and below `end`."""
    if not len(values):
        return True
    return int(values.min()) >= least and (end is None or int(values.max()) < end)
