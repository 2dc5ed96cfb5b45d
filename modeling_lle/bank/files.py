"""The files of a bank: segments of entries that never change, and a manifest that says which of them count.

Notable: every file is written under another name, flushed and renamed, the manifest last, so that a bank is as before
or as after a change, whatever interrupts it; the manifest holds the SHA-256 of every file and of itself; no pickle.
Nothing is removed but what a bank has made: files of exactly its names, beside its manifest.
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

from .manifest import FILE_NAME as FILE_NAME
from .manifest import FORMAT as FORMAT
from .manifest import LARGEST, MANIFEST, BankError, File, Manifest, SegmentInfo
from .manifest import VERSION as VERSION
from .manifest import Added as Added
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
_PARTIAL = re.compile(r"\.partial-[0-9a-f]{16}")  # a file that is being written, or a folder with a bank in the making
_UNNAMED = re.compile(r"\.tmp[0-9A-Za-z]{6}")  # a file that safetensors is writing, before it has its name
INDEX_FILE = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{64}\.faiss|\.json)|\.partial-[0-9a-f]+")
REMEDY = "restore it from a copy, or build the bank again"


class Folder:
    """A bank's folder: reading with every checksum tested, and changes that happen as a whole.

    Args:
        path: The folder; it need not exist before the first change.
    """

    def __init__(self, path: str | Path) -> None:
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
        """The path of a file of the bank; raises a BankError for a link that leads out of it.

        The cache of the Hub consists of links from `snapshots` into the folder `blobs` beside it.
        """
        path = self.path / name
        if path.is_symlink():
            target = path.resolve()
            if target.parent.name != "blobs" or target.parent.parent / "snapshots" not in path.absolute().parents:
                raise BankError(f"{path} is a symbolic link, which a bank never has: put the file itself there")
        return path

    def check(self, file: File) -> Path:
        """The path of a file whose bytes are those that were written; raises a BankError if they are not."""
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
        """A segment, its tensors mapped from the file.

        Args:
            info: What the manifest says of it.
            verify: Whether to test its checksum, and given a manifest, that every value can be one of this bank.
            manifest: That of the bank.
        """
        tensors = self._read(info.file, verify)
        with self._named(info.file):
            check_layout(tensors, info)
            of_labels = manifest is not None and manifest.labels is not None
            documents = parse_documents(tensors.pop("documents"), info.documents, of_labels)
            if verify and manifest is not None:
                check_values(Segment(**tensors, documents=documents), manifest)
                # What was read of a mapped file stays in memory as long as it is mapped, so it is mapped anew.
                tensors = self._read(info.file, verify=False)
                del tensors["documents"]
        return Segment(**tensors, documents=documents)

    @contextlib.contextmanager
    def _named(self, file: File) -> Iterator[None]:
        """Says in a BankError which file it is about, and what to do."""
        try:
            yield
        except BankError as error:
            if str(self.path) in str(error):
                raise
            raise BankError(f"{self.path / file.name} {error}: {REMEDY}") from error

    def check_together(self, segments: Iterable[Segment], forgotten: Tensor) -> None:
        """Raises a BankError unless the segments and the forgotten ids (n,) int64 can be those of one bank."""
        try:
            check_together(list(segments), forgotten)
        except BankError as error:
            raise BankError(f"{self.path / MANIFEST} {error}: {REMEDY}") from error

    def find_keys(self, info: SegmentInfo) -> tuple[Path, int]:
        """The file of a segment, and how many bytes stand before its keys (N, D) bfloat16."""
        path = self._place(info.file.name)
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return path, 8 + size + json.loads(file.read(size))["keys"]["data_offsets"][0]

    def read_forgotten(self, manifest: Manifest, verify: bool = True) -> Tensor:
        """The ids that were forgotten since the last `compact`, ascending."""
        if manifest.forgotten is None:
            return torch.zeros(0, dtype=torch.long)
        tensors = self._read(manifest.forgotten, verify)
        with self._named(manifest.forgotten):
            return check_forgotten(tensors, manifest.next_id)

    def _read(self, file: File, verify: bool) -> dict[str, Tensor]:
        path = self.check(file) if verify else self._place(file.name)
        try:
            with safe_open(path, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, RuntimeError) as error:  # the last: it was there a moment ago
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
        """Removes the files that belong to no bank any more; where there is no bank, those of one in the making."""
        known = set()
        if (self.path / MANIFEST).exists():
            known = {file.name for file in self.read_manifest().files}
        leftovers = self.leftovers(known)
        # A folder with a bank in the making goes last: without a manifest, it says that the others are leftovers.
        for path in sorted((self.path / name for name in leftovers), key=Path.is_dir):
            if path.is_dir():
                _remove_own(path)
            else:
                path.unlink(missing_ok=True)

    def leftovers(self, known: set[str]) -> list[str]:
        """Names of the files that a bank makes, but for the `known` ones; none where nobody has made a bank."""
        names = sorted(os.listdir(self.path))
        partial = [name for name in names if _PARTIAL.fullmatch(name) or _is_unnamed(self.path / name)]
        making = any((self.path / name).is_dir() for name in partial)
        if not making and not (self.path / MANIFEST).exists():
            return []
        return sorted(partial + [name for name in names if FILE_NAME.fullmatch(name) and name not in known])

    def is_whole(self, file: File) -> bool:
        """Whether a file is here, and as it was written."""
        try:
            return self.check(file).is_file()
        except BankError:
            return False

    def copy(self, path: Path) -> None:
        """Copies a file of another bank into this folder, and onto the disk."""
        try:
            shutil.copyfile(path, self.path / path.name)
            _flush(self.path / path.name)
        except OSError as error:
            raise OSError(f"cannot write {self.path / path.name}: {error}; the bank is as it was before") from error

    def holds_older_copy(self, original: Manifest) -> bool:
        """Whether a copy of a bank is here, from now or from before, which has not been changed since."""
        return (self.path / MANIFEST).exists() and self.read_manifest().is_older_copy(original)

    def check_free(self) -> None:
        """Raises a FileExistsError if there is a bank already, or anything else."""
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
        """A folder to make a bank in, which takes the place of this one's in the end; call it while `writing`."""
        made = Folder(self.path / f".partial-{uuid.uuid4().hex[:16]}")
        try:
            made.path.mkdir()
            yield made
            self._take(made)
        finally:
            self.remove_leftovers()

    def _take(self, made: "Folder") -> None:
        """Moves the files of a bank here, and the manifest last."""
        try:
            for file in made.read_manifest().files:
                if (made.path / file.name).exists():  # else it is here already
                    os.replace(made.path / file.name, self.path / file.name)
            _flush(self.path)
            os.replace(made.path / MANIFEST, self.path / MANIFEST)
            _flush(self.path)
        except OSError as error:
            raise OSError(f"cannot write {self.path}: {error}; the bank is as it was before") from error

    def remove(self) -> None:
        """Removes a bank, if there is one, and the folder if nothing else is in it."""
        if not (self.path / MANIFEST).exists():
            return
        with self.writing():
            self.remove_index()
            (self.path / f".partial-{uuid.uuid4().hex[:16]}").mkdir()  # until all is gone, the rest is leftovers
            (self.path / MANIFEST).unlink()
            self.remove_leftovers()
        _remove_own(self.path)

    def remove_index(self) -> None:
        """Removes the search index, which holds codes of the keys, and nothing else that may be beside it."""
        folder = self.path / INDEX
        if not folder.is_dir() or folder.is_symlink():
            return
        for path in folder.iterdir():
            if INDEX_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what else is in it is not the bank's
            folder.rmdir()

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
        data = manifest.to_bytes()
        if len(data) > LARGEST:
            raise BankError(f"the manifest of {self.path} would have {len(data):,} bytes: use fewer sources or labels")
        self._write(MANIFEST, lambda path: path.write_bytes(data))

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


def _remove_own(folder: Path) -> None:
    """Removes the files that a bank makes from a folder, and the folder if that was all."""
    if folder.is_symlink():
        return
    for path in folder.iterdir():
        known = path.name in (MANIFEST, LOCK) or FILE_NAME.fullmatch(path.name) or _PARTIAL.fullmatch(path.name)
        if known or _is_unnamed(path):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # what else is in it is not the bank's
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
