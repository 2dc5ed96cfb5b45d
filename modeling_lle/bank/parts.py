"""Parts: segments of one source that several processes encode together, and append in the order of its rows.

Notable: the bank becomes the one that a single process makes, entry for entry. All processes read the same rows and
cut them alike; each encodes the next segment that nobody has, which a lock in a folder that all of them see decides.
The segment that follows the bank's progress is appended at once, others wait in the folder. So the bank holds a
beginning of the source at any time, a process that is killed costs the segments it was encoding, and any number of
processes can go on. A digest of the rows beside each segment tells processes that read other data. No pickle: segments
are safetensors with their SHA-256.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from filelock import FileLock, Timeout

from ..common.ahead import ahead
from ..common.temporary import replacing
from .files import Folder
from .manifest import Added, BankError, File, SegmentInfo, check_segment
from .protocol import Bank, Encoder
from .segment import Segment

logger = logging.getLogger(__name__)

Content = TypeVar("Content")
Place = tuple[int, int]  # complete rows, tokens of the next one

IMPORT, GUARD = "import.json", "import.lock"
PATIENCE = 60  # times that the lock of the bank is waited for at the end


@dataclasses.dataclass(frozen=True)
class Unit(Generic[Content]):
    """The rows of a segment, or a part of a long one: import progress before and after it, and what is encoded."""

    begin: Added
    end: Added
    content: Content


@dataclasses.dataclass(frozen=True)
class _Record:
    """A segment that was made: where it ends, the digest of its rows, and its file unless it was appended at once."""

    end: Place
    digest: str
    info: SegmentInfo | None


class Parts:
    """What the processes that add a source together have in common: a folder; as a context, as long as one takes part.

    The last process to leave removes the folder if the source is complete.

    Args:
        path: A folder that all of them see, and whose file system has locks.
        bank: The bank, opened by this process.
        namespace, source: What is added.
        settings: Whatever else must be alike in all processes, as plain values.

    Raises:
        BankError: The import was begun with other settings.
    """

    def __init__(
        self, path: str | Path, bank: Bank, namespace: str, source: str, settings: Mapping[str, Any] | None = None
    ) -> None:
        name = hashlib.sha256(json.dumps([namespace, source]).encode()).hexdigest()[:16]
        self.path, self._bank, self._namespace, self._source = Path(path) / name, bank, namespace, source
        self._folder = Folder(self.path)
        self._settings = {"model": bank.fingerprint, "namespace": namespace, "source": source, **(settings or {})}
        self._own: dict[Place, tuple[Place, str]] = {}  # of each segment that this process read: its end and digest
        self._presence: FileLock | None = None
        self._using = threading.RLock()  # one thread at a time reads or changes the bank

    def __enter__(self) -> "Parts":
        while True:  # a process that leaves may remove the folder at any time before this one is present
            guard = _lock(self.path / GUARD, 10)
            with contextlib.suppress(FileNotFoundError):
                self.path.mkdir(parents=True, exist_ok=True)
                guard.acquire()
            try:
                if guard.is_locked and (self.path / GUARD).exists():
                    self._check_settings()
                    self._presence = _lock(self.path / f"process-{uuid.uuid4().hex[:16]}.lock", 0)
                    self._presence.acquire()
                    return self
            finally:
                guard.release()

    def __exit__(self, kind: Any, *error: Any) -> None:
        assert self._presence is not None
        with _lock(self.path / GUARD, 10):
            self._presence.release()
            Path(self._presence.lock_file).unlink(missing_ok=True)
            if kind is None and self.is_complete() and not in_use(self.path):
                remove(self.path)

    def _check_settings(self) -> None:
        """Writes the settings, or compares them with those of the process that came first."""
        path, own = self.path / IMPORT, json.loads(json.dumps(self._settings))
        if not path.exists():
            with replacing(path) as partial:
                partial.write_text(json.dumps(own), encoding="utf-8")
            return
        held = _read(path)
        for name in own:
            if held.get(name) != own[name]:
                raise BankError(
                    f"the import in {self.path} was begun with {name}={held.get(name)!r}, and this process has "
                    f"{own[name]!r}: give all processes the same, or remove the folder to begin again"
                )

    # Encoding

    def add(
        self,
        units: Callable[[Added], Iterator[Unit[Content]]],
        encode: Callable[[Content], Segment],
        digest: Callable[[Content], str],
    ) -> int:
        """Encodes and appends; returns the number of entries that this process appended, perhaps made by others.

        When it returns, other processes may still encode; `is_complete` says whether all that was read is in the bank.

        Args:
            units: Gives the segments of the source after some progress, in order and cut alike in all processes.
            encode: Makes a segment.
            digest: A text that differs if the rows do.

        Raises:
            BankError: Another process has read other rows.
        """
        total = 0
        self._bank.refresh()
        before = self._bank.snapshot().added(self._namespace, self._source)
        for begin, end, lock, segment in ahead(self._encoded(units(before), encode, digest)):
            if lock is not None and segment is not None:
                try:
                    total += self._keep(begin, end, segment)
                finally:
                    lock.release()
            with contextlib.suppress(TimeoutError):  # another process is appending, and what is left is for later
                total += self._append_ready()
        for attempt in range(PATIENCE):
            try:
                total += self._append_ready()
                break
            except TimeoutError:
                if attempt == PATIENCE - 1:
                    raise
        self._warn_of_gaps()
        return total

    def _encoded(
        self, units: Iterator[Unit[Content]], encode: Callable[[Content], Segment], digest: Callable[[Content], str]
    ) -> Iterator[tuple[Place, Added, FileLock | None, Segment | None]]:
        """Yields every segment that is read, with a lock and the entries if it is for this process to encode."""
        for unit in ahead(units):
            begin = _place(unit.begin)
            self._own[begin] = _place(unit.end), digest(unit.content)
            lock = self._claim(begin)
            try:
                segment = encode(unit.content) if lock is not None else None
            except BaseException:
                assert lock is not None
                lock.release()
                raise
            yield begin, unit.end, lock, segment

    def _claim(self, begin: Place) -> FileLock | None:
        """Takes the lock of a segment; None if it was made already, or another process is making it."""
        if self._is_made(begin):
            return None
        lock = _lock(self._name(begin, "lock"), 0)
        try:
            lock.acquire()
        except Timeout:
            return None
        if self._is_made(begin):  # meanwhile
            lock.release()
            return None
        return lock

    def _is_made(self, begin: Place) -> bool:
        """Whether a segment is in the bank or in the folder; raises a BankError if it was made of other rows."""
        record, (end, _) = self._record(begin), self._own[begin]
        with self._using:
            self._bank.refresh()
            progress = self._progress()
        if record is not None:
            self._check(begin, record)
        if begin < progress < end:
            raise self._disagreement(begin)
        return progress >= end or (record is not None and record.info is not None)

    def _keep(self, begin: Place, end: Added, segment: Segment) -> int:
        """Appends a segment if it is the next one, and puts it into the folder if not; returns what was appended."""
        with contextlib.suppress(TimeoutError), self._using, self._bank.writing() as state:
            if _place(state.added(self._namespace, self._source)) == begin:
                self._write(begin, None)
                return self._bank.append([(segment, [end])], self._namespace)
        self._write(begin, self._folder.write_segment(segment, self._namespace))
        return 0

    def _append_ready(self) -> int:
        """Appends the segments that come next, as far as this process has read; returns the number of entries."""
        total = 0
        while (progress := self._progress()) in self._own:
            with self._using, self._bank.writing() as state:
                record = self._record(progress)
                if _place(state.added(self._namespace, self._source)) == progress:
                    if record is None or record.info is None:
                        break  # nobody has made it yet
                    self._check(progress, record)
                    segment = self._folder.read_segment(record.info)
                    end = Added(self._namespace, self._source, *record.end)
                    total += self._bank.append([(segment, [end])], self._namespace)
                    with contextlib.suppress(OSError):  # it is still open: it goes with the folder
                        (self.path / record.info.file.name).unlink(missing_ok=True)
        return total

    # Progress

    def is_complete(self) -> bool:
        """Whether everything that this process has read is in the bank."""
        self._bank.refresh()
        return self._progress() >= max((end for end, _ in self._own.values()), default=(0, 0))

    def _progress(self) -> Place:
        return _place(self._bank.snapshot().added(self._namespace, self._source))

    def _warn_of_gaps(self) -> None:
        """Warns if a segment is missing that no process is encoding."""
        self._bank.refresh()
        progress = self._progress()
        for begin in sorted(self._own):
            if begin >= progress and not self._is_made(begin):
                with contextlib.suppress(Timeout), _lock(self._name(begin, "lock"), 0):
                    logger.warning(
                        "the source %r is incomplete: the process that encoded its rows from %d on has ended; run the "
                        "same command again",
                        self._source,
                        begin[0],
                    )
                    return

    # Files

    def _name(self, begin: Place, ending: str) -> Path:
        return self.path / f"part-{begin[0]}-{begin[1]}.{ending}"

    def _write(self, begin: Place, info: SegmentInfo | None) -> None:
        end, digest = self._own[begin]
        values = {"end": end, "digest": digest, "info": None if info is None else dataclasses.asdict(info)}
        with replacing(self._name(begin, "json")) as partial:
            partial.write_text(json.dumps(values), encoding="utf-8")

    def _record(self, begin: Place) -> _Record | None:
        path = self._name(begin, "json")
        try:
            values = _read(path)
            info = values["info"]
            if info is not None:
                info = SegmentInfo(**{**info, "file": File(**info["file"])})
                check_segment(info)
            rows, tokens = values["end"]
            return _Record((int(rows), int(tokens)), str(values["digest"]), info)
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise BankError(f"{path} is damaged: remove {self.path} to begin again where the bank ends") from error

    def _check(self, begin: Place, record: _Record) -> None:
        if (record.end, record.digest) != self._own[begin]:
            raise self._disagreement(begin)

    def _disagreement(self, begin: Place) -> BankError:
        return BankError(
            f"another process has read other rows of the source {self._source!r} from row {begin[0]} on: give all "
            f"processes the same data in the same order; then forget the source, and remove {self.path}"
        )


def common_source(source: str | None) -> str:
    """The name of a source that processes add together; raises a ValueError if there is none."""
    if source is None:
        raise ValueError("processes that add together need a common name of the source: give source=...")
    return source


def precision_of(model: Encoder) -> str:
    """The precision in which a model encodes, for the settings of `Parts`."""
    device = model.device.type
    products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return f"{getattr(model, 'dtype', None)}, products in {products}"


def in_use(path: Path) -> bool:
    """Whether a process takes part in the import in a folder."""
    for file in path.glob("process-*.lock"):
        try:
            with _lock(file, 0):
                file.unlink(missing_ok=True)  # its process has ended
        except Timeout:
            return True
    return False


def remove(path: Path) -> None:
    """Removes the folder of an import, and the one that it is in if that is empty then."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds others
        path.parent.rmdir()


def abandoned(path: Path) -> list[Path]:
    """The folders of the imports in a folder in which no process takes part any more."""
    if not path.is_dir() or path.is_symlink():
        return []
    return [own for own in sorted(path.iterdir()) if (own / IMPORT).is_file() and not in_use(own)]


def _lock(path: Path, timeout: float) -> FileLock:
    return FileLock(path, timeout=timeout, thread_local=False)


def _place(added: Added) -> Place:
    return added.rows, added.tokens


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BankError(f"{path} is damaged: remove {path.parent} to begin again where the bank ends") from error
    if not isinstance(values, dict):
        raise BankError(f"{path} is damaged: remove {path.parent} to begin again where the bank ends")
    return values
