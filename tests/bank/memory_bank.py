"""MemoryBank: a bank of plain lists in memory; it shows that any `Bank` can stand in for a folder."""

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling_lle import HistoryBank
from modeling_lle.bank.base import BaseBank
from modeling_lle.bank.found import Document, Entries, EntryText, Found
from modeling_lle.bank.manifest import Added, BankError
from modeling_lle.bank.protocol import Made, Search, Where
from modeling_lle.bank.segment import Segment
from modeling_lle.bank.suffixes import Texts


@dataclasses.dataclass(frozen=True)
class Entry:
    id: int
    position: int
    outcome: int
    count: int
    copies: tuple[int, ...]
    key: Tensor


@dataclasses.dataclass(frozen=True)
class Text:
    namespace: str
    source: str
    row: int
    columns: dict[str, Any]
    tokens: tuple[int, ...]
    entries: tuple[Entry, ...]

    def without(self, gone: set[int]) -> "Text":
        lost = [entry for entry in self.entries if entry.id in gone]
        places = {place for entry in lost for place in (entry.position, *entry.copies)}
        tokens = tuple(-1 if place in places else token for place, token in enumerate(self.tokens))
        kept = tuple(entry for entry in self.entries if entry.id not in gone)
        return dataclasses.replace(self, tokens=tokens, entries=kept)


@dataclasses.dataclass(frozen=True)
class MemorySnapshot:
    name: str
    fingerprint: str
    width: int
    vocab_size: int
    labels: tuple[str, ...] | None
    generation: int = 0
    next_id: int = 0
    texts: tuple[Text, ...] = ()
    sources: tuple[Added, ...] = ()
    made: dict[Hashable, Any] = dataclasses.field(default_factory=dict, compare=False)
    projection: None = None

    @property
    def state_width(self) -> int:
        return self.width

    @property
    def namespaces(self) -> list[str]:
        return sorted({text.namespace for text in self.texts})

    def __len__(self) -> int:
        return sum(len(text.entries) for text in self.texts)

    def check_namespaces(self, namespaces: Iterable[str] | str) -> tuple[str, ...]:
        chosen = sorted({namespaces} if isinstance(namespaces, str) else set(namespaces))
        for name in chosen:
            if name not in self.namespaces:
                raise BankError(f"{self.name} has no namespace {name!r}")
        return tuple(chosen)

    def held(self, namespaces: Iterable[str] | None) -> tuple[str, ...] | None:
        return None if namespaces is None else tuple(name for name in namespaces if name in self.namespaces)

    def _chosen(self, namespaces: Iterable[str] | None) -> list[Text]:
        chosen = self.namespaces if namespaces is None else list(namespaces)
        return [text for text in self.texts if text.namespace in chosen and text.entries]

    def search(
        self, queries: Tensor, neighbours: int, namespaces: Iterable[str] | None = None, how: Search = "balanced"
    ) -> Found:
        if queries.dim() != 2 or queries.shape[1] != self.width:
            raise ValueError(f"queries must be (Q, {self.width}), got {tuple(queries.shape)}")
        if neighbours < 1:
            raise ValueError(f"a search finds at least one neighbour; got {neighbours}")
        texts = self._chosen(None if namespaces is None else self.check_namespaces(namespaces))
        entries = [entry for text in texts for entry in text.entries]
        keys = torch.stack([entry.key for entry in entries]).float() if entries else torch.zeros(0, self.width)
        similarity, place = (queries.detach().float() @ keys.T).sort(dim=1, descending=True, stable=True)
        missing = max(0, neighbours - len(entries))

        def column(values: list[int], blank: int) -> Tensor:
            found = torch.tensor(values, dtype=torch.long)[place[:, :neighbours]]
            return torch.nn.functional.pad(found, (0, missing), value=blank)

        return Found(
            torch.nn.functional.pad(similarity[:, :neighbours], (0, missing)),
            column([entry.id for entry in entries], -1),
            column([entry.outcome for entry in entries], 0),
            column([entry.count for entry in entries], 0).int(),
        )

    def describe(self, ids: Iterable[int], before: int = 16, after: int = 8) -> list[EntryText]:
        known = {entry.id: (text, entry) for text in self.texts for entry in text.entries}
        found = []
        for number in ids:
            if int(number) not in known:
                raise BankError(f"{self.name} has no entry {number}")
            text, entry = known[int(number)]
            place = entry.position
            found.append(
                EntryText(
                    entry.id,
                    text.namespace,
                    text.source,
                    text.row,
                    dict(text.columns),
                    list(text.tokens[max(0, place - before) : place]),
                    entry.outcome,
                    list(text.tokens[place + 1 : place + 1 + after]),
                    torch.tensor(text.tokens[1:place], dtype=torch.int32),
                )
            )
        return found

    def documents(self, namespaces: Iterable[str] | None = None) -> Iterator[Document]:
        for text in self._chosen(namespaces):
            yield Document(
                text.namespace,
                text.source,
                text.row,
                dict(text.columns),
                list(text.tokens),
                [entry.id for entry in text.entries],
                [entry.outcome for entry in text.entries],
            )

    def entries(self, namespaces: Iterable[str] | None = None) -> Iterator[Entries]:
        for text in self._chosen(namespaces):
            yield Entries(
                text.namespace,
                torch.stack([entry.key for entry in text.entries]),
                torch.tensor([entry.id for entry in text.entries]),
                torch.tensor([entry.outcome for entry in text.entries]),
                torch.ones(len(text.entries), dtype=torch.int32),
            )

    def kept_texts(self, namespaces: Iterable[str] | None = None) -> Iterator[Texts]:
        for text in self._chosen(namespaces):
            yield Texts(
                torch.tensor(text.tokens, dtype=torch.int32),
                torch.tensor([0, len(text.tokens)]),
                torch.tensor([entry.position for entry in text.entries]),
                torch.tensor([entry.id for entry in text.entries]),
                torch.tensor([entry.count for entry in text.entries], dtype=torch.int32),
            )

    def live_outcomes(self, namespaces: Iterable[str] | None = None) -> Tensor:
        live = torch.zeros(len(self.labels or ()), dtype=torch.bool)
        if len(live):
            live[[entry.outcome for text in self._chosen(namespaces) for entry in text.entries]] = True
        return live

    def added(self, namespace: str, source: str) -> Added:
        own = [item for item in self.sources if (item.namespace, item.source) == (namespace, source)]
        return own[0] if own else Added(namespace, source, 0)

    def free_source(self, kind: str) -> str:
        taken = {item.source for item in self.sources}
        return next(name for name in (f"{kind}-{number}" for number in itertools.count(1)) if name not in taken)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        return self.made.setdefault(key, make()) if key not in self.made else self.made[key]


class Store:
    """What all handles on a bank share."""

    def __init__(self, snapshot: MemorySnapshot) -> None:
        self.newest, self.lock = snapshot, threading.RLock()


class MemoryBank(BaseBank):
    def __init__(self, store: Store) -> None:
        self.store, self._state = store, store.newest

    @classmethod
    def create(
        cls, fingerprint: str, width: int, vocab_size: int, labels: tuple[str, ...] | None = None
    ) -> "MemoryBank":
        return cls(Store(MemorySnapshot("the bank in memory", fingerprint, width, vocab_size, labels)))

    def snapshot(self) -> MemorySnapshot:
        return self._state

    def refresh(self) -> bool:
        before, self._state = self._state, self.store.newest
        return self._state is not before

    @contextlib.contextmanager
    def writing(self) -> Iterator[MemorySnapshot]:
        with self.store.lock:
            self.refresh()
            yield self._state

    def _change(self, **changes: Any) -> None:
        new = dataclasses.replace(self._state, generation=self._state.generation + 1, made={}, **changes)
        self.store.newest = self._state = new

    def append(
        self,
        segments: Iterable[tuple[Segment, list[Added]]],
        namespace: str,
        labels: Sequence[str] = (),
        replaced: Iterable[int] = (),
    ) -> int:
        total, gone = 0, set(replaced)
        with self.writing() as state:
            state.describe(gone)
            for segment, added in segments:
                total += self._append(segment, added, namespace, tuple(labels), gone)
                gone = set()
        return total

    def _append(
        self, segment: Segment, added: list[Added], namespace: str, labels: tuple[str, ...], gone: set[int]
    ) -> int:
        state, names = self._state, self._state.labels
        tokens, outcomes = segment.tokens.tolist(), segment.outcomes.tolist()
        if names is not None:
            names = tuple(dict.fromkeys([*names, *labels]))
            outcomes = [names.index(labels[outcome]) for outcome in outcomes]
        copies: dict[int, list[int]] = {}
        for entry, position in segment.copies.tolist():
            copies.setdefault(entry, []).append(position)
        texts = []
        for number, columns in enumerate(segment.documents):
            begin, end = segment.starts[number : number + 2].tolist()
            own = [place for place, owner in enumerate(segment.owners.tolist()) if owner == number]
            entries = [
                Entry(
                    state.next_id + place,
                    int(segment.positions[place]) - begin,
                    outcomes[place],
                    int(segment.counts[place]),
                    tuple(position - begin for position in copies.get(place, [])),
                    segment.keys[place],
                )
                for place in own
            ]
            kept = list(tokens[begin:end])
            for entry in entries:
                kept[entry.position] = entry.outcome
            columns = dict(columns)
            source, row = columns.pop("source"), columns.pop("row")
            texts.append(Text(namespace, source, row, columns, tuple(kept), tuple(entries)))
        sources = {(item.namespace, item.source): item for item in (*state.sources, *added)}
        self._change(
            labels=names,
            next_id=state.next_id + len(segment),
            texts=(*(text.without(gone) for text in state.texts), *texts),
            sources=tuple(sources.values()),
        )
        return len(segment)

    def forget(
        self,
        ids: Iterable[int] | None = None,
        *,
        source: str | None = None,
        namespace: str | None = None,
        where: Where | None = None,
        missing_ok: bool = False,
    ) -> int:
        if ids is None and source is None and namespace is None and not where:
            raise ValueError("nothing to forget: give ids, source, namespace or where")
        chosen = None if ids is None else {int(number) for number in ids}

        def meant(text: Text) -> bool:
            columns = {"row": text.row, **text.columns}
            if isinstance(where, Mapping):
                fits = all(name in columns and columns[name] == value for name, value in where.items())
            else:
                fits = where is None or where(text.columns)
            return fits and source in (None, text.source) and namespace in (None, text.namespace)

        with self.writing() as state:
            if not missing_ok:
                state.describe(chosen or ())
                state.check_namespaces([] if namespace is None else [namespace])
                if source is not None and source not in {item.source for item in state.sources}:
                    raise BankError(f"{self.name} has no source {source!r}")
            gone = {
                entry.id
                for text in state.texts
                if meant(text)
                for entry in text.entries
                if chosen is None or entry.id in chosen
            }
            if not gone and not missing_ok:
                raise BankError(f"{self.name} has no entry for which all of this holds")
            if gone:
                texts = [text.without(gone) for text in state.texts]
                self._change(texts=tuple(text for text in texts if text.entries))
        return len(gone)

    @contextlib.contextmanager
    def saving(self, path: str | Path) -> Iterator[None]:
        with self._as_folder().saving(path):
            yield

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        return self._as_folder().push_to_hub(repo_id, **options)

    def _as_folder(self) -> HistoryBank:
        state = self._state
        bank = HistoryBank.temporary(state.fingerprint, state.width, state.vocab_size, labels=state.labels)
        for text in state.texts:
            count = len(text.entries)
            segment = Segment(
                keys=torch.stack([entry.key for entry in text.entries]),
                ids=torch.arange(count),
                positions=torch.tensor([entry.position for entry in text.entries]),
                counts=torch.tensor([entry.count for entry in text.entries], dtype=torch.int32),
                copies=torch.tensor(
                    [[place, copy] for place, entry in enumerate(text.entries) for copy in entry.copies],
                    dtype=torch.long,
                ).view(-1, 2),
                tokens=torch.tensor(text.tokens, dtype=torch.int32),
                starts=torch.tensor([0, len(text.tokens)]),
                documents=[{"source": text.source, "row": text.row, **text.columns}],
            )
            bank.append([(segment, [state.added(text.namespace, text.source)])], text.namespace, state.labels or ())
        return bank
