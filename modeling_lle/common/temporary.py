"""Temporary folders that survive a killed process only until the next one runs, and atomic replacement of files.

Notable: a live process holds a lock in each of its folders, so a folder whose lock is free belongs to a dead process.
The lock is taken before anything else is written, so a folder with nothing else in it is left alone. `replacing` is
for one file, `replacing_files` for the files of a folder; when interrupted, each file is either old or new.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

ALIVE = ".alive"
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)  # errors of the disk
_WRITING = ".lle-writing-"  # prefix of folders in which a file is being written


class TemporaryFolder:
    """A folder that lasts until `remove`, or as long as the process; as a context, as long as the block.

    Args:
        prefix: Prefix of its name; folders of dead processes with this prefix are removed first.
        parent: The folder to create it in; None: the system's temporary folder.

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
        """Removes the folder and its contents."""
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
        empty = os.listdir(path) == [ALIVE]
        if not empty or time.time() - path.stat().st_mtime > 60:  # else its process may just be taking the lock
            _empty(path)
            shutil.rmtree(path, ignore_errors=True)
        lock.release()


def _remove(path: Path, lock: FileLock, process: int) -> None:
    if os.getpid() != process:
        return  # a fork: the folder is its parent's
    _empty(path)
    lock.release()
    shutil.rmtree(path, ignore_errors=True)


def _empty(path: Path) -> None:
    """Removes all but the lock, by which the next process recognises the rest if this one is killed here."""
    with contextlib.suppress(OSError):
        for inside in path.iterdir():
            if inside.is_dir() and not inside.is_symlink():
                shutil.rmtree(inside, ignore_errors=True)
            elif inside.name != ALIVE:
                inside.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_files(folder: str | os.PathLike[str], prefix: str, old: re.Pattern[str] | None = None) -> Iterator[Path]:
    """Yields a temporary folder whose files replace those in `folder` once all are written.

    Args:
        folder: The destination; created if missing.
        prefix: Prefix of the temporary folder in it.
        old: Names of files to remove from `folder` unless a file of that name was written; None: none.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with TemporaryFolder(prefix, folder) as path:
        try:
            yield path
        except (OSError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno not in _FULL:
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            raise OSError(f"cannot write into {folder}: {reason}; its files are as they were before") from error
        written = {made.name for made in path.iterdir()} - {ALIVE}
        for name in sorted(written):
            os.replace(path / name, Path(folder) / name)
        for other in Path(folder).iterdir():
            if old is not None and old.fullmatch(other.name) and other.name not in written:
                other.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a file of the same name to write, which replaces `path` at the end, or is removed after an error.

    Args:
        path: The file, whose folder must exist. A link stays a link; a pipe or device is written directly.

    Raises:
        OSError: It cannot be written, as on a full disk.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with TemporaryFolder(_WRITING, target.parent) as folder:
            made = folder / target.name
            yield made
            if target.exists():
                shutil.copymode(target, made)
            os.replace(made, target)
    except OSError as error:
        if error.errno is None or (error.filename and _WRITING not in str(error.filename)):
            raise  # about another file
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
