"""Copying a bank into another one, of a folder or of Milvus: it resumes where it was interrupted, and is verified.

Notable: the order in which entries were added within a namespace, by which `digest` compares banks, is kept; ids are
new. Keys are copied as they are, in bfloat16.
Shapes: N entries.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from ..common.paths import is_address
from .bank import HistoryBank
from .manifest import MANIFEST, BankError, Manifest
from .projection import Projection
from .protocol import Bank, Snapshot
from .rows import rows_of
from .segment import Segment

AT_ONCE = 16_384  # entries from which a part of a copy is written, in one change


class Copied(Snapshot, Protocol):
    """A snapshot that can be copied."""

    @property
    def manifest(self) -> Manifest:
        """The import progress of its sources."""
        ...

    def segments(self, namespaces: Iterable[str] | None = None) -> Iterator[tuple[str, Segment]]:
        """Namespace and live entries of parts of the bank, in the order in which they were added."""
        ...


def copy_to(source: Bank, target: str | Path, progress: Callable[[int], Any] = lambda entries: None) -> HistoryBank:
    """Copies a bank to a folder or an address; repeated, it goes on where it was.

    Args:
        source: A bank in a folder or in Milvus.
        target: Where the copy is, or is to be.
        progress: Called with the number of entries that have been copied since the last call.

    Returns:
        The copy.

    Raises:
        BankError: The target holds something else than the beginning of the source, or either was changed meanwhile.
    """
    state: Any = source.snapshot()
    bank = HistoryBank.open(target) if bank_exists(target) else create_like(state, target)
    copy_bank(state, bank, progress)
    if len(bank) != len(state) or digest(bank.snapshot()) != digest(state):
        raise BankError(
            f"{bank.name} is no copy of {state.name}: it held something else before, or was changed meanwhile; remove "
            "it and copy again"
        )
    return bank


def keep(bank: Bank, place: str | Path) -> None:
    """Writes a copy of a bank to a place without one: into a folder as a whole or not at all, in Milvus in parts.

    Raises:
        FileExistsError: There is one.
    """
    if is_address(place):
        state: Any = bank.snapshot()
        copy_bank(state, create_like(state, place))
    else:
        bank.save_pretrained(place)


def create_like(state: Copied, place: str | Path) -> HistoryBank:
    """Makes a bank without entries for the same model; raises a BankError if keys are projected in another way."""
    width = None if state.projection is None else state.width
    if state.projection is not None:
        due = Projection.random(state.state_width, state.width)
        if not torch.equal(due.axes, state.projection.axes):
            raise BankError(f"{state.name} has axes of a development version: build it again, and copy that")
    labels = None if state.labels is None else ()
    return HistoryBank.create(place, state.fingerprint, state.state_width, state.vocab_size, labels, width)


def bank_exists(place: str | Path) -> bool:
    """Whether there is a bank at a folder or an address."""
    if not is_address(place):
        return (Path(place) / MANIFEST).exists()
    try:
        HistoryBank.open(place)
    except FileNotFoundError:
        return False
    return True


def copy_bank(state: Copied, bank: HistoryBank, progress: Callable[[int], Any] = lambda entries: None) -> None:
    """Copies what a bank does not have yet of a snapshot, namespace by namespace.

    Raises:
        BankError: The bank is of another model, or has more than the snapshot.
    """
    own = (bank.fingerprint, bank.width, bank.state_width, bank.vocab_size, bank.labels is None)
    if own != (state.fingerprint, state.width, state.state_width, state.vocab_size, state.labels is None):
        raise BankError(f"{bank.name} is of another model than {state.name}: give another place")
    for namespace in state.namespaces:
        there = sum(len(segment.documents) for _, segment in bank.snapshot().segments([namespace]))
        for part in _parts(state, namespace, there):
            bank.append([(part, [])], namespace, state.labels or (), are_keys=True)
            progress(len(part))
        added = [item for item in state.manifest.added if item.namespace == namespace]
        if any(bank.snapshot().added(item.namespace, item.source) != item for item in added):
            bank.append([(_no_entries(state.width), added)], namespace, state.labels or (), are_keys=True)


def _parts(state: Copied, namespace: str, skipped: int) -> Iterator[Segment]:
    """The entries of a namespace after the first `skipped` documents, about `AT_ONCE` at a time."""
    waiting: list[Segment] = []
    for _, segment in state.segments([namespace]):
        count = len(segment.documents)
        begin = min(skipped, count)
        skipped -= begin
        ends = torch.searchsorted(segment.positions, segment.starts)  # entries before each document
        while begin < count:
            end = max(begin + 1, int(torch.searchsorted(ends, ends[begin] + AT_ONCE, right=True)) - 1)
            end = min(end, count)
            waiting.append(_cut(segment, begin, end))
            begin = end
            if sum(map(len, waiting)) >= AT_ONCE:
                yield Segment.join(waiting)
                waiting = []
    if waiting:
        yield Segment.join(waiting)


def _cut(segment: Segment, begin: int, end: int) -> Segment:
    """The documents from `begin` to `end` of a segment, with copies of all tensors that `append` changes."""
    start, stop = segment.starts[begin], segment.starts[end]
    first, last = torch.searchsorted(segment.positions, torch.stack([start, stop])).tolist()
    copies = segment.copies[(segment.copies[:, 0] >= first) & (segment.copies[:, 0] < last)]
    return Segment(
        keys=segment.keys[first:last],
        ids=segment.ids[first:last].clone(),
        positions=segment.positions[first:last] - start,
        counts=segment.counts[first:last].clone(),
        copies=copies - torch.stack([torch.tensor(first), start]),
        tokens=segment.tokens[int(start) : int(stop)].clone(),
        starts=segment.starts[begin : end + 1] - start,
        documents=[dict(document) for document in segment.documents[begin:end]],
    )


def _no_entries(width: int) -> Segment:
    none = torch.zeros(0, dtype=torch.long)
    keys, tokens = torch.zeros(0, width, dtype=torch.bfloat16), none.int()
    return Segment(keys, none, none, none.int(), none.view(0, 2), tokens, torch.zeros(1, dtype=torch.long), [])


def digest(state: Copied) -> str:
    """SHA-256 of all that a bank holds, except ids and the numbers of labels: equal banks have equal digests."""
    found = hashlib.sha256()
    about = [state.fingerprint, state.width, state.state_width, state.vocab_size]
    found.update(json.dumps(about).encode())
    for namespace in state.namespaces:
        sources = sorted(dataclasses.astuple(item) for item in state.manifest.added if item.namespace == namespace)
        found.update(json.dumps([namespace, sources]).encode())
        for _, segment in state.segments([namespace]):
            for row in rows_of(segment):
                if len(row["positions"]):
                    _take_in(found, row, state.labels)
    return found.hexdigest()


def _take_in(found: Any, row: dict[str, Any], labels: tuple[str, ...] | None) -> None:
    """Updates a hash with a row of `rows_of`, in which labels stand by their names."""
    tokens, positions, copies = row["tokens"].copy(), row["positions"], row["copies"].reshape(-1, 2)
    names = None
    if labels is not None:
        names = [labels[label] for label in tokens[positions].tolist()]
        tokens[positions] = tokens[copies[:, 1]] = -1
    lists = [positions.tolist(), row["counts"].tolist(), sorted(copies.tolist()), tokens.tolist(), names]
    columns = json.dumps(json.loads(row["columns"]), sort_keys=True)
    found.update(json.dumps([row["source"], row["row"], columns, *lists]).encode())
    found.update(row["keys"])
