"""Sketches: short codes of keys, with which an exact search skips most of a bank without reading its keys.

Notable: the codes give an upper bound of each score, so that a skipped entry cannot be among the nearest: the result
is that of `nearest` to the last bit. For any axes A (m, D), a key k with decoded codes c and rest r = k - c A, and a
query q with p = A q along the axes and s = q - p A across them,

    q . k = p . c + q . r    with    |q . r| = |s . r + p . A r| <= |s| |r| + |p| |A r|

The axes are the first principal components of the keys. They make A r a rounding error, and r small: the keys of a
classifier lie near as many directions as there are labels. The codes along the first half of the axes are read for all
entries, the others only for entries that these do not rule out.
Shapes: Q queries, N entries, D width, K neighbours, m axes, of which h make the first half.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..kernels.available import takes_numba
from .nearest import Parts, nearest

SHARE = 8  # dimensions for each axis of a half
LEFT = 4  # a sketch answers a query if it rules out all but one in LEFT entries; reading more singly is not faster
BLOCK = 4096  # keys that the axes are computed from, and whose rest is computed at once
FEW = 4  # queries; more of them at a time are as fast as one product with all keys
LEAST = 1 << 22  # bytes of keys: fewer of them stay in the cache of a core
PATIENCE = 128  # searches that cost about as much as making the sketch
TRIES = 16  # disabled once unanswered queries exceed answered ones by this many


@dataclass
class Sketch:
    """Sketch of N keys.

    Attributes:
        axes: (m, D) float32, orthonormal up to rounding, the first components first.
        steps: (m,) float32, value of a code of 1.
        codes: (N / CHUNK, h, CHUNK) int8, along the first axes; the last chunk is padded with 0.
        others: (N, m - h) int8, along the other axes.
        rest: (2, N) float32, |r| by the first axes and by all of them.
        error: The largest |A r|.
    """

    axes: Tensor
    steps: Tensor
    codes: Tensor
    others: Tensor
    rest: Tensor
    error: float

    @classmethod
    def of(cls, keys: Tensor) -> "Sketch":
        """Makes the sketch of keys (N, D) bfloat16, finite and of norm 1 at most, up to a rounding. Needs numba."""
        from ..kernels.nearest_numba import CHUNK

        sample, half = keys[:: -(-len(keys) // BLOCK)].float(), max(1, keys.shape[1] // SHARE)
        axes = torch.linalg.eigh(sample.T @ sample)[1].T.flip(0)[: 2 * half].contiguous()
        along = torch.cat([block.float() @ axes.T for block in keys.split(BLOCK)])
        steps = (along.abs().amax(0) / 127).clamp(min=1e-12)
        codes = (along / steps).round().to(torch.int8)
        rest, errors = [], []
        for block, own in zip(keys.split(BLOCK), codes.split(BLOCK), strict=True):
            for first in (half, len(axes)):
                wide = axes[:first].double()
                left = block.double() - (own[:, :first].double() * steps[:first].double()) @ wide
                rest.append(left.norm(dim=1).float())
                errors.append((left @ wide.T).norm(dim=1).max())
        padded = functional.pad(codes[:, :half], (0, 0, 0, -len(keys) % CHUNK))
        return cls(
            axes,
            steps,
            codes=padded.unflatten(0, (-1, CHUNK)).transpose(1, 2).contiguous(),
            others=codes[:, half:].contiguous(),
            rest=torch.stack([torch.cat(rest[::2]), torch.cat(rest[1::2])]),
            error=float(torch.stack(errors).max()),
        )

    @property
    def slack(self) -> float:
        """An upper limit of what rounding to float32 adds to a bound.

        For vectors of norm 1, a sum of D terms in 64 lanes errs by (D / 64 + 64) 2^-24 at most, a sum of m terms by
        m 2^-24, and a vector of m such sums by sqrt(m) times as much; there are fewer than 16 of these.
        """
        m = len(self.axes)
        return m**0.5 * (m + 64) * 2.0**-20

    def search(
        self, queries: Tensor, keys: Tensor, usable: Tensor, neighbours: int, most: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Searches the keys (N, D) that the sketch was made of.

        Args:
            queries, usable, neighbours: As in `nearest`.
            keys: (N, D) bfloat16.
            most: Largest number of entries whose keys are read for a query; a query that needs more is not answered.

        Returns:
            Similarity (Q, K) and index (Q, K), as `nearest` returns them, and whether a query was answered, (Q,) bool.
        """
        from ..kernels.nearest_numba import nearest_of_codes

        parts = self.axes, self.steps, self.codes, self.others, self.rest
        return nearest_of_codes(parts, self.error, self.slack, queries, keys, usable, neighbours, most)

    def bounds(self, queries: Tensor, every_axis: bool = True) -> Tensor:
        """Returns upper bounds (Q, N) float32 of cosines with queries (Q, D) float32: the definition, for tests."""
        m = len(self.axes) if every_axis else self.codes.shape[1]
        p = queries @ self.axes[:m].T
        s = queries - p @ self.axes[:m]
        codes = torch.cat([self.codes.transpose(1, 2).flatten(0, 1)[: len(self.others)], self.others], dim=1)[:, :m]
        margin = s.norm(dim=1)[:, None] * self.rest[int(every_axis)] + p.norm(dim=1)[:, None] * self.error
        return (p * self.steps[:m]) @ codes.float().T + margin + self.slack


class ExactSearch:
    """Repeated `nearest` in the same entries, with a sketch where that is faster.

    Args:
        parts, usable: As in `nearest`.
    """

    def __init__(self, parts: Parts, usable: Tensor) -> None:
        self.parts, self.usable = parts, usable
        self.sketch: Sketch | None = None
        self.searches = self.answered = self.unanswered = 0
        keys = parts[0][1] if len(parts) == 1 else None
        self.sketches = keys is not None and keys.nbytes >= LEAST and takes_numba(keys)

    def __call__(self, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """Returns the nearest entries of queries (Q, D), as `nearest` does."""
        sketch = self._sketch_for(len(queries), neighbours)
        if sketch is None:
            return nearest(queries, self.parts, self.usable, neighbours)
        keys = self.parts[0][1]
        most = len(keys) // LEFT
        similarity, index, found = sketch.search(queries, keys, self.usable, neighbours, most)
        self.answered += int(found.sum())
        if not bool(found.all()):
            self.unanswered += int((~found).sum())
            similarity[~found], index[~found] = nearest(queries[~found], self.parts, self.usable, neighbours)
        return similarity, index

    def _sketch_for(self, queries: int, neighbours: int) -> Sketch | None:
        """The sketch if it is likely to answer this number of queries faster, else None."""
        if not self.sketches or queries > FEW or neighbours > len(self.usable) // LEFT:
            return None
        self.searches += 1
        if self.searches <= PATIENCE or self.unanswered >= self.answered + TRIES:
            return None
        if self.sketch is None:
            keys = self.parts[0][1]
            self.sketches = bool(keys.isfinite().all())
            self.sketch = Sketch.of(keys) if self.sketches else None
        return self.sketch
