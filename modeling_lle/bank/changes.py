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
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .files import Added, BankError, Segment, SegmentInfo
from .protocol import Where
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

    def check(self, state: BankState) -> None:
        """Raises a BankError if an id, the source, the namespace or a column does not exist."""
        for number in [] if self.ids is None else self.ids:
            state.locate(int(number))
        state.check_namespaces([] if self.namespace is None else [self.namespace])
        sources = sorted({added.source for added in state.manifest.added})
        if self.source is not None and self.source not in sources:
            near = _nearest(self.source, sources)
            raise BankError(
                f"the bank {state.folder.path} has no source {self.source!r}{near}; it has: {_list(sources)}"
            )
        if isinstance(self.where, dict):
            check_columns(state, self.where)

    def entries(self, state: BankState) -> Tensor:
        """Ids (1-D int64, ascending) of the live entries that it selects."""
        chosen = [NO_IDS]
        for info in state.manifest.segments:
            if self.namespace in (None, info.namespace):
                segment = state.files[info.file]
                usable = torch.tensor([self._selects(document) for document in segment.documents], dtype=torch.bool)
                own = usable[segment.owners] & ~state.is_forgotten(segment)
                if self.ids is not None:
                    own &= torch.isin(segment.ids, torch.as_tensor(self.ids))
                chosen.append(segment.ids[own])
        return torch.cat(chosen).sort().values

    def _selects(self, document: dict[str, Any]) -> bool:
        if self.source not in (None, document["source"]):
            return False
        if isinstance(self.where, dict):
            return all(is_same(document.get(name, _MISSING), value) for name, value in self.where.items())
        if self.where is None:
            return True
        columns = {name: value for name, value in document.items() if name not in ("source", "row")}
        return bool(self.where(columns))  # type: ignore[operator]

    def __str__(self) -> str:
        parts = [f"{name}={value!r}" for name in ("source", "namespace") if (value := getattr(self, name)) is not None]
        if self.ids is not None:
            parts.insert(0, f"ids={[int(number) for number in self.ids][:20]}")
        if self.where is not None:
            parts.append(f"where={self.where!r}" if isinstance(self.where, dict) else "the condition")
        return ", ".join(parts)


def check_columns(state: BankState, names: Iterable[str]) -> None:
    """Raises a BankError unless the documents of a bank have columns of these names."""
    held = {name for _, segment in state.segments() for document in segment.documents for name in document}
    columns = sorted(held - {"source"})
    for name in names:
        if name in columns:
            continue
        if name == "source":
            raise BankError(_NO_SOURCE)
        where = f"the bank {state.folder.path} has no column {name!r}"
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


def kept_sources(state: BankState, condition: Condition, gone: Tensor) -> tuple[Added, ...]:
    """Import progress of the sources that stay when the ids `gone` (1-D int64), which a condition selects, go."""
    if condition.names_sources:

        def stays(item: Added) -> bool:
            return condition.source not in (None, item.source) or condition.namespace not in (None, item.namespace)

        return tuple(item for item in state.manifest.added if stays(item))
    left = sources_left(state, gone)
    lost = sources_left(state) - left
    return tuple(item for item in state.manifest.added if (item.namespace, item.source) not in lost)


# Names of labels


def live_labels(state: BankState) -> tuple[tuple[str, ...], Tensor]:
    """Names of the labels that live entries have, and the new number of each of the bank's L labels, -1 for none."""
    live = state.live_outcomes()
    names = tuple(name for name, is_live in zip(state.manifest.labels or (), live.tolist(), strict=True) if is_live)
    return names, (live.long().cumsum(0) - 1).masked_fill(~live, -1)


def renumbered(segment: Segment, numbers: Tensor) -> Segment:
    """Replaces each outcome y by `numbers[y]`; returns the segment itself if nothing changes."""
    if torch.equal(numbers[segment.outcomes], segment.outcomes):
        return segment
    tokens = segment.tokens.clone()
    places = torch.cat([segment.positions, segment.copies[:, 1]])
    tokens[places] = numbers[tokens[places].long()].to(tokens.dtype)
    return dataclasses.replace(segment, tokens=tokens)


def named(
    segment: Segment, labels: tuple[str, ...], held: tuple[str, ...], files: Iterable[Segment]
) -> tuple[str, ...]:
    """Changes the outcomes of a segment in place from numbers in `labels` to numbers in the bank.

    Args:
        segment: The new segment.
        labels: Names of its outcomes.
        held: Labels of the bank. Those at the end that no entry in `files` has are dropped.
        files: The bank's other segments.

    Returns:
        The new labels of the bank.
    """
    used = max((int(other.outcomes.max()) + 1 for other in files if len(other)), default=0)
    names = tuple(dict.fromkeys([*held[:used], *labels]))
    numbers = torch.tensor([names.index(name) for name in labels], dtype=segment.tokens.dtype)
    places = torch.cat([segment.positions, segment.copies[:, 1]])
    segment.tokens[places] = numbers[segment.tokens[places].long()]
    return names
