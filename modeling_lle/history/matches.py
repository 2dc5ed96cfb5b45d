"""Exact matches: the places in the text so far whose last tokens are the same as the last ones now.

Notable: the longest matches of each position count, as in compression by the longest context (PPM*, Cleary and Teahan
1997), and they count for more if they agree, and if the last ones were right, as in PAQ (Mahoney 2005).
The entries are all earlier tokens of a window that may be far longer than the stream's, since an entry costs five
bytes; which of them match is found anew at every position, exactly and without a table of hashes. The model's own
output counts as context, but is never recalled unless asked for. Shapes: B batch, T time, C slots of the buffer, K
matches, m tokens of a text, n positions of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.available import takes_numba

ROWS = 64  # positions that the fallback compares at once
BEFORE = 0.2  # success at the beginning of a text
KEPT = 0.9  # share of the success that stays at each position whose matches were put to the test


@dataclass
class Matched:
    """The longest matches of each position, all of one length, the newest of them.

    Attributes:
        lengths: (B, T, K) int64, tokens that are alike; 0 for no match.
        ages: (B, T, K) int64, how many tokens ago the match ended; 1 if it ended at the token before.
        outcomes: (B, T, K) int64, the token after each match; 0 for no match.
        success: (B, T) float32, how often the matches of the positions before were right: the running mean of the
            shares of them that named the next token, unless the model generated it.
    """

    lengths: Tensor
    ages: Tensor
    outcomes: Tensor
    success: Tensor

    def agreement(self) -> Tensor:
        """(B, T, K) float32, the share of the matches of a position that have the same outcome; 0 for no match."""
        known = self.lengths > 0
        same = (self.outcomes[..., :, None] == self.outcomes[..., None, :]) & known[..., None, :]
        return same.sum(-1) / known.sum(-1, keepdim=True).clamp(min=1) * known

    def at(self, positions: slice) -> "Matched":
        """Those of some positions."""
        return Matched(*(part[:, positions] for part in (self.lengths, self.ages, self.outcomes, self.success)))


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
        named: (B, K) int64, the outcomes of the matches of the last position, -1 for none.
        success: (B,) float32, as in `Matched`, at the last position.
    """

    tensors = ("tokens", "usable", "count", "named", "success")

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
            self.named = tokens.new_full((len(own), neighbours), -1)
            self.success = torch.full((len(own),), BEFORE, device=own.device)
        elif self.named.shape[1] != neighbours:
            self.named = torch.nn.functional.pad(self.named, (0, neighbours - self.named.shape[1]), value=-1)
        self._grow(int(self.count.max()) + own.shape[1])
        if takes_numba(own) and not torch.compiler.is_compiling():
            from ..kernels.matches_numba import read_matches

            state = self.tokens, self.usable, self.count, self.named, self.success
            return Matched(*read_matches(*state, own, usable, real, self.window, self.longest, neighbours, KEPT))
        rows = [self._read_row(row, own[row], usable[row], real[row], neighbours) for row in range(len(own))]
        lengths, ages, outcomes = (torch.stack(parts) for parts in zip(*rows, strict=True))
        return Matched(lengths, ages, outcomes, self._judge(lengths, outcomes, own, usable, real))

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

    def _judge(self, lengths: Tensor, outcomes: Tensor, tokens: Tensor, usable: Tensor, real: Tensor) -> Tensor:
        """The success after each position, (B, T) float32."""
        found = []
        for t in range(tokens.shape[1]):
            known, token = self.named >= 0, tokens[:, t, None]
            right = (known & (self.named == token)).sum(1) / known.sum(1).clamp(min=1)
            tested = real[:, t] & usable[:, t] & known.any(1) & (token[:, 0] >= 0)
            self.success = torch.where(tested, KEPT * self.success + (1 - KEPT) * right, self.success)
            named = outcomes[:, t].masked_fill(lengths[:, t] == 0, -1)
            self.named = torch.where(real[:, t, None], named, self.named)
            found.append(self.success)
        return torch.stack(found, dim=1)

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
