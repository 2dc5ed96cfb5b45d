"""Planning of changes: the entries that a condition selects, the segments to join, the names that stay.

Notable: small segments are joined as in log-structured merge stores (O'Neil et al. 1996): a new segment takes in the
ones before it that are not larger, so that there are O(log N) small ones and each entry is written O(log N) times.
Values of columns are compared by kind and value: true is not 1, but 1 is 1.0.
"""

import dataclasses
import difflib
import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .files import Added, BankError, Manifest, Segment, SegmentInfo
from .protocol import Snapshot, Where
from .state import NO_IDS, BankState
from .view import LARGE

_MISSING = object()
_NO_SOURCE = "'source' is no column: give source=... beside the columns; a data set's column of that name is 'source_'"


def plain(value: Any) -> Any:
    """Converts a value to what a bank stores: NumPy and torch scalars become Python's, NaN becomes None.

    Raises:
        TypeError: It cannot be written as JSON.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: plain(part) for name, part in value.items()}
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError(f"{type(value).__name__} {value!r:.60}" if isinstance(value, float) else type(value).__name__)


def is_same(held: Any, given: Any) -> bool:
    """Whether two plain values have the same kind and are equal; numbers are one kind, truth values another."""
    if isinstance(held, list) and isinstance(given, list):
        return len(held) == len(given) and all(map(is_same, held, given))
    if isinstance(held, dict) and isinstance(given, dict):
        return held.keys() == given.keys() and all(is_same(held[name], given[name]) for name in held)
    return isinstance(held, bool) == isinstance(given, bool) and bool(held == given)


class Listed(Snapshot, Protocol):
    """A snapshot whose entries a condition can select."""

    @property
    def manifest(self) -> Manifest:
        """The sources, and all that is common to the entries."""
        ...

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raises a BankError if one of the entries does not exist."""
        ...

    def columns(self) -> set[str]:
        """Names of all columns of the documents, `source` and `row` included."""
        ...


@dataclasses.dataclass(frozen=True)
class Condition:
    """Condition of `HistoryBank.forget`: everything that is given must hold.

    Attributes:
        ids, source, namespace, where: As in `forget`.
    """

    ids: Iterable[int] | None = None
    source: str | None = None
    namespace: str | None = None
    where: Where | None = None

    def __post_init__(self) -> None:
        if self.ids is None and self.source is None and self.namespace is None and self.where in (None, {}):
            raise ValueError("nothing to forget: give ids, source, namespace or where")
        if self.ids is not None:
            try:
                numbers = sorted({operator.index(number) for number in self.ids})
            except TypeError as error:
                raise ValueError(f"ids are a list of whole numbers: {error}") from None
            object.__setattr__(self, "ids", torch.tensor(numbers, dtype=torch.long))
        if isinstance(self.where, Mapping):
            if "source" in self.where:
                raise ValueError(_NO_SOURCE)
            object.__setattr__(self, "where", {name: plain(value) for name, value in self.where.items()})

    @property
    def names_sources(self) -> bool:
        """Whether it selects whole sources."""
        return self.ids is None and self.where is None

    def check(self, state: "Listed") -> None:
        """Raises a BankError if an id, the source, the namespace or a column does not exist."""
        state.check_ids([] if self.ids is None else self.ids)
        state.check_namespaces([] if self.namespace is None else [self.namespace])
        sources = sorted({added.source for added in state.manifest.added})
        if self.source is not None and self.source not in sources:
            near = _nearest(self.source, sources)
            raise BankError(f"the bank {state.name} has no source {self.source!r}{near}; it has: {_list(sources)}")
        if isinstance(self.where, dict):
            check_columns(state, self.where)

    def entries(self, state: BankState) -> Tensor:
        """Ids (1-D int64, ascending) of the live entries that it selects."""
        chosen = [NO_IDS]
        for info in state.manifest.segments:
            if self.namespace in (None, info.namespace):
                segment = state.files[info.file]
                usable = torch.tensor([self.selects(document) for document in segment.documents], dtype=torch.bool)
                own = usable[segment.owners] & ~state.is_forgotten(segment)
                if self.ids is not None:
                    own &= torch.isin(segment.ids, torch.as_tensor(self.ids))
                chosen.append(segment.ids[own])
        return torch.cat(chosen).sort().values

    def selects(self, document: Mapping[str, Any]) -> bool:
        """Whether a document, with `source`, `row` and its other columns, fits, ids and namespace aside."""
        if self.source not in (None, document["source"]):
            return False
        if isinstance(self.where, dict):
            return all(is_same(document.get(name, _MISSING), value) for name, value in self.where.items())
        if self.where is None:
            return True
        columns = {name: value for name, value in document.items() if name not in ("source", "row")}
        return bool(self.where(columns))  # type: ignore[operator]

    def nothing_fits(self, name: str) -> BankError:
        """The error to raise if nothing in the bank `name` is selected."""
        return BankError(
            f"the bank {name} has no entry for which all of this holds: {self}. Nothing was forgotten; pass "
            "missing_ok=True if that is fine"
        )

    def __str__(self) -> str:
        parts = [f"{name}={value!r}" for name in ("source", "namespace") if (value := getattr(self, name)) is not None]
        if self.ids is not None:
            parts.insert(0, f"ids={[int(number) for number in self.ids][:20]}")
        if self.where is not None:
            parts.append(f"where={self.where!r}" if isinstance(self.where, dict) else "the condition")
        return ", ".join(parts)


def check_columns(state: "Listed", names: Iterable[str]) -> None:
    """Raises a BankError unless the documents of a bank have columns of these names."""
    columns = sorted(state.columns() - {"source"})
    for name in names:
        if name in columns:
            continue
        if name == "source":
            raise BankError(_NO_SOURCE)
        where = f"the bank {state.name} has no column {name!r}"
        if name == "namespace":
            raise BankError(f"{where}: give namespace=... beside the columns")
        raise BankError(f"{where}{_nearest(name, columns)}; its columns are: {_list(columns)}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:20]) or "none"
    return f"{shown} and {len(names) - 20:,} others" if len(names) > 20 else shown


def written(value: Any) -> tuple[str, str]:
    """Spellings of a column's value that a command line accepts."""
    return str(value), json.dumps(value, ensure_ascii=False)


# Joining segments


def to_join(state: BankState, namespace: str, size: int) -> list[SegmentInfo]:
    """The newest segments of a namespace to join with a new one of `size` entries, in their order."""
    taken: list[SegmentInfo] = []
    for info in reversed([info for info in state.manifest.segments if info.namespace == namespace]):
        if info.entries - len(state.forgotten) > size:
            break
        live = int((~state.is_forgotten(state.files[info.file])).sum())
        if live > size or (live and size + live > LARGE):
            break
        taken.insert(0, info)
        size += live
    return taken


def groups_to_compact(state: BankState) -> list[list[SegmentInfo]]:
    """Groups of segments to join: neighbours in a namespace, as long as their sum is small."""
    groups: list[list[SegmentInfo]] = []
    newest: dict[str, tuple[list[SegmentInfo], int]] = {}  # last group of each namespace, and its number of entries
    for info in state.manifest.segments:
        group, size = newest.get(info.namespace, ([], LARGE))
        live = int((~state.is_forgotten(state.files[info.file])).sum())
        if size + live > LARGE:
            group, size = [], 0
            groups.append(group)
        group.append(info)
        newest[info.namespace] = group, size + live
    return groups


def sources_left(state: BankState, without: Tensor = NO_IDS) -> set[tuple[str, str]]:
    """Namespace and source of the live entries, except the ids `without` (1-D int64)."""
    left = set()
    for info in state.manifest.segments:
        segment = state.files[info.file]
        gone = state.is_forgotten(segment) | torch.isin(segment.ids, without)
        for owner in segment.owners[~gone].unique().tolist():
            left.add((info.namespace, segment.documents[owner]["source"]))
    return left


def lost_sources(state: BankState, gone: Tensor) -> set[tuple[str, str]]:
    """Namespace and source where the ids `gone` (1-D int64) are all the entries that there are."""
    return sources_left(state) - sources_left(state, gone)


def kept_sources(
    added: Iterable[Added], condition: Condition, lost: Callable[[], set[tuple[str, str]]]
) -> tuple[Added, ...]:
    """Import progress of the sources that stay when the entries go that a condition selects.

    Args:
        added: That of all sources.
        condition: The condition.
        lost: Finds namespace and source where no other entry is left.
    """
    if condition.names_sources:

        def stays(item: Added) -> bool:
            return condition.source not in (None, item.source) or condition.namespace not in (None, item.namespace)

        return tuple(item for item in added if stays(item))
    gone = lost()
    return tuple(item for item in added if (item.namespace, item.source) not in gone)


# Names of labels


def live_labels(state: Snapshot) -> tuple[tuple[str, ...], Tensor]:
    """Names of the labels that live entries have, and the new number of each of the bank's L labels, -1 for none."""
    live = state.live_outcomes()
    names = tuple(name for name, is_live in zip(state.labels or (), live.tolist(), strict=True) if is_live)
    return names, (live.long().cumsum(0) - 1).masked_fill(~live, -1)


def renumbered(segment: Segment, numbers: Tensor) -> Segment:
    """Replaces each outcome y by `numbers[y]`; returns the segment itself if nothing changes."""
    if torch.equal(numbers[segment.outcomes], segment.outcomes):
        return segment
    tokens = segment.tokens.clone()
    places = torch.cat([segment.positions, segment.copies[:, 1]])
    tokens[places] = numbers[tokens[places].long()].to(tokens.dtype)
    return dataclasses.replace(segment, tokens=tokens)


def named(segment: Segment, labels: tuple[str, ...], held: tuple[str, ...]) -> tuple[str, ...]:
    """Changes the outcomes of a segment in place from numbers in `labels` to numbers in the bank.

    Args:
        segment: The new segment.
        labels: Names of its outcomes.
        held: Labels of the bank, up to the last one that another entry has.

    Returns:
        The new labels of the bank.
    """
    names = tuple(dict.fromkeys([*held, *labels]))
    numbers = torch.tensor([names.index(name) for name in labels], dtype=segment.tokens.dtype)
    places = torch.cat([segment.positions, segment.copies[:, 1]])
    segment.tokens[places] = numbers[segment.tokens[places].long()]
    return names
