"""The files of the search indexes of a bank: finding, writing and removing them.

Notable: an index is a cache, found by the segments that it covers: it serves as long as most of them exist, also after
others were added or small ones joined. Beside its file, whose name holds its seal, lies a list of those segments. An
index holds short codes of keys, so compaction removes every index that covers a segment which is gone.
"""

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from .files import INDEX, INDEX_FILE, Folder, SegmentInfo, seal

MAX_CHANGED = 0.2  # largest share of entries that the index does not cover, or of its own that do not exist


def index_folder(folder: Folder) -> Path:
    """Folder of the indexes of a bank."""
    return folder.path / INDEX


@dataclasses.dataclass(frozen=True)
class IndexFile:
    """An index on the disk.

    Attributes:
        path: Its file, whose name ends with its seal (bank/seal.py).
        maker: Library and version that made it; empty if the list of segments is missing or damaged.
        namespaces: Namespaces that it was made for.
        known: File names and numbers of entries of the segments that it covers, in its order.
    """

    path: Path
    maker: str = ""
    namespaces: tuple[str, ...] = ()
    known: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def list_path(self) -> Path:
        """File with the list of its segments; the name of the index begins with the checksum of that list."""
        return self.path.with_name(f"{self.path.stem.partition('-')[0]}.json")

    @property
    def is_own(self) -> bool:
        """Whether this user made it on this machine, and it is unchanged."""
        try:
            return seal(self.path) == self.path.stem.partition("-")[2]
        except OSError:
            return False

    def changed(self, sizes: dict[str, int]) -> float:
        """Share of entries in these segments that it does not cover, or of its own that are not in them: the larger.

        Args:
            sizes: File names of the segments, and their numbers of entries.
        """
        common = sum(size for name, size in self.known.items() if sizes.get(name) == size)
        return 1 - common / max(1, sum(sizes.values()), sum(self.known.values()))

    def remove(self) -> None:
        """Removes its files."""
        self.path.unlink(missing_ok=True)
        self.list_path.unlink(missing_ok=True)


def index_files(folder: Folder) -> Iterator[IndexFile]:
    """The indexes of a bank; one whose list is missing or damaged covers nothing."""
    place = index_folder(folder)
    for path in sorted(place.glob("*.faiss")) if place.is_dir() else []:
        found = IndexFile(path)
        try:
            data = found.list_path.read_bytes()
            if _key(data) == found.list_path.stem:
                maker, namespaces, known = json.loads(data)
                known = {str(name): int(size) for name, size in known}
                found = IndexFile(path, str(maker), tuple(namespaces), known)
        except (OSError, ValueError, TypeError, RecursionError):
            pass
        yield found


def find_indexes(folder: Folder, infos: Sequence[SegmentInfo], maker: str) -> list[IndexFile]:
    """The indexes by `maker` that cover most entries of these segments, the best first."""
    sizes = {info.file.name: info.entries for info in infos}
    found = [(file.changed(sizes), file) for file in index_files(folder) if file.maker == maker]
    return [file for share, file in sorted(found, key=lambda item: item[0]) if share <= MAX_CHANGED]


def save_index(folder: Folder, infos: Sequence[SegmentInfo], maker: str, write: Callable[[str], Any]) -> IndexFile:
    """Writes an index, and removes others for the same namespaces.

    Args:
        folder: The bank's files.
        infos: The segments that it covers.
        maker: Library and version that made it.
        write: Writes it to a path.
    """
    place, partial = index_folder(folder), index_folder(folder) / f".partial-{uuid.uuid4().hex[:16]}"
    namespaces, known = sorted({info.namespace for info in infos}), {info.file.name: info.entries for info in infos}
    data = json.dumps([maker, namespaces, list(known.items())]).encode()
    place.mkdir(exist_ok=True)
    try:
        write(str(partial))
        made = IndexFile(place / f"{_key(data)}-{seal(partial)}.faiss", maker, tuple(namespaces), known)
        made.list_path.write_bytes(data)
        os.replace(partial, made.path)
    finally:
        partial.unlink(missing_ok=True)
    for other in index_files(folder):
        if other.path != made.path and list(other.namespaces) == namespaces:
            other.path.unlink(missing_ok=True)
            if other.list_path != made.list_path:
                other.list_path.unlink(missing_ok=True)
    return made


def _key(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def stale_indexes(folder: Folder, current: Collection[str]) -> list[Path]:
    """Files of indexes that cover other segments than the `current` ones, or whose list is missing or damaged."""
    place = index_folder(folder)
    good = [file for file in index_files(folder) if file.known and file.known.keys() <= set(current)]
    kept = {path for file in good for path in (file.path, file.list_path)}
    own = [path for path in place.iterdir() if INDEX_FILE.fullmatch(path.name)] if place.is_dir() else []
    return sorted(path for path in own if path not in kept)


def remove_stale_indexes(folder: Folder, current: Collection[str]) -> None:
    """Removes the files that `stale_indexes` finds."""
    for path in stale_indexes(folder, current):
        path.unlink(missing_ok=True)
