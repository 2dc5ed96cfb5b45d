"""Temporary folders which a process that is killed does not leave behind for ever: the next one removes them.

Notable: a living process holds a lock in each of its folders, so one whose lock is free belongs to a dead process. The
lock is taken before anything else is written, so a folder that holds nothing else is left alone.
"""

import contextlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

ALIVE = ".alive"


class TemporaryFolder:
    """A folder that lasts until `remove`, or as long as the process; as a context, as long as the block.

    Args:
        prefix: What its name begins with; folders of dead processes with this prefix are removed first.
        parent: Where it is made; None: in the system's folder of temporary files.

    Attributes:
        path: The folder.
    """

    def __init__(self, prefix: str, parent: str | os.PathLike[str] | None = None) -> None:
        sweep(prefix, parent)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = FileLock(self.path / ALIVE, thread_local=False)
        lock.acquire(timeout=10)
        self._finalizer = weakref.finalize(self, _remove, self.path, lock, os.getpid())

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        self._finalizer()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: Any) -> None:
        self.remove()


def sweep(prefix: str, parent: str | os.PathLike[str] | None = None) -> None:
    """Removes the folders that dead processes of this user left; `prefix` and `parent` as in `TemporaryFolder`."""
    name = re.compile(re.escape(prefix) + r"[a-z0-9_]{8}")  # as tempfile makes them
    with contextlib.suppress(OSError):
        for path in Path(parent or tempfile.gettempdir()).iterdir():
            if name.fullmatch(path.name) and not path.is_symlink() and (path / ALIVE).is_file() and _is_own(path):
                _remove_dead(path)


def _is_own(path: Path) -> bool:
    return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()


def _remove_dead(path: Path) -> None:
    lock = FileLock(path / ALIVE, thread_local=False)
    with contextlib.suppress(Timeout, OSError):
        lock.acquire(timeout=0)
        if os.listdir(path) != [ALIVE]:
            shutil.rmtree(path, ignore_errors=True)
        lock.release()


def _remove(path: Path, lock: FileLock, process: int) -> None:
    if os.getpid() != process:
        return  # a fork: the folder is its parent's
    lock.release()
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def replacing_files(folder: str | os.PathLike[str], prefix: str, old: re.Pattern[str]) -> Iterator[Path]:
    """A temporary folder to write files in, which take the place of those in `folder` once all are written.

    Args:
        folder: Where they are to lie; it is made if there is none.
        prefix: What the name of the temporary folder in it begins with.
        old: Names of files that are removed from `folder` if none of that name was written.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with TemporaryFolder(prefix, folder) as path:
        yield path
        written = {made.name for made in path.iterdir()} - {ALIVE}
        for name in sorted(written):
            os.replace(path / name, Path(folder) / name)
        for other in Path(folder).iterdir():
            if old.fullmatch(other.name) and other.name not in written:
                other.unlink(missing_ok=True)
