"""The files of a bank: immutable segments of entries, and a manifest that lists those that belong to the bank.

Notable: each file is written under a temporary name, flushed and renamed, the manifest last, so that an interrupted
change leaves the bank as it was. The manifest holds the SHA-256 of every file and of itself; no pickle. Only files
with the names that a bank gives are ever removed.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..common.paths import is_address
from .manifest import FILE_NAME as FILE_NAME
from .manifest import FORMAT as FORMAT
from .manifest import LARGEST, MANIFEST, BankError, File, Manifest, SegmentInfo
from .manifest import VERSION as VERSION
from .manifest import Added as Added
from .projection import Projection
from .seal import seal as seal
from .segment import (
    Segment,
    check_forgotten,
    check_layout,
    check_together,
    check_values,
    parse_documents,
)

LOCK, INDEX = ".lock", "index"
PARTS = "parts"  # the usual folder of bank/parts.py
_PARTIAL = re.compile(r"\.partial-[0-9a-f]{16}")  # an unfinished file, or a folder with an unfinished bank
_UNNAMED = re.compile(r"\.tmp[0-9A-Za-z]{6}")  # an unfinished file of safetensors
INDEX_FILE = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{64}\.faiss|\.json)|\.partial-[0-9a-f]+")
REMEDY = "restore it from a copy, or build the bank again"


class Folder:
    """A bank's folder: reads with checksums, changes as a whole or not at all.

    Args:
        path: The folder; the first change makes it.

    Raises:
        BankError: It is an address.
    """

    def __init__(self, path: str | Path) -> None:
        if is_address(path):
            raise BankError(
                f"{path} is an address, and a folder is needed here: take one, and `lle bank copy` it there"
            )
        self.path = Path(path)

    def read_manifest(self) -> Manifest:
        """The manifest; raises a FileNotFoundError if this is no bank, a BankError if it is damaged."""
        try:
            where = self._place(MANIFEST)
            with where.open("rb") as file:
                data = file.read(LARGEST + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"there is no bank at {self.path}: it has no {MANIFEST}; make one with HistoryBank.build or "
                "`lle bank build`"
            ) from None
        return Manifest.from_bytes(data, where)

    def _place(self, name: str) -> Path:
        """Path of a file of the bank; raises a BankError for a symbolic link, except those of the Hub's cache.

        The cache of the Hub links from `snapshots` to the folder `blobs` beside it.
        """
        path = self.path / name
        if path.is_symlink():
            target = path.resolve()
            if target.parent.name != "blobs" or target.parent.parent / "snapshots" not in path.absolute().parents:
                raise BankError(f"{path} is a symbolic link, which a bank never has: put the file itself there")
        return path

    def check(self, file: File) -> Path:
        """Path of a file; raises a BankError unless its size and checksum are those of the manifest."""
        path = self._place(file.name)
        if not FILE_NAME.fullmatch(file.name):
            raise BankError(f"{self.path / MANIFEST} names {file.name!r}, which is no file of a bank")
        try:
            size = path.stat().st_size
            digest = sha256(path) if size == file.bytes else ""
        except FileNotFoundError:
            raise BankError(f"{path} is missing: {REMEDY}") from None
        if digest != file.sha256:
            state = f"is damaged ({size} bytes, {file.bytes} were written)" if not digest else "is damaged or swapped"
            raise BankError(f"{path} {state}: {REMEDY}")
        return path

    def read_segment(self, info: SegmentInfo, verify: bool = True, manifest: Manifest | None = None) -> Segment:
        """Reads a segment; its tensors are mapped from the file.

        Args:
            info: Its item in the manifest.
            verify: Whether to test the checksum, and with `manifest` that every value is possible in this bank.
            manifest: The manifest of the bank.
        """
        tensors = self._read(info.file, verify)
        with self._named(info.file):
            check_layout(tensors, info)
            of_labels = manifest is not None and manifest.labels is not None
            documents = parse_documents(tensors.pop("documents"), info.documents, of_labels)
            if verify and manifest is not None:
                check_values(Segment(**tensors, documents=documents), manifest)
                # Pages that were read stay in memory as long as the file is mapped: map it anew.
                tensors = self._read(info.file, verify=False)
                del tensors["documents"]
        return Segment(**tensors, documents=documents)

    @contextlib.contextmanager
    def _named(self, file: File) -> Iterator[None]:
        """Adds the file and the remedy to a BankError."""
        try:
            yield
        except BankError as error:
            if str(self.path) in str(error):
                raise
            raise BankError(f"{self.path / file.name} {error}: {REMEDY}") from error

    def check_together(self, segments: Iterable[Segment], forgotten: Tensor) -> None:
        """Raises a BankError unless the segments and the forgotten ids (1-D int64) can belong to one bank."""
        try:
            check_together(list(segments), forgotten)
        except BankError as error:
            raise BankError(f"{self.path / MANIFEST} {error}: {REMEDY}") from error

    def find_keys(self, info: SegmentInfo) -> tuple[Path, int]:
        """File of a segment, and the offset of its keys (N, D) bfloat16 in bytes."""
        path = self._place(info.file.name)
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return path, 8 + size + json.loads(file.read(size))["keys"]["data_offsets"][0]

    def read_forgotten(self, manifest: Manifest, verify: bool = True) -> Tensor:
        """Ids (1-D int64, ascending) that were forgotten since the last `compact`."""
        if manifest.forgotten is None:
            return torch.zeros(0, dtype=torch.long)
        tensors = self._read(manifest.forgotten, verify)
        with self._named(manifest.forgotten):
            return check_forgotten(tensors, manifest.next_id)

    def read_projection(self, manifest: Manifest, verify: bool = True) -> Projection | None:
        """The projection of the keys; None if they are not projected."""
        if manifest.projection is None:
            return None
        tensors = self._read(manifest.projection.file, verify)
        with self._named(manifest.projection.file):
            return Projection.of_tensors(tensors, manifest.state_width, manifest.width)

    def _read(self, file: File, verify: bool) -> dict[str, Tensor]:
        path = self.check(file) if verify else self._place(file.name)
        try:
            with safe_open(path, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: the file was removed meanwhile
            raise BankError(f"{path} cannot be read ({error}): restore it from a copy") from error

    @contextlib.contextmanager
    def writing(self, timeout: float = 10.0) -> Iterator[None]:
        """Locks the folder against other writers, and removes leftovers of an interrupted one.

        Raises:
            PermissionError: The folder is not writable.
            TimeoutError: Another writer held the lock for `timeout` seconds.
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
        """Removes files that do not belong to the bank any more; without a bank, those of an unfinished one."""
        known = set()
        if (self.path / MANIFEST).exists():
            known = {file.name for file in self.read_manifest().files}
        leftovers = self.leftovers(known)
        # The folder of an unfinished bank goes last: without a manifest, it marks the other files as leftovers.
        for path in sorted((self.path / name for name in leftovers), key=Path.is_dir):
            if path.is_dir():
                _remove_own(path)
            else:
                path.unlink(missing_ok=True)

    def leftovers(self, known: set[str]) -> list[str]:
        """Names of files that a bank makes, except the `known` ones; none in a folder that never had a bank."""
        names = sorted(os.listdir(self.path))
        partial = [name for name in names if _PARTIAL.fullmatch(name) or _is_unnamed(self.path / name)]
        making = any((self.path / name).is_dir() for name in partial)
        if not making and not (self.path / MANIFEST).exists():
            return []
        return sorted(partial + [name for name in names if FILE_NAME.fullmatch(name) and name not in known])

    def is_whole(self, file: File) -> bool:
        """Whether a file exists and is undamaged."""
        try:
            return self.check(file).is_file()
        except BankError:
            return False

    def copy(self, path: Path) -> None:
        """Copies a file of another bank into this folder, and flushes it."""
        try:
            shutil.copyfile(path, self.path / path.name)
            _flush(self.path / path.name)
        except OSError as error:
            raise OSError(f"cannot write {self.path / path.name}: {error}; the bank is as it was before") from error

    def holds_older_copy(self, original: Manifest) -> bool:
        """Whether the folder holds an unchanged copy of `original` or of an earlier generation of it."""
        return (self.path / MANIFEST).exists() and self.read_manifest().is_older_copy(original)

    def check_free(self) -> None:
        """Raises a FileExistsError if the folder holds a bank or other files."""
        if (self.path / MANIFEST).exists():
            raise FileExistsError(
                f"there is a bank at {self.path} already: open it and add to it, remove it, or choose another folder"
            )
        names = set(os.listdir(self.path)) - {LOCK, *self.leftovers(set())} if self.path.is_dir() else set()
        foreign = sorted(names)
        if foreign:
            shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
            raise FileExistsError(f"{self.path} holds other files ({shown}): choose an empty folder for the bank")

    @contextlib.contextmanager
    def making(self) -> Iterator["Folder"]:
        """Gives a temporary folder for a new bank, which replaces this one at the end of the block.

        Call it inside `writing`.
        """
        made = Folder(self.path / f".partial-{uuid.uuid4().hex[:16]}")
        try:
            made.path.mkdir()
            yield made
            self._take(made)
        finally:
            self.remove_leftovers()

    def _take(self, made: "Folder") -> None:
        """Moves the files of a bank here, the manifest last."""
        try:
            for file in made.read_manifest().files:
                if (made.path / file.name).exists():  # otherwise it is already here
                    os.replace(made.path / file.name, self.path / file.name)
            _flush(self.path)
            os.replace(made.path / MANIFEST, self.path / MANIFEST)
            _flush(self.path)
        except OSError as error:
            raise OSError(f"cannot write {self.path}: {error}; the bank is as it was before") from error

    def remove(self) -> None:
        """Removes the bank, if there is one, and the folder if it is empty then."""
        if not (self.path / MANIFEST).exists():
            return
        with self.writing():
            self.remove_index()
            for path in (self.path / PARTS).glob("[0-9a-f]" * 16):
                shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):  # there is none, or it holds other files
                (self.path / PARTS).rmdir()
            (self.path / f".partial-{uuid.uuid4().hex[:16]}").mkdir()  # marks the rest as leftovers until all is gone
            (self.path / MANIFEST).unlink()
            self.remove_leftovers()
        _remove_own(self.path)

    def remove_index(self) -> None:
        """Removes the search indexes, which hold codes of the keys, but no other files beside them."""
        folder = self.path / INDEX
        if not folder.is_dir() or folder.is_symlink():
            return
        for path in folder.iterdir():
            if INDEX_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds other files
            folder.rmdir()

    def write_segment(self, segment: Segment, namespace: str) -> SegmentInfo:
        """Writes a segment; it belongs to the bank as soon as a manifest names it."""
        lines = "\n".join(json.dumps(document, ensure_ascii=False) for document in segment.documents)
        tensors = {name: getattr(segment, name).contiguous() for name in Segment.tensors}
        tensors["documents"] = torch.frombuffer(bytearray(lines.encode() or b"\n"), dtype=torch.uint8)
        file = self._write_tensors("segment", tensors)
        return SegmentInfo(file, namespace, len(segment), len(segment.tokens), len(segment.documents))

    def write_forgotten(self, ids: Tensor) -> File:
        """Writes the forgotten ids (1-D int64)."""
        return self._write_tensors("forgotten", {"ids": ids})

    def write_projection(self, projection: Projection) -> File:
        """Writes the projection of the keys."""
        return self._write_tensors("projection", projection.tensors())

    def write_manifest(self, manifest: Manifest) -> None:
        """Writes the manifest, which puts a change into effect."""
        data = manifest.to_bytes()
        if len(data) > LARGEST:
            raise BankError(f"the manifest of {self.path} would have {len(data):,} bytes: use fewer sources or labels")
        self._write(MANIFEST, lambda path: path.write_bytes(data))

    def _write_tensors(self, kind: str, tensors: dict[str, Tensor]) -> File:
        name = f"{kind}-{uuid.uuid4().hex[:16]}.safetensors"
        return self._write(name, lambda path: save_file(tensors, path, metadata={"format": "pt"}))

    def _write(self, name: str, write: Callable[[Path], Any]) -> File:
        """Writes and flushes a file, as a whole or not at all."""
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


def _remove_own(folder: Path) -> None:
    """Removes the files that a bank makes from a folder, and the folder if it is empty then."""
    if folder.is_symlink():
        return
    for path in folder.iterdir():
        known = path.name in (MANIFEST, LOCK) or FILE_NAME.fullmatch(path.name) or _PARTIAL.fullmatch(path.name)
        if known or _is_unnamed(path):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds other files
        folder.rmdir()


def _is_unnamed(path: Path) -> bool:
    return bool(_UNNAMED.fullmatch(path.name)) and path.is_file()


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
