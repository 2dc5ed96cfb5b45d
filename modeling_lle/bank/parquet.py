"""Export and import of banks as Parquet, for other tools and machines: one row a document, with tokens and entries.

Columns: `namespace`, `source`, `row`, `columns` (JSON), `tokens` (int32; -1 where one was forgotten), and of the
document's n entries `positions` in the tokens (int32), `counts` (int32), `copies` (int32 pairs: which entry, and the
position of a further occurrence) and `keys` (n x D bfloat16, little endian). A projection of keys stands
beside what the file says of itself, as safetensors.
"""

import dataclasses
import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..common.temporary import replacing
from .bank import HistoryBank
from .changes import live_labels, renumbered
from .files import FORMAT, Added, BankError, Folder, Manifest
from .manifest import Projected
from .projection import Projection
from .rows import rows_of, segment_of
from .segment import check_documents, check_values

VERSION = 2  # with projected keys, else 1
DIGEST = "sha256"
PROJECTION = f"{FORMAT}.projection"
# Raised by the values of a damaged file.
FAULTS = (pa.ArrowException, SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError)
SCHEMA = pa.schema(
    [
        ("namespace", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("columns", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("positions", pa.list_(pa.int32())),
        ("counts", pa.list_(pa.int32())),
        ("copies", pa.list_(pa.int32())),
        ("keys", pa.large_binary()),
    ]
)


def to_parquet(bank: HistoryBank, path: str | Path) -> int:
    """Writes the live entries with their texts; returns the number of entries."""
    state = bank.snapshot()
    manifest = state.manifest
    labels = None if manifest.labels is None else live_labels(state)
    described = {
        "format": FORMAT,
        "version": 1 if state.projection is None else VERSION,
        "fingerprint": manifest.fingerprint,
        "width": manifest.width,
        **({} if state.projection is None else {"state_width": state.state_width}),
        "vocab_size": manifest.vocab_size,
        "labels": None if labels is None else labels[0],
    }
    about, digest = {FORMAT: json.dumps(described).encode()}, hashlib.sha256()
    if state.projection is not None:
        about[PROJECTION] = save(state.projection.tensors())
        digest.update(about[PROJECTION])
    schema = SCHEMA.with_metadata(about)
    with replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for namespace, segment in state.segments():
            segment = segment if labels is None else renumbered(segment, labels[1])
            rows = [{"namespace": namespace, **row} for row in rows_of(segment)]
            if rows:
                table = pa.Table.from_pylist(rows, schema=schema)
                _take_in(digest, table.to_pylist())
                writer.write_table(table)
        writer.add_key_value_metadata({DIGEST: digest.hexdigest()})
    return len(state)


def _take_in(digest: Any, rows: list[dict[str, Any]]) -> None:
    """Updates a hash with rows as read from a table; Parquet's own checksums do not cover its footer."""
    for row in rows:
        digest.update(json.dumps([row[name] for name in SCHEMA.names if name != "keys"]).encode())
        digest.update(row["keys"])


def from_parquet(path: str | Path, bank_path: str | Path) -> HistoryBank:
    """Makes a bank from a file of `to_parquet`; the entries get new ids.

    Raises:
        BankError: The file does not hold a bank, or is damaged.
        FileExistsError: There is a bank at `bank_path` already.
    """
    try:
        file = pq.ParquetFile(path)
        metadata = file.metadata.metadata or {}
        described = json.loads(metadata.get(FORMAT.encode(), b"null"))
        manifest = _manifest(described, file.schema_arrow, path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}: write it with `lle bank export`") from None
    except BankError:
        raise
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        raise BankError(f"{path} is no Parquet file, or a damaged one: {error}") from error
    folder = Folder(bank_path)
    folder.check_free()  # before a lock is put there
    with folder.writing():
        folder.check_free()
        with folder.making() as made:  # part of a bank must not pass for a whole one
            try:
                projection = metadata.get(PROJECTION.encode(), b"")
                if "state_width" in described:
                    own = Projection.of_tensors(load(projection), described["state_width"], manifest.width)
                    projected = Projected(described["state_width"], made.write_projection(own))
                    manifest = dataclasses.replace(manifest, projection=projected)
                made.write_manifest(manifest)
                digest = _read_into(HistoryBank(made), file, hashlib.sha256(projection))
                if metadata.get(DIGEST.encode(), b"").decode(errors="replace") != digest:
                    raise ValueError("its entries are not those that were written")
            except FAULTS as error:
                raise BankError(f"{path} is damaged ({error}): write it again with `lle bank export`") from error
    return HistoryBank(folder)


def _manifest(described: Any, schema: pa.Schema, path: str | Path) -> Manifest:
    """Manifest of a bank without entries, from the metadata of a file."""
    if not isinstance(described, dict) or not schema.equals(SCHEMA):
        raise BankError(f"{path} does not hold a bank: write it with `lle bank export`")
    if not isinstance(described.get("version"), int) or described["version"] > VERSION:
        raise BankError(f"{path} is of a newer version: upgrade with `pip install -U modeling_lle`")
    labels = described.get("labels")
    values: dict[str, Any] = {name: described.get(name) for name in ("fingerprint", "width", "vocab_size")}
    try:
        values |= {"labels": None if labels is None else tuple(labels), "identity": uuid.uuid4().hex}
        manifest = Manifest(**values)
        manifest.check()
    except BankError as error:
        raise BankError(f"{path} {error}") from None
    return manifest


def _read_into(bank: HistoryBank, file: pq.ParquetFile, digest: Any) -> str:
    """Adds the entries in a file to a bank; returns the hash of its projection and rows."""
    for group in range(file.num_row_groups):
        rows = file.read_row_group(group).to_pylist()
        _take_in(digest, rows)
        for namespace in sorted({row["namespace"] for row in rows}):
            own = [row for row in rows if row["namespace"] == namespace]
            segment = segment_of(own, bank.manifest.width)
            check_documents(segment.documents, bank.manifest.labels is not None)
            check_values(segment, dataclasses.replace(bank.manifest, next_id=len(segment)))
            sources = {row["source"]: Added(namespace, row["source"], row["row"] + 1) for row in own}
            added = list(sources.values())
            bank.append([(segment, added)], namespace, bank.manifest.labels or (), are_keys=True)
    return digest.hexdigest()
