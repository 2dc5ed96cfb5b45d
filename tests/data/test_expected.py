"""How many rows a data set will give: known, estimated from its bytes or shards, or open."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset, load_dataset

from modeling_lle.data import load_texts
from modeling_lle.data.expected import Expected

TEXTS = [f"text {number:03}" for number in range(200)]


def read(rows: object, number: int, skipped: int = 0) -> int | None:
    """What is expected after a number of rows."""
    expected, iterator = Expected(rows, skipped), iter(rows)  # type: ignore[call-overload, arg-type]
    return expected.count([next(iterator)["text"] for _ in range(number)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard in range(4):
        pq.write_table(pa.table({"text": TEXTS[shard::4]}), tmp_path / f"{shard}.parquet")
    return tmp_path


def test_rows_that_are_known() -> None:
    rows = Dataset.from_dict({"text": TEXTS})
    assert Expected(rows).known == read(rows, 5) == 200
    assert read(rows.skip(20), 5, skipped=20) == 200


def test_files_of_parquet_know_their_rows(folder: Path) -> None:
    rows = load_texts(str(folder), streaming=True)
    assert Expected(rows).known == 200
    assert read(rows.skip(20), 5, skipped=20) == 200


def test_bytes_of_files_give_an_estimate(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    rows = load_texts(str(tmp_path), streaming=True)
    assert Expected(rows).known is None
    assert read(rows, 20) == 200
    assert read(rows.skip(50), 20, skipped=50) == 200


def test_shards_give_an_estimate(folder: Path) -> None:
    rows = load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)
    assert read(rows, 20) is None  # within the first shard
    assert read(rows, 75) == 200
    assert read(rows.map(lambda row: row).skip(25), 50, skipped=25) == 200


def test_an_open_end() -> None:
    rows = IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS))
    assert Expected(rows).known is None
    assert read(rows, 20) is None
    assert Expected(TEXTS).count(TEXTS[:3]) is None
    assert Expected(TEXTS).count([]) is None
