"""Layout of a bank in Milvus: its collections, and how head, documents and entries are rows of them.

    NAME             an entry each: id, key, namespace, outcome, count, document, position, died
    NAME_documents   a part of a document each: id, namespace, source, row, first id, number of entries, part, number
                     of parts, and as JSON text its columns, tokens and copies
    NAME_log         the head, which names the generation that is in force, and the parts of the manifest
    NAME_tickets     the clients that write or wait to (lease.py)

Notable: keys have the precision that a bank's folder has, bfloat16; milvus-lite keeps them as float32, which changes
no value. `died` is the change that forgot an entry. Milvus wants a vector in each collection: `blank`.
Shapes: N entries, D width.
"""

import base64
import dataclasses
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..manifest import BankError, Manifest
from ..rows import rows_of
from ..segment import Segment
from .engine import Engine

ALIVE = 1 << 62  # of an entry that was not forgotten
PARTS = 4_096  # ids of a document's parts: number * PARTS + part
CHARACTERS = 16_000  # of a text field: up to 64,000 bytes, and Milvus takes 65,535
NAMES = 4_096  # bytes of the name of a namespace or a source
CELLS = 1_024  # of the index
ENTRY = ("id", "outcome", "count", "document", "position", "died")
DOCUMENT = ("id", "namespace", "source", "row", "first", "entries", "part", "parts", "text")
_BLANK = {"field_name": "blank", "index_type": "FLAT", "metric_type": "L2"}


@dataclasses.dataclass(frozen=True)
class Collections:
    """Names of the collections of a bank."""

    entries: str

    @property
    def documents(self) -> str:
        """The documents."""
        return f"{self.entries}_documents"

    @property
    def log(self) -> str:
        """Head and manifest."""
        return f"{self.entries}_log"

    @property
    def tickets(self) -> str:
        """The clients that write or wait to."""
        return f"{self.entries}_tickets"

    @property
    def every(self) -> tuple[str, ...]:
        """All of them; the log is the first that is made and the last that is removed."""
        return (self.log, self.tickets, self.documents, self.entries)

    def create(self, engine: Engine, width: int) -> None:
        """Makes them, for keys of a width."""
        from pymilvus import DataType

        def text(name: str, size: int, **options: Any) -> dict[str, Any]:
            return {"field_name": name, "datatype": DataType.VARCHAR, "max_length": size, **options}

        def whole(*names: str) -> list[dict[str, Any]]:
            first = {"field_name": names[0], "datatype": DataType.INT64, "is_primary": names[0] == "id"}
            return [first, *({"field_name": name, "datatype": DataType.INT64} for name in names[1:])]

        blank = {"field_name": "blank", "datatype": DataType.FLOAT_VECTOR, "dim": 2}
        name = text("id", 128, is_primary=True)
        space = text("namespace", NAMES, is_partition_key=True)
        key = DataType.FLOAT_VECTOR if engine.is_lite else DataType.BFLOAT16_VECTOR
        numbers = [field for field in DOCUMENT if field not in ("namespace", "source", "text")]
        engine.create(self.log, [name, text("text", 65_535), blank], _BLANK)
        engine.create(self.tickets, [name, *whole("number", "beat"), blank], _BLANK)
        fields = [*whole(*numbers), space, text("source", NAMES), text("text", 65_535), blank]
        engine.create(self.documents, fields, _BLANK)
        fields = [*whole(*ENTRY), {"field_name": "key", "datatype": key, "dim": width}, space]
        cells = {"nlist": CELLS}  # pymilvus sends them one by one, and milvus-lite reads those in "params"
        index = {"index_type": "IVF_FLAT", "metric_type": "IP", "params": {**cells, "params": cells}}
        engine.create(self.entries, fields, {"field_name": "key", **index})

    def drop(self, engine: Engine) -> None:
        """Removes them."""
        for collection in reversed(self.every):
            engine.drop(collection)


# The head


@dataclasses.dataclass(frozen=True)
class Head:
    """A state of a bank.

    Attributes:
        manifest: As that of a folder, without files.
        state_width: Width of the states that keys are made of.
        next_document: Number of the next document.
        forgotten: Number of entries that were forgotten since the last `compact`.
        counts: Number of entries that can be recalled by namespace and source.
        outcomes: In a bank of labels for each namespace the number of entries of each label.
    """

    manifest: Manifest
    state_width: int
    next_document: int = 0
    forgotten: int = 0
    counts: Mapping[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    outcomes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)

    def to_rows(self) -> list[dict[str, Any]]:
        """Rows of the log, of which the last one puts the head in force when it is written."""
        values = {
            "manifest": self.manifest.to_bytes().decode(),
            "state_width": self.state_width,
            "next_document": self.next_document,
            "forgotten": self.forgotten,
            "counts": [[*names, count] for names, count in self.counts.items()],
            "outcomes": {name: list(counts) for name, counts in self.outcomes.items()},
        }
        packed = base64.b64encode(zlib.compress(json.dumps(values).encode())).decode()
        generation = self.manifest.generation
        rows = [_log(f"{generation}-{number}", part) for number, part in enumerate(_pieces(packed, 60_000))]
        return [*rows, _log("head", json.dumps({"generation": generation, "parts": len(rows)}))]

    @classmethod
    def from_text(cls, packed: str, where: str) -> "Head":
        """Reads the joined parts; raises a BankError if they are damaged."""
        try:
            values = json.loads(zlib.decompress(base64.b64decode(packed)))
            manifest = Manifest.from_bytes(values.pop("manifest").encode(), where)
            counts = {(namespace, source): count for namespace, source, count in values.pop("counts")}
            return cls(manifest, counts=counts, **values)
        except BankError:
            raise
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise BankError(f"{where} has a damaged manifest ({error}): restore it, or copy the bank again") from None


def _log(name: str, text: str) -> dict[str, Any]:
    return {"id": name, "text": text, "blank": [0.0, 0.0]}


def part_names(generation: int, parts: int) -> list[str]:
    """Names of the rows that hold the manifest of a generation."""
    return [f"{generation}-{number}" for number in range(parts)]


def _pieces(text: str, size: int) -> Iterator[str]:
    for begin in range(0, len(text) or 1, size):
        yield text[begin : begin + size]


# Documents


@dataclasses.dataclass
class Stored:
    """A document as it is kept.

    Attributes:
        number: Its number in the bank.
        namespace, source, row, columns: Where it was added.
        tokens: Its tokens, -1 where one was forgotten before the last `compact`.
        copies: For each further occurrence of an entry its id and the position.
        first, entries: The ids that its entries got, from `first` on; some may have been forgotten since.
    """

    number: int
    namespace: str
    source: str
    row: int
    columns: dict[str, Any]
    tokens: list[int]
    copies: list[tuple[int, int]]
    first: int
    entries: int

    @property
    def ids(self) -> range:
        """The ids that its entries got."""
        return range(self.first, self.first + self.entries)

    def blank(self, dead: Mapping[int, int]) -> None:
        """Forgets the tokens of entries; `dead` maps their ids to their positions."""
        for position in (*dead.values(), *(position for number, position in self.copies if number in dead)):
            self.tokens[position] = -1
        self.copies = [copy for copy in self.copies if copy[0] not in dead]

    def to_rows(self) -> list[dict[str, Any]]:
        """Rows of the collection of documents."""
        held = {"columns": self.columns, "tokens": self.tokens, "copies": self.copies}
        parts = list(_pieces(json.dumps(held, ensure_ascii=False), CHARACTERS))
        if len(parts) > PARTS:
            raise BankError(f"row {self.row} of {self.source!r} is too long for Milvus: split it")
        common = {"namespace": self.namespace, "source": self.source, "row": self.row, "blank": [0.0, 0.0]}
        common |= {"first": self.first, "entries": self.entries, "parts": len(parts)}
        return [
            {**common, "id": self.number * PARTS + part, "part": part, "text": text} for part, text in enumerate(parts)
        ]

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> "Stored":
        """Reads the rows of one document."""
        rows = sorted(rows, key=lambda row: row["id"])
        held, row = json.loads("".join(row["text"] for row in rows)), rows[0]
        copies = [(number, position) for number, position in held["copies"]]
        place = row["namespace"], row["source"], row["row"], held["columns"]
        return cls(row["id"] // PARTS, *place, held["tokens"], copies, row["first"], row["entries"])


def stored_of(segment: Segment, namespace: str, number: int, first: int) -> list[Stored]:
    """The documents of a segment that have entries, with numbers and ids from `number` and `first` on."""
    found = []
    for row in rows_of(segment):
        size = len(row["positions"])
        if size:
            copies = [(first + int(entry), int(position)) for entry, position in row["copies"].reshape(-1, 2)]
            place = namespace, row["source"], row["row"], json.loads(row["columns"])
            found.append(Stored(number, *place, row["tokens"].tolist(), copies, first, size))
            number, first = number + 1, first + size
    return found


# Entries


def entry_rows(segment: Segment, documents: Iterable[Stored], of_floats: bool) -> Iterator[dict[str, Any]]:
    """Rows of the entries of a segment, in the order of its documents."""
    vectors = as_vectors(segment.keys, of_floats)
    outcomes, counts, positions = segment.outcomes.tolist(), segment.counts.tolist(), segment.positions.tolist()
    starts = segment.starts[torch.unique(segment.owners)].tolist()
    index = 0
    for document, start in zip(documents, starts, strict=True):
        for number in document.ids:
            yield {
                "id": number,
                "key": vectors[index],
                "namespace": document.namespace,
                "outcome": outcomes[index],
                "count": counts[index],
                "document": document.number,
                "position": positions[index] - start,
                "died": ALIVE,
            }
            index += 1


def as_vectors(keys: Tensor, of_floats: bool) -> list[Any]:
    """Keys or queries (N, D) as vectors of the engine: of float32, or the bytes of bfloat16."""
    if of_floats:
        return list(keys.float().numpy())
    values = keys.bfloat16().contiguous().view(torch.int16).numpy()
    return [row.tobytes() for row in values]


def as_keys(vectors: Sequence[Any], width: int) -> Tensor:
    """The opposite: keys (N, D) bfloat16."""
    if not len(vectors):
        return torch.zeros(0, width, dtype=torch.bfloat16)
    first = vectors[0][0] if isinstance(vectors[0], list) and isinstance(vectors[0][0], bytes) else vectors[0]
    if isinstance(first, bytes):
        joined = b"".join(row[0] if isinstance(row, list) else row for row in vectors)
        return torch.frombuffer(bytearray(joined), dtype=torch.bfloat16).view(-1, width)
    return torch.from_numpy(np.asarray(vectors, dtype=np.float32)).bfloat16()


def key_bytes(keys: Tensor) -> bytes:
    """The bytes of keys (N, D) bfloat16."""
    return keys.contiguous().view(torch.uint8).numpy().tobytes()


# Numbers


def check_sizes(names: Iterable[tuple[str, str]]) -> None:
    """Raises a BankError if the name of a namespace or a source is too long for Milvus."""
    for what, name in names:
        if len(name.encode()) > NAMES:
            raise BankError(f"the name of the {what} {name[:40]!r}... has more than {NAMES:,} bytes: shorten it")


def outcome_counters(outcomes: Mapping[str, Sequence[int]]) -> dict[str, Counter[int]]:
    """Number of entries of each namespace and label, to be changed."""
    found: dict[str, Counter[int]] = defaultdict(Counter)
    for namespace, counts in outcomes.items():
        found[namespace] = Counter(dict(enumerate(counts)))
    return found


def outcome_lists(outcomes: Mapping[str, Counter[int]]) -> dict[str, list[int]]:
    """The opposite of `outcome_counters`, without namespaces where nothing is left."""
    kept = {namespace: +counts for namespace, counts in outcomes.items()}
    return {name: [counts[n] for n in range(max(counts) + 1)] for name, counts in kept.items() if counts}
