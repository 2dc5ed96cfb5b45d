"""BankState: a bank as it is at one moment, which is searched, described and listed, and never changes.

Notable: whatever is computed of a state (views, indexes, label spaces) is kept in it and goes with it, so that nothing
made of an older state can be taken for the newer one's. A bank swaps its state once for each change.
Shapes: D width, Q queries, N entries, K neighbours.
"""

import dataclasses
import functools
import itertools
import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..common.packages import raise_missing
from ..common.precision import outside_autocast
from .files import Added, BankError, File, Folder, Manifest, Segment, SegmentInfo
from .found import Document, Entries, EntryText, Found
from .protocol import Made, Search
from .view import View

logger = logging.getLogger(__name__)

EXACT_ENTRIES = 50_000  # up to so many entries, exact search is faster than an index
ATTEMPTS = 5  # readings of a manifest whose files a writer is replacing
NO_IDS = torch.zeros(0, dtype=torch.long)


class BankState:
    """What a bank holds at one moment. `HistoryBank.snapshot` returns it; any number of threads may use it.

    Args:
        folder: The files.
        manifest: What it holds.
        files: The segments, by their files.
        forgotten: Ids that were forgotten, (n,) int64, ascending.
    """

    def __init__(self, folder: Folder, manifest: Manifest, files: dict[File, Segment], forgotten: Tensor) -> None:
        self.folder, self.manifest, self.files, self.forgotten = folder, manifest, files, forgotten
        self._made: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, threading.Lock] = {}

    @classmethod
    def read(cls, folder: Folder, verify: bool = True, before: "BankState | None" = None) -> "BankState":
        """The newest state; `before` itself if nothing has changed since.

        Args:
            folder: The files.
            verify: Whether to test the checksums of the files that `before` does not have.
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
                    raise  # no writer has replaced the files: they are damaged
        raise AssertionError

    @classmethod
    def of(
        cls, folder: Folder, manifest: Manifest, verify: bool = True, before: "BankState | None" = None
    ) -> "BankState":
        """The state that a manifest describes; the other arguments are those of `read`."""
        known = {} if before is None else before.files
        files = {
            info.file: known[info.file] if info.file in known else folder.read_segment(info, verify, manifest)
            for info in manifest.segments
        }
        if before is not None and before.manifest.forgotten == manifest.forgotten:
            forgotten = before.forgotten
        else:
            forgotten = folder.read_forgotten(manifest, verify)
        if verify and not files.keys() <= known.keys():
            folder.check_together(files.values(), forgotten)
        return cls(folder, manifest, files, forgotten)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns, computed when it is first asked for and kept as long as this state."""
        if key not in self._made:
            with self._locks.setdefault(key, threading.Lock()):
                if key not in self._made:
                    self._made[key] = make()
        return self._made[key]

    def __len__(self) -> int:
        """Number of entries that can be recalled."""
        return sum(info.entries for info in self.manifest.segments) - len(self.forgotten)

    @property
    def name(self) -> str:
        """Name of the bank in messages: its folder."""
        return str(self.folder.path)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that made the keys."""
        return self.manifest.fingerprint

    @property
    def width(self) -> int:
        """Width of the keys, D."""
        return self.manifest.width

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the model that made the keys."""
        return self.manifest.vocab_size

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the outcomes in a bank of labels; None in one of tokens."""
        return self.manifest.labels

    @property
    def generation(self) -> int:
        """Number of changes so far."""
        return self.manifest.generation

    @property
    def namespaces(self) -> list[str]:
        """The namespaces that hold entries."""
        return sorted({info.namespace for info in self.manifest.segments})

    def check_namespaces(self, namespaces: Iterable[str] | str) -> tuple[str, ...]:
        """The namespaces, each once and sorted; raises a BankError if there is none of that name."""
        chosen = sorted({namespaces} if isinstance(namespaces, str) else set(namespaces))
        unknown = [name for name in chosen if name not in self.namespaces]
        if unknown:
            held = ", ".join(self.namespaces) or "none"
            raise BankError(f"the bank {self.folder.path} has no namespace {unknown[0]!r}; it has: {held}")
        return tuple(chosen)

    def added(self, namespace: str, source: str) -> Added:
        """What of a source is in a namespace: nothing where it was not added."""
        own = [item for item in self.manifest.added if (item.namespace, item.source) == (namespace, source)]
        return own[0] if own else Added(namespace, source, 0)

    def free_source(self, kind: str) -> str:
        """The first of "kind-1", "kind-2", ... that is no source."""
        taken = {item.source for item in self.manifest.added}
        return next(name for name in (f"{kind}-{number}" for number in itertools.count(1)) if name not in taken)

    def held(self, namespaces: Iterable[str] | None) -> tuple[str, ...] | None:
        """Those of the namespaces that hold entries: one that was forgotten as a whole is gone. None stays None."""
        return None if namespaces is None else tuple(name for name in namespaces if name in self.namespaces)

    def is_forgotten(self, segment: Segment) -> Tensor:
        """Which entries of a segment were forgotten, (N,) bool."""
        return torch.isin(segment.ids, self.forgotten)

    def segments(self) -> Iterator[tuple[SegmentInfo, Segment]]:
        """The segments, without what was forgotten."""
        for info in self.manifest.segments:
            segment = self.files[info.file]
            forgotten = self.is_forgotten(segment)
            yield info, segment.without(forgotten) if forgotten.any() else segment

    def documents(self, namespaces: Iterable[str] | None = None) -> Iterator[Document]:
        """As `Snapshot.documents`."""
        for info, segment, kept in self._kept(namespaces):
            tokens, positions = self._tokens(segment).tolist(), segment.positions[kept]
            ids, outcomes = segment.ids[kept].tolist(), segment.tokens[positions].tolist()
            starts, first = segment.starts.tolist(), torch.searchsorted(positions, segment.starts).tolist()
            for number, (begin, end) in enumerate(itertools.pairwise(first)):
                if begin < end:  # else none of its entries is left
                    columns = dict(segment.documents[number])
                    yield Document(
                        namespace=info.namespace,
                        source=columns.pop("source"),
                        row=columns.pop("row"),
                        columns=columns,
                        tokens=tokens[starts[number] : starts[number + 1]],
                        ids=ids[begin:end],
                        outcomes=outcomes[begin:end],
                    )

    def entries(self, namespaces: Iterable[str] | None = None) -> Iterator[Entries]:
        """As `Snapshot.entries`."""
        for info, segment, kept in self._kept(namespaces):
            keys, ids, outcomes = segment.keys, segment.ids, segment.outcomes
            if not kept.all():
                keys, ids, outcomes = keys[kept], ids[kept], outcomes[kept]
            yield Entries(info.namespace, keys, ids, outcomes)

    def _kept(self, namespaces: Iterable[str] | None) -> Iterator[tuple[SegmentInfo, Segment, Tensor]]:
        """The segments of some namespaces, and which entries of them were not forgotten, (N,) bool."""
        chosen = None if namespaces is None else set(namespaces)
        for info in self.manifest.segments:
            if chosen is None or info.namespace in chosen:
                segment = self.files[info.file]
                yield info, segment, ~self.is_forgotten(segment)

    def live_outcomes(self, namespaces: Iterable[str] | None = None) -> Tensor:
        """Which labels some entry of these namespaces (None: of all) still has, (O,) bool, for a bank of labels."""
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
        """The entries whose keys are nearest to the queries; no gradient flows through it.

        Args:
            queries: (Q, D) floating, normalised states.
            neighbours: How many to find, K.
            namespaces: Where to search; None: everywhere.
            how: "exact", or for more than `EXACT_ENTRIES` entries "balanced" or "fast", with an index.
        """
        if queries.dim() != 2 or queries.shape[1] != self.manifest.width:
            raise ValueError(f"queries must be (Q, {self.manifest.width}), got {tuple(queries.shape)}")
        view = self.view(namespaces, how)
        similarity, index = view.search(queries.detach().float().cpu(), neighbours)
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
        """What a search of some namespaces sees."""
        chosen = self.check_namespaces(self.namespaces if namespaces is None else namespaces)
        return self.once((View, *chosen, how), lambda: self._make_view(chosen, how))

    def _make_view(self, namespaces: tuple[str, ...], how: Search) -> View:
        # By namespace, then by id: equal scores go to the first entry, so their order must not depend on which
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
        """Whether no entry of the segments has been taken from the disk."""
        try:
            now = BankState.read(self.folder, verify=False, before=self)
        except (BankError, OSError):
            return False
        replaced = [self.files[info.file].ids for info in infos if info.file not in now.files]
        written = [segment.ids for file, segment in now.files.items() if file not in self.files]
        return not replaced or bool(torch.isin(torch.cat(replaced), torch.cat([NO_IDS, *written])).all())

    # Where entries come from

    def describe(self, ids: Iterable[int], before: int = 16, after: int = 8) -> list[EntryText]:
        """Where entries come from, with up to `before` and `after` tokens around them, -1 where one was forgotten.

        Raises:
            BankError: An id does not exist, or was forgotten.
        """
        texts = []
        for number in ids:
            info, segment, index = self.locate(int(number))
            tokens = self.once((info.file, "tokens"), lambda segment=segment: self._tokens(segment))  # type: ignore[misc]
            position = int(segment.positions[index])
            owner = int(torch.searchsorted(segment.starts, position, right=True)) - 1
            document = dict(segment.documents[owner])
            begin, end = int(segment.starts[owner]), int(segment.starts[owner + 1])
            texts.append(
                EntryText(
                    id=int(number),
                    namespace=info.namespace,
                    source=document.pop("source"),
                    row=document.pop("row"),
                    columns=document,
                    before=tokens[max(begin, position - before) : position].tolist(),
                    outcome=int(tokens[position]),
                    after=tokens[position + 1 : min(end, position + 1 + after)].tolist(),
                )
            )
        return texts

    def _tokens(self, segment: Segment) -> Tensor:
        """The tokens of a segment (M,) int32, -1 where one was forgotten."""
        forgotten = self.is_forgotten(segment)
        return segment.tokens_without(forgotten) if forgotten.any() else segment.tokens

    def locate(self, number: int) -> tuple[SegmentInfo, Segment, int]:
        """The segment that holds an entry, and the entry's place in it; raises a BankError if there is none."""
        for info in self.manifest.segments:
            segment = self.files[info.file]
            index = int(torch.searchsorted(segment.ids, number))
            if index < len(segment) and int(segment.ids[index]) == number:
                place = int(torch.searchsorted(self.forgotten, number))
                if place < len(self.forgotten) and int(self.forgotten[place]) == number:
                    break
                return info, segment, index
        raise BankError(f"the bank {self.folder.path} has no entry {number}: it was never made, or was forgotten")

    def info(self) -> dict[str, Any]:
        """Size and content as plain values."""
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
