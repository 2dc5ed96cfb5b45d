"""MilvusBank: a bank in Milvus, for entries beyond one machine, or many processes that write.

Notable: a change writes its rows first, where no state sees them, and then one row that puts the next generation in
force, so that every client sees a change as a whole or not at all. `snapshot` asks for that row each time: what one
client has forgotten, a search of another that begins afterwards does not find. Writers take turns (lease.py), and who
takes over from one that died sweeps its rows.
Shapes: D width, N entries.
"""

import contextlib
import dataclasses
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...common.temporary import TemporaryFolder
from ..address import Address
from ..base import BaseBank, upload
from ..changes import Condition, kept_sources, named
from ..files import Folder
from ..manifest import Added, BankError, Manifest, Projected, check_names
from ..projection import check_key_width
from ..protocol import Where
from ..segment import Segment, check_values
from .engine import Engine
from .layout import (
    ALIVE,
    ENTRY,
    PARTS,
    Collections,
    Head,
    check_sizes,
    entry_rows,
    outcome_counters,
    outcome_lists,
    part_names,
    stored_of,
)
from .lease import Lease
from .state import MilvusState, read_head, source_condition

SETTLED = 65_536  # entries that are written until the engine is asked to index them
_FLOATS = 101  # pymilvus' DataType.FLOAT_VECTOR


class MilvusBank(BaseBank):
    """Entries of past sequences in Milvus. `HistoryBank.open`, `create` and `build` give it for an address.

    Threads and processes: as `HistoryBank`, and no process needs to `refresh`. The methods that `Bank` does not have
    are those of `HistoryBank`.

    Args:
        engine: The engine.
        seconds, wait: As of `Lease`.

    Raises:
        FileNotFoundError: There is no bank.
        BankError: The collection is of something else, damaged, or of a newer version; or there is no answer.
    """

    def __init__(self, engine: Engine, seconds: float | None = None, wait: float | None = None) -> None:
        self.engine, self.names = engine, Collections(engine.address.collection)
        if not engine.has(self.names.log):
            if engine.has(self.names.entries):
                raise BankError(f"the collection of {engine.address} is no bank: choose another name")
            raise FileNotFoundError(f"there is no bank at {engine.address}: `lle bank build` makes one")
        for name in self.names.every:
            engine.load(name)
        head = read_head(engine, self.names)
        key = engine.fields(self.names.entries).get("key", {})
        if int(key.get("params", {}).get("dim", 0)) != head.manifest.width:
            raise BankError(f"{engine.address} has other keys than its head says: it is damaged, copy the bank again")
        self._state = MilvusState(engine, self.names, head, int(key["type"]) == _FLOATS)
        self._lease = Lease(engine, self.names.tickets, seconds, wait)
        self._swapping, self._turn = threading.RLock(), threading.Lock()
        self._writer: int | None = None  # the thread that may write
        self._is_open, self._unsettled = False, 0  # whether a change has begun; entries since the engine was asked

    @classmethod
    def open(cls, place: str | Path) -> "MilvusBank":
        """Opens the bank at an address."""
        return cls(Engine(Address.parse(place)))

    @classmethod
    def create(
        cls,
        place: str | Path,
        fingerprint: str,
        width: int,
        vocab_size: int,
        labels: tuple[str, ...] | None = None,
        key_width: int | None = None,
    ) -> "MilvusBank":
        """Makes a bank without entries; arguments as in `HistoryBank.create`.

        Raises:
            FileExistsError: There is a collection of the name.
        """
        check_key_width(key_width, width)
        engine = Engine(Address.parse(place))
        names = Collections(engine.address.collection)
        if engine.has(names.log) and not engine.get(names.log, ["head"], ["id"]):
            names.drop(engine)  # what a killed process left
        if any(engine.has(name) for name in names.every):
            raise FileExistsError(f"there is a collection {engine.address} already: open it, or choose another name")
        identity = uuid.uuid4().hex
        manifest = Manifest(fingerprint, key_width or width, vocab_size, labels=labels, identity=identity)
        names.create(engine, manifest.width)
        for row in Head(manifest, width).to_rows():
            engine.write(names.log, [row], 64)
        return cls(engine)

    # The state

    def snapshot(self) -> MilvusState:
        """The newest state that any client has made; to know it takes one request."""
        if self._writer != threading.get_ident():
            self.refresh()
        return self._state

    def refresh(self) -> bool:
        """Takes in what other clients have written; returns whether there was anything."""
        before = self._state
        head = read_head(self.engine, self.names, before.head)
        with self._swapping:
            # Of readings at the same time the newest one stays.
            if head.manifest.generation > self._state.generation or head.manifest.identity != before.manifest.identity:
                self._state = MilvusState(self.engine, self.names, head, before.of_floats)
        return head is not before.head

    @property
    def name(self) -> str:
        """Its address."""
        return self._state.name

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that made the keys."""
        return self._state.fingerprint

    @property
    def width(self) -> int:
        """Width of the keys."""
        return self._state.width

    @property
    def state_width(self) -> int:
        """Width of the states that keys are made of."""
        return self._state.state_width

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the model that made the keys."""
        return self._state.vocab_size

    def __repr__(self) -> str:
        return f"MilvusBank({self.name!r}, {len(self._state):,} entries, namespaces: {self._state.namespaces})"

    def segments(self) -> Iterator[tuple[str, Segment]]:
        """As `MilvusState.segments`."""
        return self.snapshot().segments()

    def info(self) -> dict[str, Any]:
        """Size and content as plain values; `bytes` are those of the keys alone, as the engine tells no others."""
        state = self.snapshot()
        size = (len(state) + state.head.forgotten) * state.width * (4 if state.of_floats else 2)
        return {
            "path": self.name,
            "entries": len(state),
            "forgotten": state.head.forgotten,
            "namespaces": state.entries_by_namespace,
            "sources": [dataclasses.asdict(added) for added in state.manifest.added],
            "bytes": size,
            "bytes_per_entry": size / max(1, len(state)),
            "width": state.width,
            "state_width": state.state_width,
            "is_projected": state.projection is not None,
            "vocab_size": state.vocab_size,
            "fingerprint": state.fingerprint,
            "generation": state.generation,
        }

    # Writing

    @contextlib.contextmanager
    def writing(self) -> Iterator[MilvusState]:
        """As `Bank.writing`; it waits for other writers for a minute or two."""
        if self._writer == threading.get_ident():
            yield self._state
            return
        with self._of_this_client(), self._lease.held() as dead:
            self.refresh()
            if dead:
                self._sweep()
                self._lease.bury(dead)
            self._writer = threading.get_ident()
            try:
                yield self._state
            finally:
                self._writer = None
                if self._is_open:  # the change was cut short
                    try:
                        self._sweep()
                    except BankError:
                        self._lease.abandon()

    @contextlib.contextmanager
    def _of_this_client(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=self._lease.wait):
            raise TimeoutError(f"another thread writes to {self.name}: try again")
        try:
            yield
        finally:
            self._turn.release()

    def _write(self, collection: str, rows: Iterable[dict[str, Any]], size: int, partial: bool = False) -> None:
        """Writes rows of `size` bytes while no other client may; they stay unseen until `_commit`."""
        self._is_open = True
        part: list[dict[str, Any]] = []
        for row in rows:
            part.append(row)
            if len(part) * size >= 8 << 20:
                self._lease.check()
                self.engine.write(collection, part, size, partial)
                part = []
        self._lease.check()
        self.engine.write(collection, part, size, partial)

    def _commit(self, head: Head) -> None:
        """Puts the head of the next generation in force."""
        before = self._state.head
        manifest = dataclasses.replace(head.manifest, generation=before.manifest.generation + 1)
        head = dataclasses.replace(head, manifest=manifest)
        *parts, newest = head.to_rows()
        self._write(self.names.log, parts, 64_000)
        self._write(self.names.log, [newest], 64)
        self._is_open = False
        with self._swapping:
            self._state = MilvusState(self.engine, self.names, head, self._state.of_floats)
        with contextlib.suppress(BankError):  # what stays is removed by `compact`
            self.engine.delete(self.names.log, part_names(before.manifest.generation, len(before.to_rows()) - 1))

    def _sweep(self) -> None:
        """Removes what changes that were cut short have written."""
        head, entries = self._state.head, self.names.entries
        next_id, next_document, generation = head.manifest.next_id, head.next_document, head.manifest.generation
        for collection, first in ((entries, next_id), (self.names.documents, next_document * PARTS)):
            while rows := self.engine.query(collection, f"id >= {first}", ["id"]):
                self.engine.delete(collection, [row["id"] for row in rows])
        while rows := self.engine.query(entries, f"died > {generation} and died < {ALIVE}", ["id", "namespace"]):
            self.engine.write(entries, [{**row, "died": ALIVE} for row in rows], 64, partial=True)
        self._is_open = False

    def append(
        self,
        segments: Iterable[tuple[Segment, list[Added]]],
        namespace: str,
        labels: Sequence[str] = (),
        replaced: Iterable[int] = (),
        are_keys: bool = False,
    ) -> int:
        """As `HistoryBank.append`."""
        check_names([("namespace", namespace)])
        total, gone = 0, sorted({int(number) for number in replaced})
        with self.writing():
            self._state.check_ids(gone)
            for segment, added in segments:
                if not are_keys:
                    self._project(segment)
                total += self._append(segment, added, namespace, tuple(labels), gone)
                gone = []
            if self._unsettled >= SETTLED:
                self.settle()
        return total

    def _project(self, segment: Segment) -> None:
        state = self._state
        if len(segment) and segment.keys.shape[1] != state.state_width:
            raise BankError(
                f"the bank {self.name} takes states of the width {state.state_width}, got {segment.keys.shape[1]}: "
                "add with the model that built it"
            )
        if state.projection is not None and len(segment):
            segment.keys = state.projection(segment.keys).bfloat16()

    def _append(
        self, segment: Segment, added: list[Added], namespace: str, labels: tuple[str, ...], gone: list[int]
    ) -> int:
        """Writes a segment as one change, which forgets the entries `gone`."""
        state, size = self._state, len(segment)
        head, manifest, names = state.head, state.manifest, state.labels
        check_sizes([("namespace", namespace), *(("source", item.source) for item in added)])
        counts, outcomes = Counter(head.counts), outcome_counters(head.outcomes)
        self._forget(gone, counts, outcomes)
        if names is not None:
            used = max((label + 1 for own in outcomes.values() for label, n in own.items() if n > 0), default=0)
            names = named(segment, labels, names[:used])
            outcomes[namespace].update(segment.outcomes.tolist())
        first = manifest.next_id
        segment.ids = torch.arange(first, first + size)
        manifest = dataclasses.replace(manifest, next_id=first + size, labels=names)
        check_values(segment, manifest)
        documents = stored_of(segment, namespace, head.next_document, first)
        rows = (row for document in documents for row in document.to_rows())
        self._write(self.names.documents, rows, 16_000)
        self._write(self.names.entries, entry_rows(segment, documents, state.of_floats), 4 * state.width + 128)
        for document in documents:
            counts[namespace, document.source] += document.entries
        changed = {(item.namespace, item.source): item for item in (*manifest.added, *added)}
        self._commit(
            dataclasses.replace(
                head,
                manifest=dataclasses.replace(manifest, added=tuple(changed.values())),
                next_document=head.next_document + len(documents),
                forgotten=head.forgotten + len(gone),
                counts=+counts,
                outcomes=outcome_lists(outcomes),
            )
        )
        self._unsettled += size
        return size

    def _forget(
        self, ids: Sequence[int], counts: "Counter[tuple[str, str]]", outcomes: dict[str, Counter[int]]
    ) -> None:
        """Marks entries as forgotten by the change that is under way, and takes them from the counts."""
        rows = self._state.live_entries(ids, (*ENTRY, "namespace"))
        documents = self._state.read_documents(sorted({row["document"] for row in rows.values()}))
        for row in rows.values():
            counts[row["namespace"], documents[row["document"]].source] -= 1
            outcomes[row["namespace"]][row["outcome"]] -= 1
        died = self._state.generation + 1
        marks = [{"id": number, "namespace": row["namespace"], "died": died} for number, row in rows.items()]
        if marks:
            self._write(self.names.entries, marks, 64, partial=True)

    def forget(
        self,
        ids: Iterable[int] | None = None,
        *,
        source: str | None = None,
        namespace: str | None = None,
        where: Where | None = None,
        missing_ok: bool = False,
    ) -> int:
        """As `HistoryBank.forget`. Columns are compared here, for which every text is read."""
        condition = Condition(ids, source, namespace, where)
        with self.writing() as state:
            if not missing_ok:
                condition.check(state)
            gone = self._selected(state, condition)
            counts, outcomes = Counter(state.head.counts), outcome_counters(state.head.outcomes)
            if gone:
                self._forget(gone, counts, outcomes)
            lost = {place for place, count in counts.items() if count <= 0}
            added = kept_sources(state.manifest.added, condition, lambda: lost)
            if gone or added != state.manifest.added:
                head = dataclasses.replace(
                    state.head,
                    manifest=dataclasses.replace(state.manifest, added=added),
                    forgotten=state.head.forgotten + len(gone),
                    counts=+counts,
                    outcomes=outcome_lists(outcomes),
                )
                self._commit(head)
            elif not missing_ok:
                raise condition.nothing_fits(self.name)
        return len(gone)

    def _selected(self, state: MilvusState, condition: Condition) -> list[int]:
        """Ids of the live entries that a condition selects."""
        chosen = None if condition.ids is None else {int(number) for number in condition.ids}
        if chosen is not None:
            numbers = sorted({row["document"] for row in state.live_entries(sorted(chosen)).values()})
            groups: Iterable[Iterable[int]] = [numbers]
        else:
            found = state.found_documents(source_condition(condition.source, condition.namespace))
            groups = ([row["id"] // PARTS for row in group] for group in found)
        gone: list[int] = []
        for group in groups:
            for document in state.read_documents(group).values():
                columns = {"source": document.source, "row": document.row, **document.columns}
                if condition.namespace in (None, document.namespace) and condition.selects(columns):
                    gone += [number for number in document.ids if chosen is None or number in chosen]
        return sorted(state.live_entries(gone))

    def compact(self) -> int:
        """Removes forgotten entries from the storage: keys, texts, names of sources and labels.

        Snapshots that are older lose them too. The engine frees the space in the background: Milvus when it compacts
        segments, milvus-lite when it merges files.

        Returns:
            The number of bytes of their keys.
        """
        with self.writing() as state:
            removed, condition = 0, f"died <= {state.generation}"
            while rows := self.engine.query(self.names.entries, condition, ENTRY):
                self._remove(state, rows)
                removed += len(rows)
            counts, manifest = state.head.counts, state.manifest
            added = tuple(item for item in manifest.added if (item.namespace, item.source) in counts)
            live = state.live_outcomes().tolist()
            labels = None if state.labels is None else _live_names(state.labels, live)
            if removed or state.head.forgotten or (added, labels) != (manifest.added, manifest.labels):
                manifest = dataclasses.replace(manifest, added=added, labels=labels)
                self._commit(dataclasses.replace(state.head, manifest=manifest, forgotten=0))
            current = {row["id"] for row in self._state.head.to_rows()}
            held = self.engine.query(self.names.log, 'id != ""', ["id"])
            self.engine.delete(self.names.log, [row["id"] for row in held if row["id"] not in current])
            self.settle()
        return removed * state.width * (4 if state.of_floats else 2)

    def _remove(self, state: MilvusState, rows: Sequence[Mapping[str, Any]]) -> None:
        """Removes forgotten entries and their tokens; documents that have no other entry go as a whole."""
        dead: dict[int, dict[int, int]] = defaultdict(dict)
        for row in rows:
            dead[row["document"]][row["id"]] = row["position"]
        for document in state.read_documents(sorted(dead)).values():
            old = [row["id"] for row in document.to_rows()]
            document.blank(dead[document.number])
            self._lease.check()
            new = document.to_rows() if state.live_entries(document.ids) else []
            self.engine.write(self.names.documents, new, 16_000)
            self.engine.delete(self.names.documents, old[len(new) :])
        self._lease.check()
        self.engine.delete(self.names.entries, [row["id"] for row in rows])

    def settle(self) -> None:
        """Has the engine index what was written: done by itself after many entries, worth it after a bulk of them."""
        self.engine.settle(self.names.entries)
        self.engine.settle(self.names.documents)
        self._unsettled = 0

    def verify(self) -> list[str]:
        """Counts the entries that the engine has; returns what unfinished changes have left, which a writer sweeps.

        Raises:
            BankError: Entries or documents are missing.
        """
        state = self.snapshot()
        found = sum(len(segment) for _, segment in state.segments())
        if found != len(state):
            raise BankError(
                f"{self.name} has {found:,} entries, and its head says {len(state):,}: copy the bank again"
            )
        rows = self.engine.query(self.names.entries, f"id >= {state.manifest.next_id}", ["id"])
        return [f"{len(rows):,} entries"] if rows else []

    def drop(self) -> None:
        """Removes the bank, with everything in it."""
        self.names.drop(self.engine)

    def close(self) -> None:
        """Closes the connection."""
        self.engine.close()

    # Copies

    @contextlib.contextmanager
    def saving(self, path: str | Path) -> Iterator[None]:
        """As `HistoryBank.saving`."""
        target, state = Folder(path), self.snapshot()
        if not target.holds_older_copy(state.manifest):
            target.check_free()  # before the lock file is written
        with target.writing():
            if not target.holds_older_copy(state.manifest):
                target.check_free()
            with target.making() as made:
                made.write_manifest(_as_folder(state, made))
                yield

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """As `HistoryBank.push_to_hub`."""
        with TemporaryFolder("lle-upload-") as path:
            self.save_pretrained(path / "bank")
            return upload(path / "bank", Folder(path / "bank").read_manifest(), repo_id, **options)


def _as_folder(state: MilvusState, made: Folder) -> Manifest:
    """Writes the files of a state into a folder, with the same ids; returns their manifest."""
    infos = tuple(made.write_segment(segment, namespace) for namespace, segment in state.segments())
    manifest = dataclasses.replace(state.manifest, segments=infos, identity=uuid.uuid4().hex)
    if state.projection is not None:
        own = Projected(state.state_width, made.write_projection(state.projection))
        manifest = dataclasses.replace(manifest, projection=own)
    return dataclasses.replace(manifest, copy_of=(state.manifest.identity, state.generation))


def _live_names(labels: tuple[str, ...], live: Sequence[bool]) -> tuple[str, ...]:
    """Names of labels, without those at the end that no entry has; others that none has lose their names."""
    used = max((number + 1 for number, is_live in enumerate(live) if is_live), default=0)
    return tuple(name if live[number] else f"forgotten {number}" for number, name in enumerate(labels[:used]))
