"""HistoryBank: a folder of past sequences, encoded by the backbone, which a model recalls; entries come and go.

Notable: an entry is a position in a stored text, so that its context can be shown. Ids are never reused. A forgotten
entry is gone from every search at once, and from the disk after `compact`. Other processes may write; `refresh` takes
in their changes.
Shapes: D width, Q queries, N entries, K neighbours.
"""

import contextlib
import dataclasses
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import Tensor

from ..common.packages import raise_missing
from ..common.paths import is_address
from ..common.temporary import TemporaryFolder
from .base import BaseBank, check_projects, upload
from .changes import (
    Condition,
    groups_to_compact,
    kept_sources,
    live_labels,
    lost_sources,
    named,
    renumbered,
    sources_left,
    to_join,
)
from .files import MANIFEST, PARTS, Added, BankError, File, Folder, Manifest, Segment, SegmentInfo
from .fingerprint import fingerprint
from .index_files import remove_stale_indexes, stale_indexes
from .manifest import HISTORY_FOLDER, Projected
from .parts import abandoned, remove
from .projection import Projection, check_key_width
from .protocol import Encoder, Where
from .state import ATTEMPTS, NO_IDS, BankState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPORARY = "lle-bank-"  # prefix of temporary folders


class HistoryBank(BaseBank):
    """Entries of past sequences in a folder. Make one with `build`, `open` or `from_pretrained`.

    Threads: any number may search, describe and predict while others add, forget and compact. A search, like every
    prediction of a model, reads one state from beginning to end and never waits for a writer. If it begins after
    `forget` has returned, it finds no forgotten entry. To describe entries that were found, take a `snapshot()` first,
    and call its `search` and `describe`. Writers, in threads and processes, wait for each other up to ten seconds.

    Args:
        folder: The bank's folder.
        verify: Whether to test the checksum of every file.
    """

    def __init__(self, folder: Folder, verify: bool = True) -> None:
        self.folder = folder
        self._state = BankState.read(folder, verify)
        self._swapping = threading.RLock()  # held while the state is replaced by a newer one
        self._writer: int | None = None  # the thread that holds the lock of the folder

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> "HistoryBank":
        """Opens a bank.

        Args:
            path: Its folder, or an address in Milvus (bank/address.py), for which the result is a `MilvusBank`.
            verify: Whether to test the checksum of every file, which reads each of them once.

        Raises:
            FileNotFoundError: There is no bank at `path`.
            BankError: A file is missing, damaged, swapped, or of a newer version.
        """
        if is_address(path):
            return _in_milvus().open(path)
        return cls(Folder(path), verify)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> "HistoryBank":
        """Opens a bank: in a folder, in `history` of a saved model or of a repository on the Hub, or in Milvus."""
        if is_address(name_or_path):
            return _in_milvus().open(name_or_path)
        path = Path(name_or_path)
        if not path.is_dir():
            from huggingface_hub import snapshot_download

            # Without search indexes: those of others are not trusted.
            names = (MANIFEST, "segment-*.safetensors", "forgotten-*.safetensors", "projection-*.safetensors")
            patterns = [f"{HISTORY_FOLDER}/{name}" for name in names]
            path = Path(snapshot_download(str(name_or_path), revision=revision, token=token, allow_patterns=patterns))
        inner = path / HISTORY_FOLDER
        return cls.open(inner if (inner / MANIFEST).exists() else path)

    @classmethod
    def build(
        cls,
        model: Encoder,
        tokenizer: "PreTrainedTokenizerBase",
        dataset: Iterable[Any],
        path: str | Path | None = None,
        *,
        key_width: int | None = None,
        **options: Any,
    ) -> "HistoryBank":
        """Makes a bank from a data set.

        Args:
            model: The model that will recall from it; its backbone encodes the rows.
            tokenizer: Its tokenizer.
            dataset: Texts: a `datasets.Dataset` or `IterableDataset`, or an iterable of mappings or of texts; for a
                translator mappings with the columns `source` and `target`, for a classifier with `text` and `label`.
            path: The folder, or an address in Milvus; None: a temporary folder, which lasts as long as the bank. Save
                it with `save_pretrained`.
            key_width: As in `create`.
            options: As in `add`. Of processes that share `parts`, the first makes the bank, and the others open it.

        Raises:
            BankError: Another process has made the bank with another model, or keys of another width.
            FileExistsError: `path` holds a bank or other files.
            ValueError: The width of the keys is too large.
        """
        kind, labels = model.entry_kind, () if model.outcome == "label" else None
        check_projects(model, key_width is not None, "key_width")
        size = fingerprint(model), model.key_size, model.config.vocab_size, labels, key_width
        bank = cls.temporary(*size) if path is None else cls._first_or_open(path, size, options.get("parts"))
        bank.check_model(model)
        bank.check_key_width(key_width)
        bank.encoder = (model, tokenizer)
        kind.add(bank, dataset, model, tokenizer, **options)
        return bank

    @classmethod
    def _first_or_open(cls, path: str | Path, size: tuple[Any, ...], parts: str | Path | None) -> "HistoryBank":
        """Makes a bank, or opens the one that another process with the same `parts` has made."""
        if parts is None:
            return cls.create(path, *size)
        in_milvus = is_address(path)  # where nothing else keeps two processes from making it at the same time
        if in_milvus:
            Path(parts).mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(Path(parts) / "making.lock") if in_milvus else contextlib.nullcontext():
                return cls.create(path, *size)
        except FileExistsError:
            if not in_milvus and not (Path(path) / MANIFEST).exists():
                raise
            return cls.open(path)

    @classmethod
    def create(
        cls,
        path: str | Path,
        fingerprint: str,
        width: int,
        vocab_size: int,
        labels: tuple[str, ...] | None = None,
        key_width: int | None = None,
    ) -> "HistoryBank":
        """Makes a bank without entries.

        Args:
            path: The folder, or an address in Milvus.
            fingerprint: Fingerprint of the model that makes the keys.
            width: Width of the model's states, D.
            vocab_size: Vocabulary of the model.
            labels: Labels to begin with, in a bank whose outcomes are labels; `append` adds others. None: a bank whose
                outcomes are tokens.
            key_width: Width of the keys, 2 <= W <= D, to which the states are projected, so that entries take less
                space. None: keys are the states.

        Raises:
            FileExistsError: `path` holds a bank or other files.
            ValueError: The width of the keys is too large.
        """
        check_key_width(key_width, width)
        if is_address(path):
            return _in_milvus().create(path, fingerprint, width, vocab_size, labels, key_width)
        folder = Folder(path)
        folder.check_free()  # before the lock file is written
        with folder.writing():
            folder.check_free()
            with folder.making() as made:
                manifest = Manifest(fingerprint, width, vocab_size, labels=labels, identity=uuid.uuid4().hex)
                if key_width is not None:
                    own = Projected(width, made.write_projection(Projection.random(width, key_width)))
                    manifest = dataclasses.replace(manifest, width=key_width, projection=own)
                made.write_manifest(manifest)
        return cls(folder)

    @classmethod
    def temporary(cls, *args: Any, **kwargs: Any) -> "HistoryBank":
        """As `create`, in a temporary folder that lasts as long as the bank. Keep it with `save_pretrained`.

        The next temporary bank removes leftovers of killed processes.
        """
        folder = TemporaryFolder(TEMPORARY)
        bank = cls.create(folder.path / "bank", *args, **kwargs)
        weakref.finalize(bank, folder.remove)
        return bank

    # The state

    def snapshot(self) -> BankState:
        """The newest state that this process knows."""
        return self._state

    def refresh(self) -> bool:
        """Takes in what other processes have written; returns whether there was anything."""
        with self._swapping:
            before, self._state = self._state, BankState.read(self.folder, before=self._state)
            return self._state is not before

    @property
    def manifest(self) -> Manifest:
        """The manifest of the newest state."""
        return self._state.manifest

    def __repr__(self) -> str:
        state = self._state
        return f"HistoryBank({str(self.folder.path)!r}, {len(state):,} entries, namespaces: {state.namespaces})"

    def segments(self) -> Iterator[tuple[str, Segment]]:
        """As `BankState.segments`."""
        return self._state.segments()

    def info(self) -> dict[str, Any]:
        """As `BankState.info`."""
        return self._state.info()

    # Changing

    def append(
        self,
        segments: Iterable[tuple[Segment, list[Added]]],
        namespace: str,
        labels: Sequence[str] = (),
        replaced: Iterable[int] = (),
        are_keys: bool = False,
    ) -> int:
        """As `Bank.append`; the segments are changed in place. They have projected keys already if `are_keys`."""
        total, gone = 0, torch.tensor(sorted(set(replaced)), dtype=torch.long)
        with self.writing():
            self._state.check_ids(gone)
            for segment, added in segments:
                if not are_keys:
                    self._project(segment)
                total += self._append(segment, added, namespace, tuple(labels), gone)
                gone = NO_IDS
        return total

    def _project(self, segment: Segment) -> None:
        """Replaces the states of a segment by the keys of this bank, if these are projected."""
        projection, width = self._state.projection, self.state_width
        if projection is None or not len(segment):
            return
        if segment.keys.shape[1] != width:
            raise BankError(
                f"the bank {self.name} projects states of the width {width}, got {segment.keys.shape[1]}: add with "
                "the model that built it"
            )
        segment.keys = projection(segment.keys).bfloat16()

    def _append(
        self, segment: Segment, added: list[Added], namespace: str, labels: tuple[str, ...], gone: Tensor
    ) -> int:
        """Writes a segment, joined with those before it that are not larger; forgets the ids `gone` (1-D int64)."""
        state, size = self._state, len(segment)
        first = state.manifest.next_id
        segment.ids = torch.arange(first, first + size)
        forgotten = torch.cat([state.forgotten, gone]).sort().values
        joined = to_join(state, namespace, size) if size else []
        infos = [info for info in state.manifest.segments if info not in joined]
        parts = [state.files[info.file] for info in joined]
        parts = [part.without(torch.isin(part.ids, forgotten)) for part in parts]
        names = state.manifest.labels
        if names is not None:
            others = [*(state.files[info.file] for info in infos), *parts]
            used = max((int(other.outcomes.max()) + 1 for other in others if len(other)), default=0)
            names = named(segment, labels, names[:used])
        if size:
            infos.append(self.folder.write_segment(Segment.join([*parts, segment]) if parts else segment, namespace))
        replaced = torch.cat([NO_IDS, *(state.files[info.file].ids for info in joined)])
        changed = {(item.namespace, item.source): item for item in (*state.manifest.added, *added)}
        self._commit(
            forgotten[~torch.isin(forgotten, replaced)],
            next_id=first + size,
            segments=tuple(infos),
            added=tuple(changed.values()),
            labels=names,
        )
        return size

    @contextlib.contextmanager
    def writing(self) -> Iterator[BankState]:
        """As `Bank.writing`; it waits for another writer up to ten seconds."""
        if self._writer == threading.get_ident():
            yield self._state
            return
        with self.folder.writing():
            self.refresh()
            self._writer = threading.get_ident()
            try:
                yield self._state
            finally:
                self._writer = None

    def _commit(self, forgotten: Tensor, **changes: Any) -> None:
        """Writes a manifest with changed values and the forgotten ids (1-D int64, ascending), and swaps the state."""
        state = self._state
        file = state.manifest.forgotten
        if not torch.equal(forgotten, state.forgotten):
            file = self.folder.write_forgotten(forgotten) if len(forgotten) else None
        generation = state.manifest.generation + 1
        manifest = dataclasses.replace(state.manifest, generation=generation, forgotten=file, **changes)
        with self._swapping:
            self.folder.write_manifest(manifest)
            self._state = BankState.of(self.folder, manifest, verify=False, before=state)
        if not set(state.manifest.files) <= set(manifest.files):
            self.folder.remove_leftovers()

    def forget(
        self,
        ids: Iterable[int] | None = None,
        *,
        source: str | None = None,
        namespace: str | None = None,
        where: Where | None = None,
        missing_ok: bool = False,
    ) -> int:
        """Takes back the entries for which everything that is given holds; returns their number.

        From then on, every prediction is as if they had never been added. Their bytes leave the disk with `compact`.

        Args:
            ids: Ids of entries.
            source: Their source.
            namespace: Their namespace.
            where: Values of columns of their documents, `row` included, or a function of those columns. Values are
                compared by kind: `True` is not `1`, but `1` is `1.0`.
            missing_ok: Whether to return 0 instead of raising an error if there is no such entry.

        Raises:
            BankError: An id, the source, the namespace or a column does not exist, or nothing fits all that is given.
            ValueError: Nothing was given.
        """
        condition = Condition(ids, source, namespace, where)
        with self.writing() as state:
            if not missing_ok:
                condition.check(state)
            gone = condition.entries(state)
            kept = kept_sources(state.manifest.added, condition, lambda: lost_sources(state, gone))
            if len(gone) or kept != state.manifest.added:
                self._commit(torch.cat([state.forgotten, gone]).sort().values, added=kept)
            elif not missing_ok:
                raise condition.nothing_fits(self.name)
        return len(gone)

    def compact(self) -> int:
        """Removes forgotten entries from the disk: keys, texts, names of sources and labels, and search indexes.

        Segments that an interrupted build by several processes has left aside go, too.

        Segments are rewritten without them, and small neighbours joined.

        Returns:
            The number of bytes saved.
        """
        with self.writing() as state:
            labels = None if state.manifest.labels is None else live_labels(state)
            infos: list[SegmentInfo] = []
            for group in groups_to_compact(state):
                segments = [state.files[info.file] for info in group]
                forgotten = [state.is_forgotten(segment) for segment in segments]
                kept = [s.without(gone) if gone.any() else s for s, gone in zip(segments, forgotten, strict=True)]
                if labels is not None:
                    kept = [renumbered(segment, labels[1]) for segment in kept]
                if len(group) == 1 and kept[0] is segments[0]:
                    infos += group
                elif any(map(len, kept)):
                    infos.append(self.folder.write_segment(Segment.join(kept), group[0].namespace))
            left = sources_left(state)
            changes = {
                "segments": tuple(infos),
                "added": tuple(item for item in state.manifest.added if (item.namespace, item.source) in left),
                "labels": None if labels is None else labels[0],
            }
            # Twice, as no index of what goes may outlive a compaction that is cut short after its manifest.
            remove_stale_indexes(self.folder, {info.file.name for info in infos})
            if any(getattr(state.manifest, name) != value for name, value in changes.items()):
                self._commit(NO_IDS, **changes)
            remove_stale_indexes(self.folder, {info.file.name for info in infos})
            for path in abandoned(self.folder.path / PARTS):
                remove(path)
            return sum(file.bytes for file in state.manifest.files) - sum(file.bytes for file in self.manifest.files)

    def verify(self) -> list[str]:
        """Reads every file again; returns the names of leftover files, which `compact` removes.

        Raises:
            BankError: A file is missing or damaged.
        """
        for attempt in range(ATTEMPTS):
            manifest = self.folder.read_manifest()
            try:
                for file in manifest.files:
                    self.folder.check(file)
                break
            except BankError:
                if attempt == ATTEMPTS - 1 or self.folder.read_manifest() == manifest:
                    raise  # no writer replaced the file meanwhile
        stale = stale_indexes(self.folder, {info.file.name for info in manifest.segments})
        stale += abandoned(self.folder.path / PARTS)
        known = {file.name for file in manifest.files}
        return [*self.folder.leftovers(known), *(f"{path.parent.name}/{path.name}" for path in stale)]

    # Keeping and sharing

    @contextlib.contextmanager
    def saving(self, path: str | Path) -> Iterator[None]:
        """As `save_pretrained`: checks and copies everything, and lets it take effect at the end of the block.

        Raises:
            FileExistsError: `path` holds another bank, or other files.
            OSError: It cannot be written; nothing has changed then.
        """
        target = Folder(path)
        if target.path.resolve() == self.folder.path.resolve():
            yield
            return
        if not target.holds_older_copy(self.manifest):
            target.check_free()  # before the lock file is written
        with target.writing():
            present: set[File] = set()
            if target.holds_older_copy(self.manifest):
                present = set(target.read_manifest().files)
            else:
                target.check_free()
            with target.making() as made:
                manifest = self._copy_into(made, {file for file in present if target.is_whole(file)})
                copy_of = (manifest.identity, manifest.generation) if manifest.identity else None
                identity = uuid.uuid4().hex if manifest.identity else ""
                made.write_manifest(dataclasses.replace(manifest, identity=identity, copy_of=copy_of))
                yield

    def _copy_into(self, made: Folder, present: set[File]) -> Manifest:
        """Copies the bank's files except those that are `present` into a folder; returns their manifest."""
        while True:
            state = self._state
            try:
                for file in state.manifest.files:
                    if file not in present:
                        made.copy(self.folder.check(file))
                return state.manifest
            except (BankError, FileNotFoundError):
                if self._state is state:
                    raise  # no other thread replaced the files meanwhile

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Uploads the bank into the folder `history` of a repository on the Hub, without search indexes.

        Args:
            repo_id: The repository, "owner/name".
            options: As in `huggingface_hub.HfApi.upload_folder` (`token`, `commit_message`, ...); `private` as in
                `create_repo`.
        """
        return upload(self.folder.path, self.manifest, repo_id, **options)


def _in_milvus() -> Any:
    """`MilvusBank` of bank/milvus, which is not saved with models."""
    try:
        from modeling_lle.bank.milvus.bank import MilvusBank
    except ModuleNotFoundError as error:
        raise_missing(error)
    return MilvusBank
