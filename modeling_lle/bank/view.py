"""View: the segments of some namespaces as one search reads them, with an index if there is one.

Shapes: D width, Q queries, N entries, K neighbours, C candidates.
"""

import contextlib
import os
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.available import takes_numba
from .files import BankError, Folder, Segment, SegmentInfo
from .nearest import Parts, best, nearest, similarities
from .sketch import ExactSearch

IN_MEMORY = 1 << 31  # bytes of keys; above it, the keys of candidates are read from the files
LARGE = 65_536  # entries from which a segment is searched without copying its keys


class View:
    """The segments of some namespaces, side by side.

    Args:
        folder: The bank's files.
        infos, segments: The segments.
        forgotten: Ids that may not be found, 1-D int64.
    """

    def __init__(self, folder: Folder, infos: list[SegmentInfo], segments: list[Segment], forgotten: Tensor) -> None:
        self.infos, self.keys = infos, [segment.keys for segment in segments]
        large = sum(keys.nbytes for keys in self.keys) > IN_MEMORY
        columns: list[list[Tensor]] = [
            [torch.zeros(0, dtype=dtype)] for dtype in (torch.long, torch.int32, torch.int32)
        ]
        for info, segment in zip(infos, segments, strict=True):
            # Pages that were read stay in memory as long as the file is mapped: map a large one anew.
            with contextlib.suppress(BankError):  # a writer has removed the file: what is mapped is still there
                segment = folder.read_segment(info, verify=False) if large else segment
            for column, values in zip(columns, (segment.ids, segment.outcomes.int(), segment.counts), strict=True):
                column.append(values.clone())
        self.ids, self.outcomes, self.counts = (torch.cat(column) for column in columns)
        self.usable = ~torch.isin(self.ids, forgotten)
        self.parts = self._join()
        self.exact = ExactSearch(self.parts, self.usable)
        self.index: Any = None
        self.rest: Parts = []  # the entries that the index does not cover
        # Open files, and the offset of the keys in each, if they are read without mapping.
        self.files: list[tuple[int, int]] = []
        if large and hasattr(os, "pread") and takes_numba(self.ids):
            with contextlib.suppress(OSError):
                self.files = [self._open(*folder.find_keys(info)) for info in infos]

    def _open(self, path: Path, offset: int) -> tuple[int, int]:
        """Opens a file for as long as the view exists."""
        file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        return file, offset

    def __len__(self) -> int:
        return len(self.ids)

    def use_index(self, index: Any, known: dict[str, int]) -> None:
        """Searches with an index from now on.

        Args:
            index: The index, `modeling_lle.bank.faiss_index.Index`.
            known: File names of the segments that it covers, in its order, with their numbers of entries; those that
                were replaced since are not in the view.
        """
        sizes, own = torch.tensor(list(known.values())), {info.file.name: info.entries for info in self.infos}
        begins = dict(zip(own, (torch.tensor([0, *own.values()]).cumsum(0)).tolist(), strict=False))
        places = torch.tensor([begins.get(name, -1) for name in known])
        self._ends, self._here = sizes.cumsum(0), places >= 0
        self._shift = places - self._ends + sizes
        self._as_they_are = bool((self._shift == 0).all())  # the usual case: it covers the first entries of the view
        unknown = torch.ones(len(self), dtype=torch.bool)
        for name in known.keys() & own.keys():
            unknown[begins[name] : begins[name] + own[name]] = False
        for first, keys in self.parts:
            runs = unknown[first : first + len(keys)].int().diff(prepend=torch.zeros(1), append=torch.zeros(1))
            for begin, end in zip(
                (runs > 0).nonzero()[:, 0].tolist(), (runs < 0).nonzero()[:, 0].tolist(), strict=True
            ):
                self.rest.append((first + begin, keys[begin:end]))
        self.usable_share = int(self.usable[~unknown].sum()) / max(1, index.entries)
        self.index = index

    def _candidates(self, queries: Tensor, neighbours: int) -> Tensor:
        """Candidates of the index as indices into the view, (Q, C) int64; -1 for none."""
        found = self.index.candidates(queries, neighbours, self.usable_share)
        if self._as_they_are:
            return found
        segment = torch.bucketize(found.contiguous(), self._ends, right=True)
        gone = (found < 0) | ~self._here[segment]
        return (found + self._shift[segment]).masked_fill(gone, -1)

    def _join(self) -> Parts:
        """The keys: large segments mapped from their files, small neighbours concatenated in memory."""
        parts: Parts = []
        small: list[Tensor] = []
        first = size = 0
        for keys in [*self.keys, None]:
            if small and (keys is None or len(keys) >= LARGE or size >= LARGE):
                parts.append((first, torch.cat(small) if len(small) > 1 else small[0]))
                first, small, size = first + size, [], 0
            if keys is not None and len(keys) >= LARGE:
                parts.append((first, keys))
                first += len(keys)
            elif keys is not None:
                small.append(keys)
                size += len(keys)
        return parts

    def keys_of(self, index: Tensor) -> Tensor:
        """Keys (n, D) bfloat16 of the entries `index` (n,) int64."""
        keys = torch.empty(len(index), self.keys[0].shape[1], dtype=torch.bfloat16)
        for first, part in self.parts:
            own = ((index >= first) & (index < first + len(part))).nonzero()[:, 0]
            keys[own] = part[index[own] - first]
        return keys

    def search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """The nearest entries: similarity (Q, K) and index (Q, K) into the view, as `nearest` returns them."""
        if self.index is None:
            return self.exact(queries, neighbours)
        candidates = self._candidates(queries, neighbours)
        if self.rest:
            candidates = torch.cat([candidates, nearest(queries, self.rest, self.usable, neighbours)[1]], dim=1)
        candidates = candidates.masked_fill(~self.usable[candidates.clamp(min=0)], -1).sort(1).values
        return best(self._similarities(queries, candidates), candidates, neighbours)

    def _similarities(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Cosines (Q, C) of queries (Q, D) with their candidates (Q, C); -1 is none."""
        if not self.files:
            return similarities(queries, candidates, self.parts)
        from ..kernels.nearest_numba import fill_from_file

        cosines, first = queries.new_zeros(candidates.shape), 0
        for (file, offset), keys in zip(self.files, self.keys, strict=True):
            try:
                fill_from_file(cosines, candidates, queries, file, offset, first, len(keys))
            except OSError as error:
                raise BankError(
                    f"cannot read a segment: {error}; it was truncated or replaced while the bank was open: open the "
                    "bank again"
                ) from error
            first += len(keys)
        return cosines
