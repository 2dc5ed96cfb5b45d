"""MilvusState: the snapshot of a bank in Milvus, which is searched, described and listed.

Notable: a state is a head (layout.py). Its entries are those with ids below `next_id` that no change up to its
generation forgot, so that one condition in every request selects them; what an unfinished change has written has
larger ids, or is forgotten by a later change. Numbers of entries, sources and labels need no request.
Shapes: D width, Q queries, N entries, K neighbours, L labels.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...common.checks import check_neighbours
from ...common.precision import outside_autocast
from ..base_state import BaseState
from ..found import Document, Entries, EntryText, Found
from ..manifest import BankError
from ..nearest import best, similarities
from ..projection import Projection
from ..protocol import Search
from ..rows import documents_of, segment_of
from ..segment import Segment
from ..suffixes import Texts
from .engine import MOST_ROWS, Engine
from .layout import (
    CELLS,
    DOCUMENT,
    ENTRY,
    PARTS,
    Collections,
    Head,
    Stored,
    as_keys,
    as_vectors,
    key_bytes,
    part_names,
)

PROBES: dict[Search, int] = {"exact": CELLS, "balanced": CELLS // 16, "fast": CELLS // 64}  # cells that are read
QUERIES, HITS = 1_024, 65_536  # of one request
DOCUMENTS, ENTRIES = 1_024, 8_192  # that are listed at once
ATTEMPTS = 5  # readings of a manifest that a writer is replacing


def read_head(engine: Engine, names: Collections, before: Head | None = None) -> Head:
    """The newest head; `before` itself if nothing has changed since.

    Raises:
        BankError: There is none.
    """
    where = f"the bank {engine.address}"
    for _ in range(ATTEMPTS):
        rows = engine.get(names.log, ["head"], ["text"])
        if not rows:
            continue
        newest = json.loads(rows[0]["text"])
        if before is not None and newest["generation"] == before.manifest.generation:
            return before
        ids = part_names(newest["generation"], newest["parts"])
        found = {row["id"]: row["text"] for row in engine.get(names.log, ids, ["id", "text"])}
        if all(name in found for name in ids):  # else a newer one has replaced it
            return Head.from_text("".join(found[name] for name in ids), where)
    raise BankError(f"{where} has no head: it was being made or removed; see that nobody does, and build it again")


class MilvusState(BaseState):
    """State of a bank, which `MilvusBank.snapshot` returns; any number of threads may use it.

    What was forgotten after it, it still finds until `compact` takes that from the storage.

    Args:
        engine: The engine.
        names: The collections.
        head: The head.
        of_floats: Whether keys are float32 vectors, by which the engine scores exactly, or bfloat16.
    """

    def __init__(self, engine: Engine, names: Collections, head: Head, of_floats: bool) -> None:
        super().__init__(head.manifest)
        self.engine, self.names, self.head, self.of_floats = engine, names, head, of_floats
        self.projection: Projection | None = None
        if head.state_width != self.manifest.width:
            self.projection = Projection.random(head.state_width, self.manifest.width)

    @property
    def name(self) -> str:
        """Name of the bank in messages: its address."""
        return str(self.engine.address)

    @property
    def state_width(self) -> int:
        """Width of the states that keys are made of: D, unless keys are projected."""
        return self.head.state_width

    @property
    def entries_by_namespace(self) -> dict[str, int]:
        """Number of entries of each namespace that has one, sorted by name."""
        totals: dict[str, int] = defaultdict(int)
        for (namespace, _), count in self.head.counts.items():
            totals[namespace] += count
        return dict(sorted(totals.items()))

    @property
    def namespaces(self) -> list[str]:
        """The namespaces that hold entries."""
        return list(self.once("namespaces", lambda: self.entries_by_namespace))

    def __len__(self) -> int:
        """Number of entries that can be recalled."""
        return sum(self.head.counts.values())

    def live_outcomes(self, namespaces: Iterable[str] | None = None) -> Tensor:
        """As `Snapshot.live_outcomes`."""
        live = torch.zeros(len(self.labels or ()), dtype=torch.bool)
        for name in self.check_namespaces(self.namespaces if namespaces is None else namespaces):
            counts = torch.tensor(self.head.outcomes.get(name, ()), dtype=torch.long)
            live[: len(counts)] |= counts > 0
        return live

    # Searching

    @outside_autocast
    def search(
        self, queries: Tensor, neighbours: int, namespaces: Iterable[str] | None = None, how: Search = "balanced"
    ) -> Found:
        """As `Snapshot.search`; the words of `how` say how much of the engine's index is read (`PROBES`)."""
        if queries.dim() != 2 or queries.shape[1] != self.state_width:
            raise ValueError(f"queries must be (Q, {self.state_width}), got {tuple(queries.shape)}")
        check_neighbours(neighbours)
        if neighbours > MOST_ROWS:
            raise ValueError(f"a search in Milvus finds at most {MOST_ROWS:,} neighbours; got {neighbours:,}")
        chosen = None if namespaces is None else self.check_namespaces(namespaces)
        asked = queries.detach().float().cpu()
        asked = asked if self.projection is None else self.projection(asked)
        blank = torch.zeros(len(asked), neighbours, dtype=torch.long)
        found = Found(blank.float(), blank - 1, blank.clone(), blank.int())
        if not len(self) or chosen == () or not len(asked):
            return found
        condition, size = self._condition(chosen), max(1, min(QUERIES, HITS // neighbours))
        for begin in range(0, len(asked), size):
            part = asked[begin : begin + size]
            vectors, fields = as_vectors(part, self.of_floats), ("outcome", "count")
            hits = self.engine.search(self.names.entries, vectors, neighbours, condition, fields, PROBES[how])
            self._fill(found, begin, part, hits)
        return found

    def _condition(self, namespaces: Sequence[str] | None) -> str:
        """The condition on entries of this state in some namespaces."""
        condition = f"id < {self.manifest.next_id} and died > {self.generation}"
        return condition if namespaces is None else f"{_any_of('namespace', namespaces)} and {condition}"

    def _fill(self, found: Found, begin: int, queries: Tensor, hits: Any) -> None:
        """Writes hits into the rows of a result from `begin` on, the first entry of equal scores first."""
        for row, own in enumerate(hits, start=begin):
            entries = [(hit["id"], hit["distance"], hit["entity"]["outcome"], hit["entity"]["count"]) for hit in own]
            entries.sort(key=lambda entry: (-entry[1], entry[0]))
            if entries:
                ids, scores, outcomes, counts = (torch.tensor(column) for column in zip(*entries, strict=True))
                found.ids[row, : len(ids)], found.similarity[row, : len(ids)] = ids, scores.float()
                found.outcomes[row, : len(ids)], found.counts[row, : len(ids)] = outcomes, counts.int()
        if not self.of_floats:
            self._score(found, begin, queries)

    def _score(self, found: Found, begin: int, queries: Tensor) -> None:
        """Replaces scores of queries that were rounded to bfloat16 by exact ones, in a fixed order of operations."""
        own = slice(begin, begin + len(queries))
        ids, columns = found.ids[own], ((found.ids, -1), (found.outcomes, 0), (found.counts, 0))
        asked = ids[ids >= 0].unique().tolist()
        rows = sorted(self.engine.get(self.names.entries, asked, ("id", "key")), key=lambda row: row["id"])
        if not rows:
            for column, missing in columns:
                column[own] = missing
            return
        known, keys = torch.tensor([row["id"] for row in rows]), as_keys([row["key"] for row in rows], self.width)
        place = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
        place = place.masked_fill(known[place] != ids, -1)  # none, or compacted meanwhile
        place, order = place.sort(dim=1)  # of equal scores the first entry wins
        chosen = torch.arange(place.shape[1]).expand_as(place).masked_fill(place < 0, -1)
        found.similarity[own], chosen = best(similarities(queries, place, [(0, keys)]), chosen, place.shape[1])
        for column, missing in columns:
            moved = column[own].gather(1, order).gather(1, chosen.clamp(min=0))
            column[own] = moved.masked_fill(chosen < 0, missing)

    # Reading entries and documents

    def live_entries(self, ids: Sequence[int], fields: Sequence[str] = ENTRY) -> dict[int, dict[str, Any]]:
        """Those of the entries that belong to this state, by id, with `died` among their fields."""
        rows = self.engine.get(
            self.names.entries, [number for number in ids if number < self.manifest.next_id], fields
        )
        return {row["id"]: row for row in rows if row["died"] > self.generation}

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raises a BankError if one of the entries does not exist."""
        self._known([int(number) for number in ids])

    def _known(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        rows = self.live_entries(sorted(set(ids)))
        for number in ids:
            if number not in rows:
                raise BankError(f"the bank {self.name} has no entry {number}: it was never made, or was forgotten")
        return rows

    def read_documents(self, numbers: Iterable[int]) -> dict[int, Stored]:
        """Documents by their numbers, as they are kept."""
        first = self.engine.get(self.names.documents, [number * PARTS for number in numbers], DOCUMENT)
        further = [row["id"] + part for row in first for part in range(1, row["parts"])]
        owned: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in (*first, *self.engine.get(self.names.documents, further, DOCUMENT)):
            owned[row["id"] // PARTS].append(row)
        return {number: Stored.from_rows(owned[number]) for number in sorted(owned)}

    def _blank(self, documents: Iterable[Stored]) -> None:
        """Forgets the tokens of entries that this state does not have any more."""
        if not self.head.forgotten:
            return
        by_id = {number: document for document in documents for number in document.ids}
        dead: dict[int, dict[int, int]] = defaultdict(dict)
        for row in self.engine.get(self.names.entries, list(by_id), ENTRY):
            if row["died"] <= self.generation:
                dead[row["document"]][row["id"]] = row["position"]
        for document in {document.number: document for document in by_id.values()}.values():
            document.blank(dead.get(document.number, {}))

    def describe(self, ids: Iterable[int], before: int = 16, after: int = 8) -> list[EntryText]:
        """As `Snapshot.describe`."""
        asked = [int(number) for number in ids]
        entries = self._known(asked)
        documents = self.read_documents(sorted({row["document"] for row in entries.values()}))
        self._blank(documents.values())
        texts = []
        for number in asked:
            row = entries[number]
            document = documents[row["document"]]
            columns = {"source": document.source, "row": document.row, **document.columns}
            tokens = torch.tensor(document.tokens, dtype=torch.int32)
            texts.append(EntryText.of(number, document.namespace, columns, tokens, row["position"], (before, after)))
        return texts

    def found_documents(self, condition: str = "") -> Iterator[list[dict[str, Any]]]:
        """First parts of the documents for which a condition holds, in lists of up to 8,192 entries, in their order.

        Args:
            condition: A condition on the fields of documents; "": all.
        """
        fields = [field for field in DOCUMENT if field != "text"]
        for begin in range(0, self.head.next_document, DOCUMENTS):
            end = min(begin + DOCUMENTS, self.head.next_document)
            if condition:
                within = f"id >= {begin * PARTS} and id < {end * PARTS} and part == 0 and {condition}"
                rows = self.engine.query(self.names.documents, within, fields)
            else:
                rows = self.engine.get(self.names.documents, [n * PARTS for n in range(begin, end)], fields)
            group: list[dict[str, Any]] = []
            size = 0
            for row in sorted(rows, key=lambda row: row["id"]):
                if group and size + row["entries"] > ENTRIES:
                    yield group
                    group, size = [], 0
                group.append(row)
                size += row["entries"]
            if group:
                yield group

    def segments(self, namespaces: Iterable[str] | None = None) -> Iterator[tuple[str, Segment]]:
        """Namespace and entries of parts of the bank, without forgotten ones, whose tokens are -1."""
        chosen = None if namespaces is None else [name for name in set(namespaces) if name in self.namespaces]
        if chosen == []:
            return
        for group in self.found_documents("" if chosen is None else _any_of("namespace", chosen)):
            documents = self.read_documents([row["id"] // PARTS for row in group])
            self._blank(documents.values())
            owned: dict[str, list[Stored]] = defaultdict(list)
            for document in documents.values():
                owned[document.namespace].append(document)
            rows = self.live_entries([n for document in documents.values() for n in document.ids], (*ENTRY, "key"))
            for namespace, own in owned.items():
                segment = self._segment(own, rows)
                if segment is not None:
                    yield namespace, segment

    def _segment(self, documents: Sequence[Stored], entries: dict[int, dict[str, Any]]) -> Segment | None:
        """The segment of documents with those of their entries that are live; None if none is."""
        rows, ids = [], []
        for document in documents:
            own = [number for number in document.ids if number in entries]
            if own:
                place = {number: index for index, number in enumerate(own)}
                copies = [(place[number], position) for number, position in document.copies if number in place]
                keys = as_keys([entries[number]["key"] for number in own], self.width)
                rows.append(
                    {
                        "source": document.source,
                        "row": document.row,
                        "columns": json.dumps(document.columns),
                        "tokens": document.tokens,
                        "positions": [entries[number]["position"] for number in own],
                        "counts": [entries[number]["count"] for number in own],
                        "copies": [value for copy in copies for value in copy],
                        "keys": key_bytes(keys),
                    }
                )
                ids += own
        if not rows:
            return None
        segment = segment_of(rows, self.width)
        segment.ids = torch.tensor(ids)
        return segment

    def documents(self, namespaces: Iterable[str] | None = None) -> Iterator[Document]:
        """As `Snapshot.documents`."""
        for namespace, segment in self.segments(namespaces):
            every = torch.ones(len(segment), dtype=torch.bool)
            yield from documents_of(namespace, segment, segment.tokens, every)

    def entries(self, namespaces: Iterable[str] | None = None) -> Iterator[Entries]:
        """As `Snapshot.entries`."""
        for namespace, segment in self.segments(namespaces):
            yield Entries(namespace, segment.keys, segment.ids, segment.outcomes, segment.counts)

    def kept_texts(self, namespaces: Iterable[str] | None = None) -> Iterator[Texts]:
        """As `Snapshot.kept_texts`."""
        for _, segment in self.segments(namespaces):
            yield Texts(segment.tokens, segment.starts, segment.positions, segment.ids, segment.counts)

    def columns(self) -> set[str]:
        """Names of all columns of the documents, `source` and `row` included."""
        names = {"source", "row"} if len(self) else set()
        for group in self.found_documents():
            for document in self.read_documents([row["id"] // PARTS for row in group]).values():
                names |= document.columns.keys()
        return names


def _any_of(field: str, names: Iterable[str]) -> str:
    """The condition that a text field has one of some values."""
    return f"{field} in [{', '.join(json.dumps(name, ensure_ascii=False) for name in names)}]"


def source_condition(source: str | None, namespace: str | None) -> str:
    """The condition on documents of a source and a namespace; "" if neither is given."""
    given = [
        _any_of(field, [name]) for field, name in (("source", source), ("namespace", namespace)) if name is not None
    ]
    return " and ".join(given)
