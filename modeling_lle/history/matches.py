"""Exact matches: the places in the text so far whose last tokens are the same as the last ones now.

Notable: the longest matches of each position count, as in compression by the longest context (PPM*, Cleary and Teahan
1997), and one that most others agree with counts for more. The entries are all earlier tokens of a window that may be far longer than the stream's, since an entry costs
five bytes; which of them match is found anew at every position, exactly and without a table of hashes. The model's own
output counts as context, but is never recalled unless asked for. Shapes: B batch, T time, C slots of the buffer, K
matches, m tokens of a text, n positions of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.available import takes_numba

ROWS = 64  # positions that the fallback compares at once


@dataclass
class Matched:
    """The longest matches of each position, all of one length, the newest of them.

    Attributes:
        lengths: (B, T, K) int64, tokens that are alike; 0 for no match.
        ages: (B, T, K) int64, how many tokens ago the match ended; 1 if it ended at the token before.
        outcomes: (B, T, K) int64, the token after each match; 0 for no match.
    """

    lengths: Tensor
    ages: Tensor
    outcomes: Tensor

    def agreement(self) -> Tensor:
        """(B, T, K) float32, the share of the matches of a position that have the same outcome; 0 for no match."""
        known = self.lengths > 0
        same = (self.outcomes[..., :, None] == self.outcomes[..., None, :]) & known[..., None, :]
        return same.sum(-1) / known.sum(-1, keepdim=True).clamp(min=1) * known

    def at(self, positions: slice) -> "Matched":
        """Those of some positions."""
        return Matched(self.lengths[:, positions], self.ages[:, positions], self.outcomes[:, positions])


class Matches:
    """A ring buffer of the last tokens of each row.

    Args:
        window: The largest age of a match, in tokens, at least 1.
        longest: Tokens of a match that are counted, at least 1.

    Attributes:
        tokens: (B, C) int32; token n of a row is in slot `n % (window + longest)`; -1 for one that was read as an
            embedding and equals none. The buffer grows by doubling.
        usable: (B, C) bool, whether the token may be recalled: not where the model generated it.
        count: (B,) int64, tokens read so far.
    """

    tensors = ("tokens", "usable", "count")

    def __init__(self, window: int, longest: int) -> None:
        if min(window, longest) < 1:
            raise ValueError(f"matches need a window and a length of at least one token, got {window} and {longest}")
        self.window, self.longest = window, longest
        self.tokens: Tensor | None = None

    @property
    def room(self) -> int:
        """The most tokens that are kept: the oldest match needs the tokens before it to be compared."""
        return self.window + self.longest

    def read(self, tokens: Tensor, usable: Tensor, mask: Tensor | None, neighbours: int) -> Matched:
        """Takes in a segment, and finds the matches of each of its positions among the tokens up to it.

        Args:
            tokens: (B, T) int64; -1 for one that equals none.
            usable: (B, T) bool, whether they may be recalled.
            mask: (B, T) bool, False at padding, which matches nothing; None for none.
            neighbours: K.
        """
        own, real = tokens.int(), torch.ones_like(usable) if mask is None else mask
        if self.tokens is None:
            self.tokens, self.usable = own[:, :0].clone(), usable[:, :0].clone()
            self.count = torch.zeros(len(own), dtype=torch.long, device=own.device)
        self._grow(int(self.count.max()) + own.shape[1])
        if takes_numba(own) and not torch.compiler.is_compiling():
            from ..kernels.matches_numba import read_matches

            state = self.tokens, self.usable, self.count
            return Matched(*read_matches(*state, own, usable, real, self.window, self.longest, neighbours))
        rows = [self._read_row(row, own[row], usable[row], real[row], neighbours) for row in range(len(own))]
        return Matched(*(torch.stack(parts) for parts in zip(*rows, strict=True)))

    def _grow(self, needed: int) -> None:
        """Makes slots for so many tokens, as far as they are kept."""
        assert self.tokens is not None
        slots, needed = self.tokens.shape[1], min(needed, self.room)
        if needed > slots:
            more = min(self.room, max(256, 1 << (needed - 1).bit_length())) - slots
            self.tokens = torch.nn.functional.pad(self.tokens, (0, more))
            self.usable = torch.nn.functional.pad(self.usable, (0, more))

    def _read_row(
        self, row: int, tokens: Tensor, usable: Tensor, real: Tensor, neighbours: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`read` of a row: lengths, ages and outcomes, (T, K) int64 each."""
        assert self.tokens is not None
        count, device = int(self.count[row]), tokens.device
        slots = torch.arange(max(0, count - self.room), count, device=device) % self.room
        text = torch.cat([self.tokens[row, slots], tokens[real]])
        may = torch.cat([self.usable[row, slots], usable[real]])
        found = torch.zeros(3, len(tokens), neighbours, dtype=torch.long, device=device)
        places, positions = torch.arange(len(slots), len(text), device=device), real.nonzero()[:, 0]
        for start in range(0, len(places), ROWS):
            part = slice(start, start + ROWS)
            found[:, positions[part]] = self._longest(text, may, places[part], neighbours)
        kept = torch.arange(max(0, len(text) - self.room), len(text), device=device)
        slots = (kept - len(slots) + count) % self.room
        self.tokens[row, slots], self.usable[row, slots] = text[kept], may[kept]
        self.count[row] += len(positions)
        return found[0], found[1], found[2]

    def _longest(self, text: Tensor, usable: Tensor, places: Tensor, neighbours: int) -> Tensor:
        """Lengths, ages and outcomes (3, n, K) int64 of the matches of n places of a text (m,), each with its end."""
        ends = torch.arange(len(text), device=text.device)
        age = places[:, None] - ends  # (n, m)
        following = (ends + 1).clamp(max=len(text) - 1)
        alike = (age >= 1) & (age <= self.window) & usable[following]
        length = torch.zeros_like(age)
        for back in range(self.longest):
            here, there = places - back, ends - back
            same = text[here.clamp(min=0), None] == text[there.clamp(min=0)]
            alike = alike & same & (there >= 0) & (text[there.clamp(min=0)] >= 0)
            if not alike.any():
                break
            length += alike
        longest = (length == length.amax(1, keepdim=True)) & (length > 0)
        best = (
            age.masked_fill(~longest, self.window + 1).topk(min(neighbours, len(text)), dim=1, largest=False).indices
        )
        lengths = length.gather(1, best) * longest.gather(1, best)
        ages, outcomes = age.gather(1, best), text[following][best].long()
        parts = [lengths, ages.masked_fill(lengths == 0, 0), outcomes.masked_fill(lengths == 0, 0)]
        return torch.stack([torch.nn.functional.pad(each, (0, neighbours - best.shape[1])) for each in parts])

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replaces every tensor by `change(tensor)`, to reorder, repeat or move the rows."""
        if self.tokens is not None:
            for name in self.tensors:
                setattr(self, name, change(getattr(self, name)))
