"""BankState: the immutable snapshot of a bank folder, which is searched, described and listed.

Notable: a bank swaps its state once for each change.
Shapes: D width, Q queries, N entries, K neighbours, L labels.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..common.packages import raise_missing
from ..common.precision import outside_autocast
from .base_state import BaseState
from .files import BankError, File, Folder, Manifest, Segment, SegmentInfo
from .found import Document, Entries, EntryText, Found
from .projection import Projection
from .protocol import Search
from .rows import documents_of
from .suffixes import Texts
from .view import View

logger = logging.getLogger(__name__)

EXACT_ENTRIES = 50_000  # up to this number of entries, exact search is faster than an index
ATTEMPTS = 5  # readings of a manifest whose files a writer is replacing
NO_IDS = torch.zeros(0, dtype=torch.long)


class BankState(BaseState):
    """State of a bank, which `HistoryBank.snapshot` returns; any number of threads may use it.

    Args:
        folder: The bank's folder.
        manifest: Its manifest.
        files: The segments, by their files.
        forgotten: Ids that were forgotten, 1-D int64, ascending.
        projection: How keys are made of states; None: they are the states.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        files: dict[File, Segment],
        forgotten: Tensor,
        projection: Projection | None = None,
    ) -> None:
        super().__init__(manifest)
        self.folder, self.files, self.forgotten = folder, files, forgotten
        self.projection = projection
        self._texts: dict[File, Texts] = {}  # of this state, or of an older one until they are asked for

    @classmethod
    def read(cls, folder: Folder, verify: bool = True, before: "BankState | None" = None) -> "BankState":
        """Reads the newest state; returns `before` itself if nothing has changed since.

        Args:
            folder: The bank's folder.
            verify: Whether to test the checksums of files that `before` does not have.
            before: An older state, whose files are not read again.

        Raises:
            FileNotFoundError, BankError: As `HistoryBank.open`.
        """
        for attempt in range(ATTEMPTS):
            manifest = folder.read_manifest()
            if before is not None and manifest == before.manifest:
                return before
            try:
                return cls.of(folder, manifest, verify, before)
            except BankError:
                if attempt == ATTEMPTS - 1 or folder.read_manifest() == manifest:
                    raise  # no writer replaced the files meanwhile: they are damaged
        raise AssertionError

    @classmethod
    def of(
        cls, folder: Folder, manifest: Manifest, verify: bool = True, before: "BankState | None" = None
    ) -> "BankState":
        """The state that a manifest describes; other arguments as in `read`."""
        known = {} if before is None else before.files
        files = {
            info.file: known[info.file] if info.file in known else folder.read_segment(info, verify, manifest)
            for info in manifest.segments
        }
        if before is not None and before.manifest.forgotten == manifest.forgotten:
            forgotten = before.forgotten
        else:
            forgotten = folder.read_forgotten(manifest, verify)
        if before is not None and before.manifest.projection == manifest.projection:
            projection = before.projection
        else:
            projection = folder.read_projection(manifest, verify)
        if verify and not files.keys() <= known.keys():
            folder.check_together(files.values(), forgotten)
        state = cls(folder, manifest, files, forgotten, projection)
        if before is not None:
            state._texts = {file: texts for file, texts in dict(before._texts).items() if file in files}
        return state

    def __len__(self) -> int:
        """Number of entries that can be recalled."""
        return sum(info.entries for info in self.manifest.segments) - len(self.forgotten)

    @property
    def name(self) -> str:
        """Name of the bank in messages: its folder."""
        return str(self.folder.path)

    @property
    def state_width(self) -> int:
        """Width of the states that keys are made of: D, unless keys are projected."""
        return self.manifest.state_width

    @property
    def namespaces(self) -> list[str]:
        """The namespaces that hold entries."""
        return sorted({info.namespace for info in self.manifest.segments})

    def is_forgotten(self, segment: Segment) -> Tensor:
        """Mask of the forgotten entries of a segment, (N,) bool."""
        return torch.isin(segment.ids, self.forgotten)

    def segments(self, namespaces: Iterable[str] | None = None) -> Iterator[tuple[str, Segment]]:
        """Namespace and entries of each segment, without forgotten ones, whose tokens are -1."""
        for info, segment, kept in self._kept(namespaces):
            yield info.namespace, segment if kept.all() else segment.without(~kept)

    def documents(self, namespaces: Iterable[str] | None = None) -> Iterator[Document]:
        """As `Snapshot.documents`."""
        for info, segment, kept in self._kept(namespaces):
            yield from documents_of(info.namespace, segment, self._tokens(segment), kept)

    def entries(self, namespaces: Iterable[str] | None = None) -> Iterator[Entries]:
        """As `Snapshot.entries`."""
        for info, segment, kept in self._kept(namespaces):
            columns = segment.keys, segment.ids, segment.outcomes, segment.counts
            yield Entries(info.namespace, *(columns if kept.all() else (column[kept] for column in columns)))

    def kept_texts(self, namespaces: Iterable[str] | None = None) -> Iterator[Texts]:
        """As `Snapshot.kept_texts`; those of a segment that has the same entries as in an older state are the same."""
        chosen = None if namespaces is None else set(namespaces)
        for info in self.manifest.segments:
            if chosen is None or info.namespace in chosen:
                yield self.once((info.file, Texts), lambda file=info.file: self._texts_of(file))  # type: ignore[misc]

    def _texts_of(self, file: File) -> Texts:
        segment, known = self.files[file], self._texts.get(file)
        live = ~self.is_forgotten(segment)
        if known is None or len(known) != int(live.sum()):  # what was forgotten never comes back
            columns = segment.positions, segment.ids, segment.counts
            live_columns = columns if live.all() else [column[live] for column in columns]
            known = self._texts[file] = Texts(self._tokens(segment), segment.starts, *live_columns)
        return known

    def _kept(self, namespaces: Iterable[str] | None) -> Iterator[tuple[SegmentInfo, Segment, Tensor]]:
        """The segments of some namespaces, each with the mask (N,) bool of its live entries."""
        chosen = None if namespaces is None else set(namespaces)
        for info in self.manifest.segments:
            if chosen is None or info.namespace in chosen:
                segment = self.files[info.file]
                yield info, segment, ~self.is_forgotten(segment)

    def live_outcomes(self, namespaces: Iterable[str] | None = None) -> Tensor:
        """As `Snapshot.live_outcomes`."""
        live = torch.zeros(len(self.manifest.labels or ()), dtype=torch.bool)
        chosen = self.check_namespaces(self.namespaces if namespaces is None else namespaces)
        for info in self.manifest.segments:
            if len(live) and info.namespace in chosen:
                segment = self.files[info.file]
                live[segment.outcomes[~self.is_forgotten(segment)]] = True
        return live

    # Searching

    @outside_autocast
    def search(
        self, queries: Tensor, neighbours: int, namespaces: Iterable[str] | None = None, how: Search = "balanced"
    ) -> Found:
        """As `Snapshot.search`; "balanced" and "fast" use an index for more than `EXACT_ENTRIES` entries."""
        if queries.dim() != 2 or queries.shape[1] != self.state_width:
            raise ValueError(f"queries must be (Q, {self.state_width}), got {tuple(queries.shape)}")
        view = self.view(namespaces, how)
        asked = queries.detach().float().cpu()
        similarity, index = view.search(asked if self.projection is None else self.projection(asked), neighbours)
        missing, safe = index < 0, index.clamp(min=0)
        if not len(view):
            blank = torch.zeros_like(index)
            return Found(similarity, index, blank, blank.int())
        return Found(
            similarity,
            view.ids[safe].masked_fill(missing, -1),
            view.outcomes[safe].long(),
            view.counts[safe].masked_fill(missing, 0),
        )

    def view(self, namespaces: Iterable[str] | str | None, how: Search) -> View:
        """The view that a search of some namespaces reads."""
        chosen = self.check_namespaces(self.namespaces if namespaces is None else namespaces)
        return self.once((View, *chosen, how), lambda: self._make_view(chosen, how))

    def _make_view(self, namespaces: tuple[str, ...], how: Search) -> View:
        # By namespace, then by id: of equal scores the first entry wins, so the order must not depend on which
        # segments have been joined.
        infos = [info for name in namespaces for info in self.manifest.segments if info.namespace == name]
        view = View(self.folder, infos, [self.files[info.file] for info in infos], self.forgotten)
        if how != "exact" and len(view) > EXACT_ENTRIES:
            try:
                is_current = functools.partial(self._are_on_disk, infos)
                view.use_index(*_index_of(self.folder, infos, view.keys_of, how, is_current))
            except ImportError as error:
                logger.warning(
                    "searching %s exactly, which is slow for %d entries: %s", self.folder.path, len(view), error
                )
        return view

    def _are_on_disk(self, infos: list[SegmentInfo]) -> bool:
        """Whether every entry of the segments is still on the disk."""
        try:
            now = BankState.read(self.folder, verify=False, before=self)
        except (BankError, OSError):
            return False
        replaced = [self.files[info.file].ids for info in infos if info.file not in now.files]
        written = [segment.ids for file, segment in now.files.items() if file not in self.files]
        return not replaced or bool(torch.isin(torch.cat(replaced), torch.cat([NO_IDS, *written])).all())

    # Describing

    def describe(self, ids: Iterable[int], before: int = 16, after: int = 8) -> list[EntryText]:
        """As `Snapshot.describe`."""
        texts = []
        for number in ids:
            info, segment, index = self.locate(int(number))
            tokens = self.once((info.file, "tokens"), lambda segment=segment: self._tokens(segment))  # type: ignore[misc]
            position = int(segment.positions[index])
            owner = int(torch.searchsorted(segment.starts, position, right=True)) - 1
            begin, end = int(segment.starts[owner]), int(segment.starts[owner + 1])
            own, place = tokens[begin:end], position - begin
            document = segment.documents[owner]
            texts.append(EntryText.of(int(number), info.namespace, document, own, place, (before, after)))
        return texts

    def _tokens(self, segment: Segment) -> Tensor:
        """Tokens of a segment (T,) int32, -1 where one was forgotten."""
        forgotten = self.is_forgotten(segment)
        return segment.tokens_without(forgotten) if forgotten.any() else segment.tokens

    def locate(self, number: int) -> tuple[SegmentInfo, Segment, int]:
        """The segment of an entry, and the entry's index in it; raises a BankError if it does not exist."""
        for info in self.manifest.segments:
            segment = self.files[info.file]
            index = int(torch.searchsorted(segment.ids, number))
            if index < len(segment) and int(segment.ids[index]) == number:
                place = int(torch.searchsorted(self.forgotten, number))
                if place < len(self.forgotten) and int(self.forgotten[place]) == number:
                    break
                return info, segment, index
        raise BankError(f"the bank {self.folder.path} has no entry {number}: it was never made, or was forgotten")

    def columns(self) -> set[str]:
        """Names of all columns of the documents, `source` and `row` included."""
        return {name for _, segment in self.segments() for document in segment.documents for name in document}

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raises a BankError if one of the entries does not exist."""
        for number in ids:
            self.locate(int(number))

    def info(self) -> dict[str, Any]:
        """Size and content as plain values, for `lle bank info`."""
        manifest = self.manifest
        size = sum(file.bytes for file in manifest.files)
        return {
            "path": str(self.folder.path),
            "entries": len(self),
            "forgotten": len(self.forgotten),
            "namespaces": {
                name: sum(info.entries for info in manifest.segments if info.namespace == name)
                for name in self.namespaces
            },
            "sources": [dataclasses.asdict(added) for added in manifest.added],
            "segments": len(manifest.segments),
            "bytes": size,
            "bytes_per_entry": size / max(1, len(self)),
            "width": manifest.width,
            "state_width": manifest.state_width,
            "is_projected": manifest.projection is not None,
            "vocab_size": manifest.vocab_size,
            "fingerprint": manifest.fingerprint,
            "generation": manifest.generation,
        }


def _index_of(*args: Any) -> tuple[Any, dict[str, int]]:
    """As `index_of` of bank/faiss_index.py, which is not saved with models."""
    try:
        from modeling_lle.bank.faiss_index import index_of
    except ModuleNotFoundError as error:
        raise_missing(error)
    return index_of(*args)
