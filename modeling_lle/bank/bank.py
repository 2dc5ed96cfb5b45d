"""HistoryBank: past sequences, encoded by the backbone, that a model recalls; added to, searched, and taken back from.

Notable: an entry is a position in a stored text, so that what stands around it can be shown; ids are never given
twice; what is forgotten is gone from every search at once, and from the disk after `compact`. A bank in memory is a
snapshot: other processes may write, `refresh` brings what they wrote.
Shapes: B batch, T time, D width, Q queries, N entries, K neighbours.
"""

import contextlib
import dataclasses
import logging
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..common.temporary import TemporaryFolder
from .base import BaseBank
from .changes import (
    Condition,
    groups_to_compact,
    kept_sources,
    live_labels,
    named,
    renumbered,
    sources_left,
    to_join,
)
from .files import MANIFEST, Added, BankError, File, Folder, Manifest, Segment, SegmentInfo
from .fingerprint import fingerprint
from .index_files import remove_stale_indexes, stale_indexes
from .manifest import HISTORY_FOLDER
from .protocol import Encoder, Where
from .state import ATTEMPTS, NO_IDS, BankState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TEMPORARY = "lle-bank-"  # what the names of temporary folders begin with


class HistoryBank(BaseBank):
    """Entries of past sequences, in a folder. Make one with `build`, `open` or `from_pretrained`.

    Threads: any number may predict, search, describe and explain while others add, forget and compact. A search, and
    every prediction of a model, is of one state from its beginning to its end, and never waits for a writer; one that
    begins after `forget` has returned finds nothing of what was forgotten, one that began before may. What is told of
    entries that were found is asked of the state that was searched: take `snapshot()`, then call its `search` and
    `describe`. Writers wait for each other, threads as processes, up to ten seconds.

    Args:
        folder: The files.
        verify: Whether to test the checksum of every file.
    """

    def __init__(self, folder: Folder, verify: bool = True) -> None:
        self.folder = folder
        self._state = BankState.read(folder, verify)
        self._swapping = threading.RLock()  # held while a newer state is read or written, and takes the place of this
        self._writer: int | None = None  # the thread that keeps other writers out

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> "HistoryBank":
        """Opens a bank.

        Args:
            path: Its folder.
            verify: Whether to test the checksum of every file, which reads each of them once.

        Raises:
            FileNotFoundError: There is no bank at `path`.
            BankError: A file is missing, damaged, swapped, or of a newer version.
        """
        return cls(Folder(path), verify)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> "HistoryBank":
        """Opens a bank in a folder, in the `history` folder of a saved model, or of a repository on the Hub."""
        path = Path(name_or_path)
        if not path.is_dir():
            from huggingface_hub import snapshot_download

            # No search index: it is made here, as one from elsewhere is not to be trusted.
            names = (MANIFEST, "segment-*.safetensors", "forgotten-*.safetensors")
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
        **options: Any,
    ) -> "HistoryBank":
        """Makes a bank of a data set.

        Args:
            model: The model that will recall from it; its backbone encodes the texts.
            tokenizer: Its tokenizer.
            dataset: Texts: a `datasets.Dataset` or `IterableDataset`, or an iterable of mappings or of texts; for a
                translator mappings with the columns `source` and `target`, for a classifier with `text` and `label`.
            path: The folder; None: a temporary one, which lasts as long as the bank. Save it with `save_pretrained`.
            options: As in `add`.

        Raises:
            FileExistsError: There is a bank already.
        """
        kind, labels = model.entry_kind, () if model.outcome == "label" else None
        size = fingerprint(model), model.key_size, model.config.vocab_size, labels
        bank = cls.temporary(*size) if path is None else cls.create(path, *size)
        bank.encoder = (model, tokenizer)
        kind.add(bank, dataset, model, tokenizer, **options)
        return bank

    @classmethod
    def create(
        cls,
        path: str | Path,
        fingerprint: str,
        width: int,
        vocab_size: int,
        labels: tuple[str, ...] | None = None,
    ) -> "HistoryBank":
        """Makes a bank without entries, for the backbone of this fingerprint; raises a FileExistsError as `build`.

        With `labels`, its outcomes are not tokens but labels: these and those that `append` adds.
        """
        folder = Folder(path)
        folder.check_free()  # before a lock is put there
        with folder.writing():
            folder.check_free()
            with folder.making() as made:
                identity = uuid.uuid4().hex
                made.write_manifest(Manifest(fingerprint, width, vocab_size, labels=labels, identity=identity))
        return cls(folder)

    @classmethod
    def temporary(cls, *args: Any, **kwargs: Any) -> "HistoryBank":
        """As `create`, in a temporary folder that lasts as long as the bank. Keep it with `save_pretrained`.

        The next temporary bank removes those that killed processes left.
        """
        folder = TemporaryFolder(TEMPORARY)
        bank = cls.create(folder.path / "bank", *args, **kwargs)
        weakref.finalize(bank, folder.remove)
        return bank

    # The state

    def snapshot(self) -> BankState:
        """The bank as it is now, for a search and what is told of what it found: nothing changes it."""
        return self._state

    def refresh(self) -> bool:
        """Brings what other processes have written since; returns whether they have."""
        with self._swapping:
            before, self._state = self._state, BankState.read(self.folder, before=self._state)
            return self._state is not before

    @property
    def manifest(self) -> Manifest:
        """What the bank holds, as the files say."""
        return self._state.manifest

    def __repr__(self) -> str:
        state = self._state
        return f"HistoryBank({str(self.folder.path)!r}, {len(state):,} entries, namespaces: {state.namespaces})"

    def segments(self) -> Iterator[tuple[SegmentInfo, Segment]]:
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
    ) -> int:
        """Writes new segments, each at once with what the sources have now; returns the number of new entries.

        The ids in the segments are replaced by new ones.

        Args:
            segments: The segments, and what their sources have now.
            namespace: The namespace that they go to.
            labels: For a bank of labels, the names that the outcomes in the segments are numbers of; the numbers are
                replaced by those of the bank, which learns the names.
            replaced: Ids of entries that are forgotten when the first segment is written.
        """
        total, gone = 0, torch.tensor(sorted(set(replaced)), dtype=torch.long)
        with self.writing():
            for number in gone.tolist():
                self._state.locate(number)
            for segment, added in segments:
                total += self._append(segment, added, namespace, tuple(labels), gone)
                gone = NO_IDS
        return total

    def _append(
        self, segment: Segment, added: list[Added], namespace: str, labels: tuple[str, ...], gone: Tensor
    ) -> int:
        """Writes a segment, as one with those before it that are no larger, without the entries that are `gone`."""
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
            names = named(segment, labels, names, [*(state.files[info.file] for info in infos), *parts])
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
        """Keeps other writers out, threads and processes, and brings what they wrote; a thread may nest it.

        Raises:
            PermissionError, TimeoutError: As `Folder.writing`.
        """
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
        """Writes a manifest with the changes and the ids that are forgotten from now on, and takes it over."""
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
        """Takes entries back; what is given must hold for all of them together. Returns how many there were.

        From now on, every prediction is as if they had never been added; their bytes leave the disk with `compact`.

        Args:
            ids: Ids of entries.
            source: The source that they were added from.
            namespace: The namespace that they are in.
            where: Values of columns of their documents, `row` included, or a function of those columns. Values are
                compared by kind: `True` is not `1`, and `1` is `1.0`.
            missing_ok: Whether it is fine if there is no such entry; else it is an error.

        Raises:
            BankError: An id, the source, the namespace or a column does not exist, or nothing fits all that is given.
            ValueError: Nothing was given.
        """
        condition = Condition(ids, source, namespace, where)
        with self.writing() as state:
            if not missing_ok:
                condition.check(state)
            gone = condition.entries(state)
            kept = kept_sources(state, condition, gone)
            if len(gone) or kept != state.manifest.added:
                self._commit(torch.cat([state.forgotten, gone]).sort().values, added=kept)
            elif not missing_ok:
                raise BankError(
                    f"the bank {self.folder.path} has no entry for which all of this holds: {condition}. Nothing was "
                    "forgotten; pass missing_ok=True if that is fine"
                )
        return len(gone)

    def compact(self) -> int:
        """Takes what was forgotten from the disk: keys, texts, names of sources and labels, and search indexes.

        The segments are written anew without it, and small neighbours as one.

        Returns:
            The bytes that this saved.
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
            # An index that knows what goes must not outlive a compaction that is cut short after its manifest.
            remove_stale_indexes(self.folder, {info.file.name for info in infos})
            if any(getattr(state.manifest, name) != value for name, value in changes.items()):
                self._commit(NO_IDS, **changes)
            remove_stale_indexes(self.folder, {info.file.name for info in infos})
            return sum(file.bytes for file in state.manifest.files) - sum(file.bytes for file in self.manifest.files)

    def verify(self) -> list[str]:
        """Reads every file again; returns the names of files that are left over from changes, which `compact` removes.

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
                    raise  # no writer has replaced it
        stale = stale_indexes(self.folder, {info.file.name for info in manifest.segments})
        known = {file.name for file in manifest.files}
        return [*self.folder.leftovers(known), *(f"{path.parent.name}/{path.name}" for path in stale)]

    # Keeping and sharing

    @contextlib.contextmanager
    def saving(self, path: str | Path) -> Iterator[None]:
        """As `save_pretrained`: checks and copies everything, and lets it take effect at the end of the block.

        Raises:
            FileExistsError: There is another bank at `path`, or other files.
            OSError: It cannot be written; then nothing has changed.
        """
        target = Folder(path)
        if target.path.resolve() == self.folder.path.resolve():
            yield
            return
        if not target.holds_older_copy(self.manifest):
            target.check_free()  # before a lock is put there
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
        """Copies the bank's files into a folder, but for those that are `present`; returns their manifest."""
        while True:
            state = self._state
            try:
                for file in state.manifest.files:
                    if file not in present:
                        made.copy(self.folder.check(file))
                return state.manifest
            except (BankError, FileNotFoundError):
                if self._state is state:
                    raise  # no other thread has replaced the files

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Uploads the bank into the folder `history` of a repository on the Hub.

        Args:
            repo_id: The repository, "owner/name".
            options: As in `huggingface_hub.HfApi.upload_folder` (`token`, `commit_message`, ...); `private` as in
                `create_repo`.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=options.pop("token", None))
        api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True)
        patterns = [MANIFEST, *(file.name for file in self.manifest.files)]
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=self.folder.path,
            path_in_repo=HISTORY_FOLDER,
            allow_patterns=patterns,
            **{"commit_message": "Upload history", **options},
        )
