import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import default_data_collator

from modeling_lle.data.streams import StreamDataset, StreamIterableDataset

Item = dict[str, torch.Tensor]
sizes = {"rows": st.integers(1, 7), "segment_length": st.integers(1, 9)}
quick = settings(deadline=None, max_examples=150)


def by_row(items: Iterable[Item], rows: int) -> list[list[Item]]:
    """The items of every row, in their order."""
    items = list(items)
    return [items[row::rows] for row in range(rows)]


def assert_continues(segments: list[Item], successor: dict[int, int]) -> None:
    """Each target succeeds its input, and each segment begins with the target that ended the one before."""
    for segment in segments:
        for token, target in zip(segment["input_ids"].tolist(), segment["shift_labels"].tolist(), strict=True):
            assert target in (successor[token], -100)
    for segment, following in itertools.pairwise(segments):
        assert segment["shift_labels"][-1] == following["input_ids"][0]


@quick
@given(length=st.integers(2, 200), epoch=st.integers(0, 3), **sizes)
def test_training_reads_every_target(length: int, rows: int, segment_length: int, epoch: int) -> None:
    assume(length - 1 >= rows * segment_length)
    stream = StreamDataset(np.arange(length, dtype=np.int32), rows, segment_length, seed=5)
    stream.set_epoch(epoch)
    items = list(stream)
    assert len(items) == len(stream) == stream.segments * rows
    assert all(item["input_ids"].shape == item["shift_labels"].shape == (segment_length,) for item in items)
    assert all(set(item) == {"input_ids", "shift_labels"} for item in items)
    seen = Counter(target for item in items for target in item["shift_labels"].tolist())
    assert set(seen) == set(range(1, length))
    assert max(seen.values()) <= 2
    for segments in by_row(items, rows):
        inputs = torch.cat([segment["input_ids"] for segment in segments]).tolist()
        targets = torch.cat([segment["shift_labels"] for segment in segments]).tolist()
        assert targets == [token + 1 for token in inputs]
        # The next input is the last target; only after the text's last token the reading begins anew.
        assert all(
            following == (target if target < length - 1 else 0)
            for target, following in zip(targets, inputs[1:], strict=False)
        )


@quick
@given(length=st.integers(2, 200), **sizes)
def test_evaluation_reads_every_target_once(length: int, rows: int, segment_length: int) -> None:
    assume(length - 1 >= rows)
    stream = StreamDataset(np.arange(length), rows, segment_length, evaluation=True)
    stream.set_epoch(3)  # changes nothing
    items = list(stream)
    targets = torch.cat([item["shift_labels"] for item in items])
    assert sorted(targets[targets != -100].tolist()) == list(range(1, length))
    valid = [sum(int((segment["shift_labels"] != -100).sum()) for segment in row) for row in by_row(items, rows)]
    assert max(valid) - min(valid) <= 1
    for item in items:
        mask = item.get("attention_mask", torch.ones_like(item["input_ids"]))
        assert torch.equal(mask == 1, item["shift_labels"] != -100)
    for segments in by_row(items, rows):
        assert_continues(segments, dict(zip(range(length), range(1, length), strict=False)) | {length - 1: 0})


@pytest.mark.parametrize(("length", "masked"), [(25, False), (26, True)])
def test_only_unequal_rows_are_masked(length: int, masked: bool) -> None:
    stream = StreamDataset(np.arange(length), rows=4, segment_length=5, evaluation=True)
    assert ["attention_mask" in item for item in stream] == [False] * 4 + [masked] * 4
    for segment in range(2):
        batch = default_data_collator([stream[4 * segment + row] for row in range(4)])
        assert batch["input_ids"].dtype == batch["shift_labels"].dtype == torch.int64
        assert batch["input_ids"].shape == (4, 5 if segment == 0 else 1 + masked)


def test_epochs_cut_elsewhere_but_reproducibly() -> None:
    tokens = np.arange(1000)
    stream, again = StreamDataset(tokens, 3, 7, seed=1), StreamDataset(tokens, 3, 7, seed=1)
    starts = []
    for epoch in range(5):
        stream.set_epoch(epoch)
        starts.append(stream[0]["input_ids"][0].item())
    assert len(set(starts)) == 5
    again.set_epoch(4)
    assert torch.equal(stream[10]["input_ids"], again[10]["input_ids"])
    assert StreamDataset(tokens, 3, 7, seed=2).offset != StreamDataset(tokens, 3, 7, seed=1).offset


@quick
@given(processes=st.integers(1, 4), per_device=st.integers(1, 3), segments=st.integers(1, 5))
def test_sharded_batches_keep_their_rows(processes: int, per_device: int, segments: int) -> None:
    rows = processes * per_device
    stream = StreamDataset(np.arange(rows * segments * 4 + 1), rows, 4)
    for process in range(processes):
        sampler = BatchSampler(SequentialSampler(stream), per_device, drop_last=False)
        shard = BatchSamplerShard(sampler, processes, process)
        first = process * per_device
        expected = [[k * rows + row for row in range(first, first + per_device)] for k in range(stream.segments)]
        assert list(shard) == expected


def loader(stream: StreamDataset | StreamIterableDataset, processes: int, process: int, rows: int) -> DataLoader:
    """The loader that Accelerate makes for one of several processes."""
    return prepare_data_loader(
        DataLoader(stream, batch_size=rows // processes, collate_fn=default_data_collator),
        num_processes=processes,
        process_index=process,
        dispatch_batches=False,
    )


STREAMS = {
    "memory": lambda: StreamDataset(np.arange(100), 4, 6),
    "streamed": lambda: StreamIterableDataset([list(range(100 * k, 100 * k + 17)) for k in range(12)], 4, 6),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_two_processes_read_what_one_reads(kind: str) -> None:
    whole, left, right = (list(loader(STREAMS[kind](), *place, 4)) for place in [(1, 0), (2, 0), (2, 1)])
    assert len(whole) == len(left) == len(right) > 2
    for batch, upper, lower in zip(whole, left, right, strict=True):
        for key, value in batch.items():
            assert torch.equal(value, torch.cat([upper[key], lower[key]]))


@pytest.mark.parametrize("kind", STREAMS)
def test_resumption_by_skipping_is_exact(kind: str) -> None:
    full = loader(STREAMS[kind](), 2, 1, 4)
    full.set_epoch(2)
    resumed = loader(STREAMS[kind](), 2, 1, 4)
    resumed.set_epoch(2)
    rest = list(full)[2:]
    assert rest
    for batch, again in zip(rest, skip_first_batches(resumed, 2), strict=True):
        assert torch.equal(batch["input_ids"], again["input_ids"])


@quick
@given(lengths=st.lists(st.integers(0, 30), max_size=40), **sizes)
def test_streamed_rows_are_joined_documents(lengths: list[int], rows: int, segment_length: int) -> None:
    edges = np.cumsum([0, *lengths])
    documents = [{"input_ids": list(range(a, b))} for a, b in itertools.pairwise(edges)]
    stream = StreamIterableDataset(documents, rows, segment_length)
    try:
        items = list(stream)
    except ValueError as error:
        assert "too few" in str(error)  # noqa: PT017
        return
    assert len(items) % rows == 0
    targets = [target for item in items for target in item["shift_labels"].tolist()]
    assert len(set(targets)) == len(targets)
    starts = set(edges.tolist())
    for segments in by_row(items, rows):
        for item in segments:
            pairs = zip(item["input_ids"].tolist(), item["shift_labels"].tolist(), strict=True)
            assert all(target == token + 1 or (target in starts and token + 1 in starts) for token, target in pairs)
        for segment, following in itertools.pairwise(segments):
            assert segment["shift_labels"][-1] == following["input_ids"][0]


def test_streamed_rows_pull_from_one_iterator() -> None:
    stream = StreamIterableDataset([[1, 2, 3], [4, 5, 6], [7, 8], [9, 10]], rows=2, segment_length=2)
    rows = [item["input_ids"].tolist() for item in stream]
    assert rows == [[1, 2], [4, 5], [3, 7], [6, 9]]


def test_streamed_epoch_reaches_the_documents() -> None:
    class Shuffled(list):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    documents = Shuffled([[1, 2, 3]])
    loader(StreamIterableDataset(documents, 1, 1), 1, 0, 1).set_epoch(3)
    assert documents.epoch == 3


@pytest.mark.parametrize(
    ("tokens", "rows", "segment_length", "message"),
    [
        ([], 1, 4, "at least two tokens, got 0"),
        ([7], 1, 4, "at least two tokens, got 1"),
        (range(20), 4, 5, "20 tokens are too few for 4 rows of segments of 5 tokens, which take 21: use fewer rows"),
        (range(9), 0, 1, "rows=0"),
        (range(9), 1, 0, "segment_length=0"),
    ],
)
def test_errors(tokens: Iterable[int], rows: int, segment_length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamDataset(np.array(tokens), rows, segment_length)


def test_evaluation_errors() -> None:
    with pytest.raises(ValueError, match="4 tokens are too few for 4 rows, which take 5: use fewer rows or more text"):
        StreamDataset(np.arange(4), 4, 10, evaluation=True)
    with pytest.raises(ValueError, match=r"one-dimensional, got the shape \(2, 2\)"):
        StreamDataset(np.ones((2, 2), dtype=int), 1, 1)


def test_streamed_errors() -> None:
    with pytest.raises(ValueError, match="hold 5 tokens in all, too few for 2 rows of segments of 3 tokens"):
        list(StreamIterableDataset([[1, 2], [3, 4, 5]], 2, 3))
    with pytest.raises(ValueError, match="hold 0 tokens"):
        list(StreamIterableDataset([], 1, 1))
    with pytest.raises(TypeError, match="not an iterator"):
        StreamIterableDataset(iter([[1, 2]]), 1, 1)
    with pytest.raises(ValueError, match="dataloader_num_workers"):
        list(DataLoader(StreamIterableDataset([[1, 2, 3]], 1, 1), num_workers=2))
