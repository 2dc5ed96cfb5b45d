"""Continuous streams: row r of a batch continues row r of the batch before.

Notable: items are ordered by (segment, row), so a sequential sampler and Accelerate's sharding keep each row in its
place, and skipping batches resumes exactly. With b rows per device on n devices, a stream has rows = b * n, and device
p reads the rows from p * b to (p + 1) * b. Shapes: T tokens of a segment.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

IGNORED = -100


class StreamDataset(Dataset):
    """A text in memory, read by `rows` readers that start at equal distances.

    Item i is segment i // rows of row i % rows: `input_ids` (T,) and `shift_labels` (T,), the next tokens, int64.

    In training all segments have the same length, and each epoch reads every target: the last segment of a row runs on
    into the next row, that of the last row into the beginning of the text. Each epoch starts at another offset, given
    by seed and epoch, so truncated backpropagation cuts at other places.

    In evaluation every target is read exactly once: the last segment is shorter; if rows differ in length, it has an
    `attention_mask` (T,), and one ignored label ends the short rows.

    Args:
        tokens: Token ids, one-dimensional, integer.
        rows: Number of rows over all devices.
        segment_length: T.
        evaluation: Whether to read for evaluation.
        seed: Seed of the offsets of training epochs.
    """

    def __init__(
        self, tokens: np.ndarray, rows: int, segment_length: int, *, evaluation: bool = False, seed: int = 0
    ) -> None:
        _check_sizes(rows, segment_length)
        if tokens.ndim != 1:
            raise ValueError(f"tokens must be one-dimensional, got the shape {tokens.shape}")
        self.tokens = tokens
        self.rows = rows
        self.segment_length = segment_length
        self.evaluation = evaluation
        self.seed = seed
        self.targets = len(tokens) - 1
        self._check_length()
        self.borders = [row * self.targets // rows for row in range(rows + 1)]
        self.row_length = -(-self.targets // rows)
        self.segments = -(-self.row_length // segment_length)
        self.set_epoch(0)

    def _check_length(self) -> None:
        if self.targets < 1:
            raise ValueError(f"a stream needs at least two tokens, got {len(self.tokens)}")
        least = self.rows * (1 if self.evaluation else self.segment_length)
        if self.targets < least:
            remedy = (
                "use fewer rows"
                + ("" if self.evaluation else " (a smaller batch), shorter segments")
                + " or more text"
            )
            raise ValueError(
                f"{len(self.tokens)} tokens are too few for {self.rows} rows"
                + ("" if self.evaluation else f" of segments of {self.segment_length} tokens")
                + f", which take {least + 1}: {remedy}"
            )

    def set_epoch(self, epoch: int) -> None:
        """Sets the offset of an epoch; evaluation always starts at 0."""
        self.offset = 0 if self.evaluation else int(np.random.default_rng((self.seed, epoch)).integers(self.targets))

    def __len__(self) -> int:
        return self.segments * self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        segment, row = divmod(index, self.rows)
        begin = segment * self.segment_length
        length = self.segment_length
        if self.evaluation:
            length = min(length, self.row_length - begin)
        positions = self.borders[row] + begin + np.arange(length)
        places = (self.offset + positions) % self.targets
        item = {
            "input_ids": torch.from_numpy(self.tokens[places].astype(np.int64)),
            "shift_labels": torch.from_numpy(self.tokens[places + 1].astype(np.int64)),
        }
        if self.evaluation and segment == self.segments - 1 and self.targets % self.rows:
            valid = torch.from_numpy(positions < self.borders[row + 1])
            item["shift_labels"][~valid] = IGNORED
            item["attention_mask"] = valid.long()
        return item


class StreamIterableDataset(IterableDataset):
    """Documents that do not fit in memory, read by `rows` readers for training.

    A row that runs out of tokens takes the next document of the shared iterator; items and order are as in
    `StreamDataset`. The epoch ends when a row cannot fill its segment.

    Args:
        documents: Token ids, or mappings with `input_ids`: a list, or streamed rows of `tokenize`, iterated once per
            epoch; their `set_epoch`, if any, is called.
        rows: Number of rows over all devices.
        segment_length: Length T of a segment.
    """

    def __init__(self, documents: Iterable, rows: int, segment_length: int) -> None:
        _check_sizes(rows, segment_length)
        if isinstance(documents, Iterator):
            raise TypeError("documents must be iterable once per epoch: give a list or a data set, not an iterator")
        self.documents = documents
        self.rows = rows
        self.segment_length = segment_length

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch to the documents, for shuffling."""
        if hasattr(self.documents, "set_epoch"):
            self.documents.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError("several workers would repeat the stream: set dataloader_num_workers to 0 or 1")
        documents = iter(self.documents)
        buffers = [np.empty(0, dtype=np.int64)] * self.rows
        segments = 0
        while True:
            for row, buffer in enumerate(buffers):
                buffers[row] = self._fill(buffer, documents)
            if any(len(buffer) <= self.segment_length for buffer in buffers):
                break
            for row, buffer in enumerate(buffers):
                piece = torch.from_numpy(buffer[: self.segment_length + 1])
                buffers[row] = buffer[self.segment_length :]
                yield {"input_ids": piece[:-1].clone(), "shift_labels": piece[1:].clone()}
            segments += 1
        if segments == 0:
            raise ValueError(
                f"the documents hold {sum(map(len, buffers))} tokens in all, too few for {self.rows} rows of segments "
                f"of {self.segment_length} tokens: use fewer rows (a smaller batch), shorter segments or more text"
            )

    def _fill(self, buffer: np.ndarray, documents: Iterator) -> np.ndarray:
        """Appends documents to `buffer` until it holds a segment and its last target, or none are left."""
        parts = [buffer]
        size = len(buffer)
        while size <= self.segment_length:
            document = next(documents, None)
            if document is None:
                break
            ids = np.asarray(document["input_ids"] if isinstance(document, dict) else document, dtype=np.int64)
            parts.append(ids)
            size += len(ids)
        return np.concatenate(parts)


def _check_sizes(rows: int, segment_length: int) -> None:
    if rows < 1:
        raise ValueError(f"a stream needs at least one row, got rows={rows}")
    if segment_length < 1:
        raise ValueError(f"a segment has at least one token, got segment_length={segment_length}")
