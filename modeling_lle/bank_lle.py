"""HistoryBank: past sequences, encoded by the backbone, that a model recalls; added to, searched, and taken back from.

Notable: an entry is a position in a stored text, so that what stands around it can be shown; ids are never given
twice; what is forgotten is gone from every search at once, and from the disk after `compact`. A bank in memory is a
snapshot: other processes may write, `refresh` brings what they wrote.
Shapes: B batch, T time, D width, Q queries, N entries, K neighbours.
"""

import contextlib
import dataclasses
import importlib
import logging
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .bank_files_lle import MANIFEST, Added, BankError, File, Folder, Manifest, Segment, SegmentInfo
from .bank_view_lle import LARGE, View
from .fingerprint_lle import fingerprint, same_backbone
from .temporary_lle import TemporaryFolder

logger = logging.getLogger(__name__)

DEFAULT = "default"
HISTORY_FOLDER = "history"  # where a saved model keeps its bank
TEMPORARY = "lle-bank-"  # what the names of temporary folders begin with
EXACT_ENTRIES = 50_000  # up to so many entries, exact search is faster than an index
ATTEMPTS = 5  # readings of a manifest whose files a writer is replacing

Search = Literal["exact", "balanced", "fast"]


@dataclasses.dataclass
class Found:
    """What a search found.

    Attributes:
        similarity: (Q, K) float32, cosines, descending.
        ids: (Q, K) int64, ids of the entries; -1 where there are fewer than K.
        outcomes: (Q, K) int64, the token that followed each entry.
        counts: (Q, K) int32, how often each entry occurred; 0 where there is none.
    """

    similarity: Tensor
    ids: Tensor
    outcomes: Tensor
    counts: Tensor


@dataclasses.dataclass(frozen=True)
class EntryText:
    """Where an entry comes from.

    Attributes:
        id: Its id.
        namespace, source, row: Where its document was added.
        columns: The document's other columns.
        before: Token ids up to the entry's key, the oldest first.
        outcome: The token id that followed.
        after: Token ids after it.
    """

    id: int
    namespace: str
    source: str
    row: int
    columns: dict[str, Any]
    before: list[int]
    outcome: int
    after: list[int]


class HistoryBank:
    """Entries of past sequences, in a folder. Make one with `build`, `open` or `from_pretrained`.

    Args:
        folder: The files.
        verify: Whether to test the checksum of every file.
    """

    def __init__(self, folder: Folder, verify: bool = True) -> None:
        self.folder = folder
        self.encoder: tuple[Any, Any] | None = None  # model and tokenizer that `add` uses
        self._load(verify)

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
        cls, model: Any, tokenizer: Any, dataset: Any, path: str | Path | None = None, **options: Any
    ) -> "HistoryBank":
        """Makes a bank of a data set.

        Args:
            model: The model that will recall from it; its backbone encodes the texts.
            tokenizer: Its tokenizer.
            dataset: Texts: a `datasets.Dataset` or `IterableDataset`, or an iterable of mappings or of texts; for a
                translator of mappings with the columns `source` and `target`.
            path: The folder; None: a temporary one, which lasts as long as the bank. Save it with `save_pretrained`.
            options: As in `add`.

        Raises:
            FileExistsError: There is a bank already.
        """
        size = fingerprint(model), model.key_size, model.config.vocab_size
        bank = cls.temporary(*size) if path is None else cls.create(path, *size)
        bank.encoder = (model, tokenizer)
        bank._encode(dataset, model, tokenizer, options)
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

    def _load(self, verify: bool) -> None:
        """Reads the newest manifest, and the files that were not read before."""
        known = getattr(self, "_segments", {})
        for attempt in range(ATTEMPTS):
            manifest = self.folder.read_manifest()
            try:
                segments = {
                    info.file: known[info.file]
                    if info.file in known
                    else self.folder.read_segment(info, verify, manifest)
                    for info in manifest.segments
                }
                forgotten = self.folder.read_forgotten(manifest, verify)
                if verify and not segments.keys() <= known.keys():
                    self.folder.check_together(segments.values(), forgotten)
                break
            except BankError:
                if attempt == ATTEMPTS - 1 or self.folder.read_manifest() == manifest:
                    raise  # no writer has replaced the files: they are damaged
        self.manifest, self._segments, self._forgotten = manifest, segments, forgotten
        self._views: dict[tuple[str, ...], View] = {}
        self._visible: dict[File, Tensor] = {}  # the tokens of segments that may be shown

    def refresh(self) -> bool:
        """Brings what other processes have written since; returns whether they have."""
        before = self.manifest.generation
        self._load(verify=True)
        return self.manifest.generation != before

    def __len__(self) -> int:
        """Number of entries that can be recalled."""
        return sum(info.entries for info in self.manifest.segments) - len(self._forgotten)

    def __repr__(self) -> str:
        return f"HistoryBank({str(self.folder.path)!r}, {len(self):,} entries, namespaces: {self.namespaces})"

    def live_outcomes(self, namespaces: Iterable[str] | None = None) -> Tensor:
        """Which labels some entry of these namespaces (None: of all) still has, (O,) bool, for a bank of labels."""
        live = torch.zeros(len(self.manifest.labels or ()), dtype=torch.bool)
        chosen = self.check_namespaces(self.namespaces if namespaces is None else namespaces)
        for info, segment in self.segments():
            if info.namespace in chosen:
                live[segment.outcomes] = True
        return live

    @property
    def namespaces(self) -> list[str]:
        """The namespaces that hold entries."""
        return sorted({info.namespace for info in self.manifest.segments})

    def info(self) -> dict[str, Any]:
        """Size and content as plain values."""
        files = self.manifest.files
        size = sum(file.bytes for file in files)
        return {
            "path": str(self.folder.path),
            "entries": len(self),
            "forgotten": len(self._forgotten),
            "namespaces": {
                name: sum(info.entries for info in self.manifest.segments if info.namespace == name)
                for name in self.namespaces
            },
            "sources": [dataclasses.asdict(added) for added in self.manifest.added],
            "segments": len(self.manifest.segments),
            "bytes": size,
            "bytes_per_entry": size / max(1, len(self)),
            "width": self.manifest.width,
            "vocab_size": self.manifest.vocab_size,
            "fingerprint": self.manifest.fingerprint,
            "generation": self.manifest.generation,
        }

    def check_model(self, model: Any) -> None:
        """Raises a BankError unless `model` predicts what the bank holds, with the backbone that encoded it."""
        if (self.manifest.labels is None) == model.predicts_labels:
            held, due = ("tokens", "labels") if model.predicts_labels else ("labels", "tokens")
            raise BankError(
                f"the bank {self.folder.path} holds {held}, and a {type(model).__name__} predicts {due}: open a bank "
                f"that {'its learn() made' if model.predicts_labels else 'HistoryBank.build made of texts'}"
            )
        if not same_backbone(self.manifest.fingerprint, model):
            raise BankError(
                f"the bank {self.folder.path} was encoded by another backbone (width {self.manifest.width}, "
                f"vocabulary {self.manifest.vocab_size}) than this model's (width {model.key_size}, "
                f"vocabulary {model.config.vocab_size}): load the model that built it, or build a bank with this one"
            )

    # Searching

    def search(
        self, queries: Tensor, neighbours: int, namespaces: Iterable[str] | None = None, how: Search = "balanced"
    ) -> Found:
        """The entries whose keys are nearest to the queries.

        Args:
            queries: (Q, D) floating, normalised states.
            neighbours: How many to find, K.
            namespaces: Where to search; None: everywhere.
            how: "exact", or for more than `EXACT_ENTRIES` entries "balanced" or "fast", with an index.
        """
        if queries.dim() != 2 or queries.shape[1] != self.manifest.width:
            raise ValueError(f"queries must be (Q, {self.manifest.width}), got {tuple(queries.shape)}")
        view = self._view(namespaces, how)
        similarity, index = view.search(queries.float().cpu(), neighbours)
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

    def check_namespaces(self, namespaces: Iterable[str] | str) -> tuple[str, ...]:
        """The namespaces, each once and sorted; raises a BankError if there is none of that name."""
        chosen = sorted({namespaces} if isinstance(namespaces, str) else set(namespaces))
        unknown = [name for name in chosen if name not in self.namespaces]
        if unknown:
            raise BankError(
                f"the bank {self.folder.path} has no namespace {unknown[0]!r}; it has: {', '.join(self.namespaces)}"
            )
        return tuple(chosen)

    def _view(self, namespaces: Iterable[str] | str | None, how: Search) -> View:
        chosen = self.check_namespaces(self.namespaces if namespaces is None else namespaces)
        key = (*chosen, how)
        if key not in self._views:
            infos = [info for info in self.manifest.segments if info.namespace in chosen]
            view = View(self.folder, infos, [self._segments[info.file] for info in infos], self._forgotten)
            if how != "exact" and len(view) > EXACT_ENTRIES:
                view.index = self._index(view, chosen, how)
            self._views[key] = view
        return self._views[key]

    def _index(self, view: View, namespaces: tuple[str, ...], how: Search) -> Any:
        try:
            return bank_tool("index").index_of(
                self.folder.path,
                [info.file.name for info in view.infos],
                view.keys_of,
                [info.entries for info in view.infos],
                how,
            )
        except ImportError as error:
            logger.warning(
                "searching %s exactly, which is slow for %d entries: %s", self.folder.path, len(view), error
            )
            return None

    def segments(self) -> Iterator[tuple[SegmentInfo, Segment]]:
        """The segments, without what was forgotten."""
        for info in self.manifest.segments:
            segment = self._segments[info.file]
            forgotten = torch.isin(segment.ids, self._forgotten)
            yield info, segment.without(forgotten) if forgotten.any() else segment

    def describe(self, ids: Iterable[int], before: int = 16, after: int = 8) -> list[EntryText]:
        """Where entries come from, with up to `before` and `after` tokens around them, -1 where one was forgotten.

        Raises:
            BankError: An id does not exist, or was forgotten.
        """
        texts = []
        for number in ids:
            info, segment, index = self._locate(int(number))
            tokens = self._tokens(info)
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

    def _tokens(self, info: SegmentInfo) -> Tensor:
        """The tokens of a segment (M,) int32, -1 where one was forgotten."""
        segment = self._segments[info.file]
        if info.file not in self._visible:
            forgotten = torch.isin(segment.ids, self._forgotten)
            self._visible[info.file] = segment.tokens_without(forgotten) if forgotten.any() else segment.tokens
        return self._visible[info.file]

    def _locate(self, number: int) -> tuple[SegmentInfo, Segment, int]:
        for info in self.manifest.segments:
            segment = self._segments[info.file]
            index = int(torch.searchsorted(segment.ids, number))
            if index < len(segment) and int(segment.ids[index]) == number:
                place = int(torch.searchsorted(self._forgotten, number))
                if place < len(self._forgotten) and int(self._forgotten[place]) == number:
                    break
                return info, segment, index
        raise BankError(f"the bank {self.folder.path} has no entry {number}: it was never made, or was forgotten")

    # Changing

    def add(self, dataset: Any, *, model: Any = None, tokenizer: Any = None, **options: Any) -> int:
        """Adds the texts of a data set; returns the number of new entries.

        Args:
            dataset: As in `build`.
            model, tokenizer: Those that encode; None: those that built this bank, or whose model it is attached to.
            options: As in `modeling_lle.banks.encode.add`: `text_column`, `source`, `namespace`, `keep_below`,
                `merge`, `resume` and others; for a translator as in `modeling_lle.banks.translated.add`.
        """
        if model is None and self.encoder is None:
            raise ValueError("who encodes? pass model and tokenizer, or attach the bank to the model first")
        own_model, own_tokenizer = self.encoder or (None, None)
        model, tokenizer = model or own_model, tokenizer or own_tokenizer
        if tokenizer is None:
            raise ValueError("the bank was attached to a model without its tokenizer: pass tokenizer")
        self.check_model(model)
        return self._encode(dataset, model, tokenizer, options)

    def _encode(self, dataset: Any, model: Any, tokenizer: Any, options: dict[str, Any]) -> int:
        return bank_tool(model.bank_module).add(self, dataset, model, tokenizer, **options)

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
        with self.folder.writing():
            self._load(verify=True)
            self._check_exist(gone, None, None)
            for segment, added in segments:
                first = self.manifest.next_id
                changes: dict[str, Any] = {}
                segment.ids = torch.arange(first, first + len(segment))
                if self.manifest.labels is not None:
                    names = tuple(dict.fromkeys([*self.manifest.labels, *labels]))
                    numbers = torch.tensor([names.index(name) for name in labels], dtype=segment.tokens.dtype)
                    segment.tokens[segment.positions] = numbers[segment.outcomes]
                    changes["labels"] = names
                if len(gone):
                    changes["forgotten"] = self.folder.write_forgotten(
                        torch.cat([self._forgotten, gone]).sort().values
                    )
                infos = (self.folder.write_segment(segment, namespace),) if len(segment) else ()
                changed = {(item.namespace, item.source): item for item in (*self.manifest.added, *added)}
                self._commit(
                    next_id=first + len(segment),
                    segments=(*self.manifest.segments, *infos),
                    added=tuple(changed.values()),
                    **changes,
                )
                total, gone = total + len(segment), gone[:0]
        return total

    def _commit(self, **changes: Any) -> None:
        """Writes a manifest with the changes, and takes over what it says."""
        generation = self.manifest.generation + 1
        self.folder.write_manifest(dataclasses.replace(self.manifest, generation=generation, **changes))
        self._load(verify=False)

    def forget(
        self,
        ids: Iterable[int] | None = None,
        *,
        source: str | None = None,
        namespace: str | None = None,
        where: Mapping[str, Any] | Callable[[dict[str, Any]], bool] | None = None,
    ) -> int:
        """Takes entries back; what is given must hold for all of them together. Returns how many there were.

        From now on, every prediction is as if they had never been added; their bytes leave the disk with `compact`.

        Args:
            ids: Ids of entries.
            source: The source that they were added from.
            namespace: The namespace that they are in.
            where: Values of columns of their documents, or a function of those columns.

        Raises:
            BankError: An id, a source or a namespace does not exist.
            ValueError: Nothing was given.
        """
        if ids is None and source is None and namespace is None and where is None:
            raise ValueError("forget what? give ids, source, namespace or where")
        wanted = None if ids is None else torch.tensor(sorted({int(number) for number in ids}), dtype=torch.long)
        with self.folder.writing():
            self._load(verify=True)
            self._check_exist(wanted, source, namespace)
            chosen = [
                self._chosen(info, wanted, source, where)
                for info in self.manifest.segments
                if namespace in (None, info.namespace)
            ]
            gone = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.long)
            gone = gone[~torch.isin(gone, self._forgotten)]
            if len(gone):
                kept = [
                    item
                    for item in self.manifest.added
                    if wanted is not None
                    or where is not None
                    or (source not in (None, item.source))
                    or namespace not in (None, item.namespace)
                ]
                forgotten = torch.cat([self._forgotten, gone]).sort().values
                self._commit(forgotten=self.folder.write_forgotten(forgotten), added=tuple(kept))
                self.folder.remove_leftovers()
        return len(gone)

    def _check_exist(self, ids: Tensor | None, source: str | None, namespace: str | None) -> None:
        for number in [] if ids is None else ids.tolist():
            self._locate(number)
        self.check_namespaces([] if namespace is None else namespace)
        sources = sorted({added.source for added in self.manifest.added})
        if source is not None and source not in sources:
            raise BankError(f"the bank {self.folder.path} has no source {source!r}; it has: {', '.join(sources)}")

    def _chosen(self, info: SegmentInfo, ids: Tensor | None, source: str | None, where: Any) -> Tensor:
        """The ids in a segment for which everything that is given holds."""
        segment = self._segments[info.file]
        if where is None or callable(where):
            test = where or (lambda columns: True)
        else:
            test = lambda columns: all(columns.get(name) == value for name, value in where.items())  # noqa: E731
        documents = [
            source in (None, document["source"])
            and test({name: value for name, value in document.items() if name not in ("source", "row")})
            for document in segment.documents
        ]
        chosen = torch.tensor(documents, dtype=torch.bool)[segment.owners]
        if ids is not None:
            chosen &= torch.isin(segment.ids, ids)
        return segment.ids[chosen]

    def compact(self) -> int:
        """Writes the segments anew without what was forgotten and its text, and small neighbours as one.

        Returns:
            The bytes that this saved.
        """
        with self.folder.writing():
            self._load(verify=True)
            before = sum(file.bytes for file in self.manifest.files)
            infos: list[SegmentInfo] = []
            for group in self._neighbours():
                segments = [self._segments[info.file] for info in group]
                forgotten = [torch.isin(segment.ids, self._forgotten) for segment in segments]
                if len(group) == 1 and not forgotten[0].any():
                    infos += group
                elif not all(gone.all() for gone in forgotten):
                    kept = Segment.join([s.without(gone) for s, gone in zip(segments, forgotten, strict=True)])
                    infos.append(self.folder.write_segment(kept, group[0].namespace))
            if tuple(infos) != self.manifest.segments:
                self._commit(segments=tuple(infos), forgotten=None)
                self.folder.remove_leftovers()
                self.folder.remove_index()
        return before - sum(file.bytes for file in self.manifest.files)

    def _neighbours(self) -> list[list[SegmentInfo]]:
        """The segments in groups: neighbours of one namespace, as long as they are small together."""
        groups: list[list[SegmentInfo]] = []
        for info in self.manifest.segments:
            last = groups[-1] if groups else []
            size = info.entries + sum(other.entries for other in last)
            if last and last[0].namespace == info.namespace and size <= LARGE:
                last.append(info)
            else:
                groups.append([info])
        return groups

    def verify(self) -> list[str]:
        """Reads every file again; returns the names of files that belong to no bank (an interrupted change's).

        Raises:
            BankError: A file is missing or damaged.
        """
        manifest = self.folder.read_manifest()
        for file in manifest.files:
            self.folder.check(file)
        return self.folder.leftovers({file.name for file in manifest.files})

    # Keeping and sharing

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a copy of the bank, as it is in memory, into the folder `path`, as a whole or not at all.

        The folder must be empty, or hold an older copy of this bank, which nobody has changed since. Into its own
        folder nothing needs to be written.
        """
        with self.saving(path):
            pass

    @contextlib.contextmanager
    def saving(self, path: str | Path) -> Iterator[None]:
        """As `save_pretrained`: checks and copies everything, and lets it count at the end of the block.

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
            manifest = self.manifest
            try:
                for file in manifest.files:
                    if file not in present:
                        made.copy(self.folder.check(file))
                return manifest
            except BankError:
                if self.manifest is manifest:
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


def bank_tool(name: str) -> Any:
    """A module of modeling_lle.banks; remote code finds it where the package is installed."""
    try:
        return importlib.import_module(f"modeling_lle.banks.{name}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("modeling_lle"):
            raise ImportError("this needs the package: `pip install modeling_lle`") from error
        raise
