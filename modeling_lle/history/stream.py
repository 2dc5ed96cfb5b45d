"""The stream: a ring buffer with the entries of the recent text of each row.

Notable: the entry of a position is made when the next token arrives, so a prediction cannot recall what it predicts;
each row counts its own entries, so padding changes nothing, and neither do tokens that make none, as those that the
model generated itself; nothing is written in place into a tensor that a gradient may still need. Shapes: B batch,
T time, N entries, D width, C slots of the buffer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.linear import linear


def blocks_of(length: int, size: int, first: int = 0) -> Iterator[slice]:
    """The positions of a segment in blocks of at most `size`, one of which begins at `first`."""
    for begin, end in ((0, first), (first, length)):
        for start in range(begin, end, size):
            yield slice(start, min(start + size, end))


@dataclass
class Block:
    """Consecutive positions of a segment, and the entries of the stream that each may recall.

    Attributes:
        positions: The positions of the segment.
        queries: (B, T, D), the normalised states of those positions.
        keys: One or two tensors with the keys of the N entries, in order: (B, n, D), or (n, D) for all rows.
        outcomes: (B, N) int64, the token after each key.
        serial: (B, N) int64, the number of each entry in its row, from 0; -1 for no entry.
        made: (B, T) int64, entries of the row after the token of the position has been read.
        window: The largest age that may be recalled.
    """

    positions: slice
    queries: Tensor
    keys: list[Tensor]
    outcomes: Tensor
    serial: Tensor
    made: Tensor
    window: int

    @property
    def age(self) -> Tensor:
        """Ages of the entries at each position, (B, T, N) int64; 1 for the newest entry."""
        return self.made[:, :, None] - self.serial[:, None, :]

    @property
    def valid(self) -> Tensor:
        """Whether a position may recall an entry, (B, T, N) bool: made before it and within the window."""
        age = self.age
        return (self.serial >= 0)[:, None, :] & (age >= 1) & (age <= self.window)

    def similarity(self) -> Tensor:
        """Returns the cosine of every position with every entry, (B, T, N), in the dtype of the keys."""
        if len(self.keys) == 1 or self.queries.device.type != "cpu" or self.queries.requires_grad:
            return torch.cat([self.queries @ keys.transpose(-1, -2) for keys in self.keys], dim=-1)
        similarity = self.queries.new_empty(*self.queries.shape[:2], self.outcomes.shape[1])
        for row, queries in enumerate(self.queries):
            place = 0
            for keys in self.keys:
                similarity[row, :, place : place + keys.shape[1]] = linear(queries, keys[row])
                place += keys.shape[1]
        return similarity

    def other_rows(self) -> "Block":
        """Returns the same positions with the entries that this segment made in the other rows; ages are undefined.

        The block must come from `Stream.read_whole`.
        """
        rows, length = self.made.shape
        own = torch.eye(rows, dtype=torch.bool, device=self.made.device).repeat_interleave(length, dim=1)
        missing = (self.serial[:, -length:] < 0).flatten()
        serial = torch.arange(rows * length, device=self.made.device).masked_fill(own | missing, -1)
        outcomes = self.outcomes[:, -length:].reshape(1, -1).expand(rows, -1)
        made = torch.full_like(self.made, rows * length)
        keys = [self.keys[-1].flatten(0, 1)]
        return Block(self.positions, self.queries, keys, outcomes, serial, made, window=rows * length)


class Stream:
    """A ring buffer of the last `window` entries (key, outcome) of each row.

    Args:
        window: Entries kept per row, at least 1.

    Attributes:
        keys: (B, C, D) normalised states, C <= window; the buffer grows by doubling up to the window.
        outcomes: (B, C) int64 token ids.
        count: (B,) int64, entries made so far; entry n is in slot `n % window`.
        pending: (B, D), the key of the newest position, whose outcome is not known yet.
        has_pending: (B,) bool.
    """

    tensors = ("keys", "outcomes", "count", "pending", "has_pending")

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"a stream holds at least one entry, got a window of {window}")
        self.window = window
        self.keys: Tensor | None = None

    def _start(self, keys: Tensor) -> None:
        rows, _, width = keys.shape
        self.keys = keys.new_zeros(rows, 0, width)
        self.outcomes = torch.zeros(rows, 0, dtype=torch.long, device=keys.device)
        self.count = torch.zeros(rows, dtype=torch.long, device=keys.device)
        self.pending = keys.new_zeros(rows, width)
        self.has_pending = torch.zeros(rows, dtype=torch.bool, device=keys.device)

    def read(
        self, states: Tensor, outcomes: Tensor | None, mask: Tensor | None, block: int, first: int = 0
    ) -> Iterator[Block]:
        """Yields the blocks of a segment, and records each block after it was processed.

        The iterator must be exhausted, else the rest is not recorded.

        Args:
            states: (B, T, D) floating, the backbone's states of the segment.
            outcomes: (B, T) int64, the tokens of the segment, -100 for one that makes no entry; None if none does.
            mask: (B, T) bool, False at padding; None for none.
            block: Positions in a block.
            first: A position at which a block begins.
        """
        queries = self._queries(states.detach())
        for part in blocks_of(states.shape[1], min(block, self.window), first):
            own = None if outcomes is None else outcomes[:, part]
            yield from self._advance(part, queries[:, part], own, None if mask is None else mask[:, part])

    def step(self, states: Tensor, outcomes: Tensor | None) -> Tensor:
        """Takes in one position of each row, none of it padding: `read` without a block.

        Args:
            states: (B, 1, D) floating, without gradients.
            outcomes: (B, 1) int64, as in `read`.

        Returns:
            The queries (B, D). The entries that they may recall lie in `keys`, number n in slot `n % window`.
        """
        queries = self._queries(states)
        if outcomes is None:
            self._wait(queries)
        else:
            for _ in self._advance(slice(0, 1), queries, outcomes, None):
                pass
        return queries[:, 0]

    def read_whole(self, states: Tensor, outcomes: Tensor | None, mask: Tensor | None) -> Block:
        """Records a segment and returns it as one block that stays valid, for training.

        Gradients flow into the queries and keys of this segment, not into older keys. Arguments as in `read`.
        """
        (block,) = self._advance(slice(0, states.shape[1]), self._queries(states), outcomes, mask, stays=True)
        return block

    def _queries(self, states: Tensor) -> Tensor:
        queries = torch.nn.functional.normalize(states.float(), dim=-1).to(states.dtype)
        if self.keys is None:
            self._start(queries)
        return queries

    def _advance(
        self, part: slice, queries: Tensor, outcomes: Tensor | None, mask: Tensor | None, stays: bool = False
    ) -> Iterator[Block]:
        """Makes the entries of one block, yields the block, and writes the entries.

        Writing changes the keys of the block, unless it `stays`.
        """
        assert self.keys is not None
        if queries.shape[1] == 1 and outcomes is None and mask is None and not stays:  # own output, as it is generated
            self._wait(queries)
            serial = self._serial(self.count)
            yield Block(part, queries, [self.keys], self.outcomes, serial, self.count[:, None], self.window)
            return
        keys, known, pending, self.has_pending = self._shift(queries, mask)
        self.pending = pending.detach()
        if outcomes is None:
            known = torch.zeros_like(known)
            outcomes = torch.zeros_like(known, dtype=torch.long)
        else:
            known = known & (outcomes >= 0)
            outcomes = outcomes.clamp(min=0)  # kernels and scatters take no -100, even where there is no entry
        rank = known.long().cumsum(1)
        made = self.count[:, None] + rank  # entries after the token of the position has been read
        stored, self.count = self.count, self.count + rank[:, -1]
        if queries.shape[1] == 1 and not stays:
            # The new entry takes the place of the one that has just left the window.
            self._write(keys, outcomes, known, made)
            yield Block(part, queries, [self.keys], self.outcomes, self._serial(self.count), made, self.window)
            return
        yield Block(
            part,
            queries,
            [self.keys.clone() if stays else self.keys, keys],
            torch.cat([self.outcomes, outcomes], dim=1),
            torch.cat([self._serial(stored), (made - 1).masked_fill(~known, -1)], dim=1),
            made,
            self.window,
        )
        self._write(keys, outcomes, known, made)

    def _wait(self, queries: Tensor) -> None:
        """Keeps the keys (B, 1, D) of a position that makes no entry of its token, until its outcome is known."""
        self.pending, self.has_pending = queries[:, -1].detach().clone(), torch.ones_like(self.has_pending)

    def _shift(self, queries: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the key of the last real position before each, whether both exist, and the new pending fields."""
        before = torch.cat([self.pending[:, None], queries[:, :-1]], dim=1)
        if mask is None:
            known = torch.ones(queries.shape[:2], dtype=torch.bool, device=queries.device)
            known[:, 0] = self.has_pending
            return before, known, queries[:, -1].clone(), torch.ones_like(self.has_pending)
        # Slot 0 of `extended` is the pending key, slot t + 1 position t.
        extended = torch.cat([self.pending[:, None], queries], dim=1)
        position = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        latest = torch.where(mask, position, 0).cummax(dim=1).values
        previous = torch.cat([latest.new_zeros(len(latest), 1), latest[:, :-1]], dim=1)
        width = queries.shape[-1]
        before = extended.gather(1, previous[..., None].expand(-1, -1, width))
        known = mask & ((previous > 0) | self.has_pending[:, None])
        last = latest[:, -1]
        pending = extended.gather(1, last[:, None, None].expand(-1, 1, width))[:, 0]
        return before, known, pending, self.has_pending | (last > 0)

    def _serial(self, stored: Tensor) -> Tensor:
        """Returns the number of the entry in each slot, (B, C), after `stored` entries; negative for none."""
        assert self.keys is not None
        newest = stored[:, None] - 1
        return newest - (newest - torch.arange(self.keys.shape[1], device=stored.device)) % self.window

    def _write(self, keys: Tensor, outcomes: Tensor, known: Tensor, made: Tensor) -> None:
        """Stores the known entries that are within the window."""
        assert self.keys is not None
        needed = min(int(self.count.max()), self.window)
        slots = self.keys.shape[1]
        if needed > slots:
            grown = min(self.window, max(64, 1 << (needed - 1).bit_length()))
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, grown - slots))
            self.outcomes = torch.nn.functional.pad(self.outcomes, (0, grown - slots))
        row, column = (known & (made > self.count[:, None] - self.window)).nonzero(as_tuple=True)
        slot = (made[row, column] - 1) % self.window
        self.keys[row, slot] = keys.detach()[row, column]
        self.outcomes[row, slot] = outcomes[row, column]

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replaces every tensor by `change(tensor)`, to reorder, repeat or move the rows."""
        if self.keys is not None:
            for name in self.tensors:
                setattr(self, name, change(getattr(self, name)))
