"""The number of rows that a data set will give, for a progress bar: known, estimated, or open.

Notable: a streamed data set seldom knows its length. Its description may hold the number of rows or of bytes, else the
shards that have been read so far tell how many rows the others have.
"""

from collections.abc import Collection, Iterable
from typing import Any

from datasets import IterableDataset


class Expected:
    """Counts the rows of a data set as they are read, and estimates how many there will be.

    Args:
        rows: The data set, which is being iterated.
        skipped: Rows before the first one that is read.
    """

    def __init__(self, rows: Iterable[Any], skipped: int = 0) -> None:
        self._rows, self._skipped = rows, skipped
        self._read = self._bytes = 0
        self.known = _known(rows, skipped)
        self._size = None if self.known is not None else _size(rows)

    def count(self, texts: Collection[str]) -> int | None:
        """Takes in the texts of rows that were read; returns the number of all rows, with those skipped, or None."""
        self._read += len(texts)
        self._bytes += sum(len(text.encode()) + 1 for text in texts) if self._size is not None else 0
        if self.known is not None or not self._read:
            return self.known
        if self._size is not None:
            return max(self._skipped + self._read, round(self._read / self._bytes * self._size))
        done, shards = _shards(self._rows)
        return round((self._skipped + self._read) / (done + 0.5) * shards) if done else None


def _known(rows: Iterable[Any], skipped: int) -> int | None:
    """Rows of a data set that knows them, and those that were skipped; a stream's description has both together."""
    if not isinstance(rows, IterableDataset):
        left = getattr(rows, "num_rows", None)
        return None if left is None else left + skipped
    split = (rows.info.splits or {}).get(str(rows.split))
    return (split.num_examples if split is not None else None) or None


def _size(rows: Iterable[Any]) -> int | None:
    """Bytes of a streamed data set as its description has them."""
    if not isinstance(rows, IterableDataset):
        return None
    split = (rows.info.splits or {}).get(str(rows.split))
    return (split.num_bytes if split is not None else rows.info.dataset_size) or None


def _shards(rows: Iterable[Any]) -> tuple[int, int]:
    """Shards that have been read completely, and all of them; 0 and 1 if that cannot be told."""
    if not isinstance(rows, IterableDataset) or (rows.num_shards or 1) < 2:
        return 0, 1
    state: Any = rows.state_dict()
    while isinstance(state, dict) and "shard_idx" not in state:
        state = state.get("examples_iterable")
    return (int(state["shard_idx"]), int(rows.num_shards)) if isinstance(state, dict) else (0, 1)
