"""The files of a bank: segments of entries that never change, and a manifest that says which of them count.

Notable: every file is written under another name, flushed and renamed, the manifest last, so that a bank is as before
or as after a change, whatever interrupts it; the manifest holds the SHA-256 of every file and of itself; no pickle.
Shapes: N entries of a segment, D width, M tokens, R documents.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT, VERSION = "modeling_lle.bank", 1
MANIFEST, LOCK = "manifest.json", ".lock"
PREFIXES = ("segment-", "forgotten-")
_OWN = (*PREFIXES, ".partial-")


class BankError(ValueError):
    """A bank that cannot be read or written as it is; the message names the file and the remedy."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file that the manifest vouches for."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class SegmentInfo:
    """What the manifest says of a segment: its file, namespace, and numbers of entries, tokens and documents."""

    file: File
    namespace: str
    entries: int
    tokens: int
    documents: int


@dataclasses.dataclass(frozen=True)
class Added:
    """What of a source is in a namespace: so many rows, and so many tokens of the next one; there `add` goes on."""

    namespace: str
    source: str
    rows: int
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The state of a bank.

    Attributes:
        fingerprint: That of the backbone which encoded the entries.
        width, vocab_size: Size of the keys and of the vocabulary.
        generation: Number of changes so far.
        next_id: The id of the next entry; ids are never given twice.
        segments: In the order in which they were added.
        forgotten: The file of the ids that were forgotten since the last `compact`, or None.
        added: One item for each source.
        labels: Names of the outcomes, by their numbers, where these are no tokens; None in a bank of texts alone.
    """

    fingerprint: str
    width: int
    vocab_size: int
    generation: int = 0
    next_id: int = 0
    segments: tuple[SegmentInfo, ...] = ()
    forgotten: File | None = None
    added: tuple[Added, ...] = ()
    labels: tuple[str, ...] | None = None

    @property
    def files(self) -> list[File]:
        """Every file that belongs to the bank, but for the manifest."""
        return [segment.file for segment in self.segments] + ([self.forgotten] if self.forgotten else [])

    def to_bytes(self) -> bytes:
        """The one way in which this manifest is written."""
        values = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        if self.labels is None:  # banks of texts are written as they were before there were labels
            del values["labels"]
        return _canonical({**values, "sha256": hashlib.sha256(_canonical(values)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, where: Path) -> "Manifest":
        """Reads a manifest; raises a BankError if a single byte differs from what was written."""
        try:
            values = json.loads(data)
            kind, version = values.pop("format"), values.pop("version")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BankError(f"{where} is damaged: restore it from a copy, or build the bank again") from error
        if kind == FORMAT and isinstance(version, int) and version > VERSION:
            raise BankError(
                f"{where} has version {version}, the installed modeling_lle reads up to {VERSION}: "
                "upgrade with `pip install -U modeling_lle`"
            )
        try:
            manifest = cls._from_values(values)
            right = manifest.to_bytes() == data
        except (TypeError, ValueError, KeyError, AttributeError):
            right = False
        if not right:
            raise BankError(f"{where} is damaged or was edited: restore it from a copy, or build the bank again")
        return manifest

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> "Manifest":
        del values["sha256"]
        segments = [SegmentInfo(**{**part, "file": File(**part["file"])}) for part in values.pop("segments")]
        forgotten, added, labels = values.pop("forgotten"), values.pop("added"), values.pop("labels", None)
        return cls(
            segments=tuple(segments),
            forgotten=None if forgotten is None else File(**forgotten),
            added=tuple(Added(**part) for part in added),
            labels=None if labels is None else tuple(labels),
            **values,
        )


def _canonical(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


@dataclasses.dataclass
class Segment:
    """Entries of one namespace, with the texts that they come from.

    Attributes:
        keys: (N, D) bfloat16, normalised states.
        ids: (N,) int64, ascending.
        positions: (N,) int64, where the outcome stands in `tokens`; ascending.
        counts: (N,) int32, how often the entry occurred: more than once where duplicates were merged.
        copies: (P, 2) int64, each further occurrence: its entry's place among the N, and its position.
        tokens: (M,) int32, the documents one after another, each after its start token; -1 where one was forgotten.
        starts: (R + 1,) int64, where each document begins in `tokens`.
        documents: R mappings with `source`, `row` and the other columns of the row.
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
        """(N,) int64, the token that followed each key."""
        return self.tokens[self.positions].long()

    @property
    def owners(self) -> Tensor:
        """(N,) int64, the document of each entry."""
        return torch.searchsorted(self.starts, self.positions, right=True) - 1

    @classmethod
    def join(cls, segments: Sequence["Segment"]) -> "Segment":
        """Segments one after another as one."""
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
        """The tokens (M,), those of the entries where `forgotten` (N,) bool replaced by -1."""
        tokens = self.tokens.clone()
        tokens[self.positions[forgotten]] = -1
        tokens[self.copies[forgotten[self.copies[:, 0]], 1]] = -1
        return tokens

    def without(self, forgotten: Tensor) -> "Segment":
        """The segment as it is when the entries where `forgotten` (N,) bool are gone, with their tokens and texts."""
        tokens, kept, kept_copies = self.tokens_without(forgotten), ~forgotten, ~forgotten[self.copies[:, 0]]
        documents = torch.unique(self.owners[kept])
        lengths = self.starts.diff()
        stays = torch.zeros(len(self.documents), dtype=torch.bool)
        stays[documents] = True
        token_stays = stays.repeat_interleave(lengths)
        place = token_stays.long().cumsum(0) - 1  # where each token goes
        entry = kept.long().cumsum(0) - 1  # and each entry
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


class Folder:
    """A bank's folder: reading with every checksum tested, and changes that happen as a whole.

    Args:
        path: The folder; it need not exist before the first change.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read_manifest(self) -> Manifest:
        """The manifest; raises a FileNotFoundError if this is no bank, a BankError if it is damaged."""
        where = self.path / MANIFEST
        try:
            data = where.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"there is no bank at {self.path}: it has no {MANIFEST}; make one with HistoryBank.build or "
                "`lle bank build`"
            ) from None
        return Manifest.from_bytes(data, where)

    def check(self, file: File) -> Path:
        """The path of a file whose bytes are those that were written; raises a BankError if they are not."""
        path = self.path / file.name
        if Path(file.name).name != file.name or not file.name.startswith(PREFIXES):
            raise BankError(f"{self.path / MANIFEST} names {file.name!r}, which is no file of a bank")
        try:
            size = path.stat().st_size
            digest = sha256(path) if size == file.bytes else ""
        except FileNotFoundError:
            raise BankError(f"{path} is missing: restore it from a copy, or build the bank again") from None
        if digest != file.sha256:
            state = f"is damaged ({size} bytes, {file.bytes} were written)" if not digest else "is damaged or swapped"
            raise BankError(f"{path} {state}: restore it from a copy, or build the bank again")
        return path

    def read_segment(self, info: SegmentInfo, verify: bool = True) -> Segment:
        """A segment, its tensors mapped from the file."""
        tensors = self._read(info.file, verify)
        documents = tensors.pop("documents").numpy().tobytes().decode()
        # Not splitlines(): JSON leaves the line breaks of Unicode, such as U+2028, as they are.
        return Segment(**tensors, documents=[json.loads(line) for line in documents.split("\n") if line])

    def find_keys(self, info: SegmentInfo) -> tuple[Path, int]:
        """The file of a segment, and how many bytes stand before its keys (N, D) bfloat16."""
        path = self.path / info.file.name
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return path, 8 + size + json.loads(file.read(size))["keys"]["data_offsets"][0]

    def read_forgotten(self, manifest: Manifest, verify: bool = True) -> Tensor:
        """The ids that were forgotten since the last `compact`, ascending."""
        if manifest.forgotten is None:
            return torch.zeros(0, dtype=torch.long)
        return self._read(manifest.forgotten, verify)["ids"]

    def _read(self, file: File, verify: bool) -> dict[str, Tensor]:
        path = self.check(file) if verify else self.path / file.name
        try:
            with safe_open(path, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BankError(f"{path} cannot be read ({error}): restore it from a copy") from error

    @contextlib.contextmanager
    def writing(self, timeout: float = 10.0) -> Iterator[None]:
        """Keeps other writers out, and removes what an interrupted one left behind.

        Raises:
            PermissionError: The folder cannot be written to.
            TimeoutError: Another process has been writing for `timeout` seconds.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK)
            lock.acquire(timeout=timeout)
        except Timeout:
            raise TimeoutError(
                f"another process is writing to the bank {self.path}: try again when it is done"
            ) from None
        except OSError as error:
            raise PermissionError(f"cannot write to the bank {self.path}: {error}") from error
        try:
            self.remove_leftovers()
            yield
        finally:
            lock.release()

    def remove_leftovers(self) -> None:
        """Removes the files that belong to no bank any more."""
        known = set()
        if (self.path / MANIFEST).exists():
            known = {file.name for file in self.read_manifest().files}
        for name in self.leftovers(known):
            (self.path / name).unlink(missing_ok=True)

    def leftovers(self, known: set[str]) -> list[str]:
        """Names of files of the kinds that a bank has, but for the `known` ones."""
        names = (path.name for path in self.path.iterdir())
        return sorted(name for name in names if name.startswith(_OWN) and name not in known)

    def write_segment(self, segment: Segment, namespace: str) -> SegmentInfo:
        """Writes a segment; it belongs to the bank once a manifest names it."""
        lines = "\n".join(json.dumps(document, ensure_ascii=False) for document in segment.documents)
        tensors = {name: getattr(segment, name).contiguous() for name in Segment.tensors}
        tensors["documents"] = torch.frombuffer(bytearray(lines.encode() or b"\n"), dtype=torch.uint8)
        file = self._write_tensors("segment", tensors)
        return SegmentInfo(file, namespace, len(segment), len(segment.tokens), len(segment.documents))

    def write_forgotten(self, ids: Tensor) -> File:
        """Writes the ids (n,) int64 that are forgotten."""
        return self._write_tensors("forgotten", {"ids": ids})

    def write_manifest(self, manifest: Manifest) -> None:
        """Makes a change count."""
        self._write(MANIFEST, lambda path: path.write_bytes(manifest.to_bytes()))

    def _write_tensors(self, kind: str, tensors: dict[str, Tensor]) -> File:
        name = f"{kind}-{uuid.uuid4().hex[:16]}.safetensors"
        return self._write(name, lambda path: save_file(tensors, path, metadata={"format": "pt"}))

    def _write(self, name: str, write: Callable[[Path], Any]) -> File:
        """Writes a file whole or not at all, and onto the disk."""
        partial = self.path / f".partial-{uuid.uuid4().hex[:16]}"
        try:
            write(partial)
            _flush(partial)
            file = File(name, partial.stat().st_size, sha256(partial))
            os.replace(partial, self.path / name)
            _flush(self.path)
        except (OSError, SafetensorError) as error:
            raise OSError(f"cannot write {self.path / name}: {error}; the bank is as it was before") from error
        finally:
            partial.unlink(missing_ok=True)
        return file


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
