"""What one search of a bank sees: the segments of some namespaces side by side, and the index in front of them.

Shapes: D width, Q queries, N entries, K neighbours.
"""

from typing import Any

import torch
from torch import Tensor

from .bank_files_lle import Segment
from .nearest_lle import Parts, best, nearest, similarities

LARGE = 65_536  # segments of so many entries are searched where they lie


class View:
    """The segments of some namespaces, side by side, as one search sees them."""

    def __init__(self, names: list[str], segments: list[Segment], forgotten: Tensor, width: int) -> None:
        self.names, self.segments = names, segments
        self.offsets = torch.tensor([0, *(len(segment) for segment in segments)]).cumsum(0)

        def joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
            return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)

        self.ids = joined([segment.ids for segment in segments], torch.long)
        self.outcomes = joined([segment.outcomes.int() for segment in segments], torch.int32)
        self.counts = joined([segment.counts for segment in segments], torch.int32)
        self.usable = ~torch.isin(self.ids, forgotten)
        self.usable_share = float(self.usable.float().mean()) if len(self.usable) else 1.0
        self.width = width
        self.parts = self._join()
        self.index: Any = None  # of the first entries; set it to search with it

    def __len__(self) -> int:
        return len(self.ids)

    def _join(self) -> Parts:
        """The keys: those of large segments as they lie in their files, small neighbours together in memory."""
        parts: Parts = []
        small: list[Tensor] = []
        first = size = 0
        for segment in [*self.segments, None]:
            if small and (segment is None or len(segment) >= LARGE or size >= LARGE):
                parts.append((first, torch.cat(small) if len(small) > 1 else small[0]))
                first, small, size = first + size, [], 0
            if segment is not None and len(segment) >= LARGE:
                parts.append((first, segment.keys))
                first += len(segment)
            elif segment is not None:
                small.append(segment.keys)
                size += len(segment)
        return parts

    def keys_of(self, index: Tensor) -> Tensor:
        """The keys of the entries `index` (n,) int64, as (n, D) bfloat16."""
        keys = torch.empty(len(index), self.width, dtype=torch.bfloat16)
        for first, part in self.parts:
            own = ((index >= first) & (index < first + len(part))).nonzero()[:, 0]
            keys[own] = part[index[own] - first]
        return keys

    def search(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """The nearest entries, from the index if there is one."""
        if self.index is None:
            return nearest(queries, self.parts, self.usable, neighbours)
        candidates, known = self.index.candidates(queries, neighbours, self.usable_share), self.index.entries
        added = [(max(first, known), keys[max(0, known - first) :]) for first, keys in self.parts]
        added = [(first, keys) for first, keys in added if len(keys)]
        if added:
            candidates = torch.cat([candidates, nearest(queries, added, self.usable, neighbours)[1]], dim=1)
        candidates = candidates.masked_fill(~self.usable[candidates.clamp(min=0)], -1).sort(1).values
        return best(similarities(queries, candidates, self.parts), candidates, neighbours)
