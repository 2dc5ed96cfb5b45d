import itertools
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from modeling_lle.data import StreamIterableDataset
from modeling_lle.data.text import TextTokens, collect, load_texts, tokenize
from modeling_lle.tokenization import LLETokenizer

LINES = ["the cat sat", "", "on the mat\x0bagain"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from the Hub or from caches of earlier runs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, text in {"train": "\n".join(LINES) + "\n", "valid": "a\n", "test": "b\nc"}.items():
        (tmp_path / f"ptb.{split}.txt").write_text(text)
    (tmp_path / "readme.txt").write_text("about\n")
    return tmp_path


def words() -> LLETokenizer:
    return LLETokenizer.train(LINES, kind="word")


@pytest.mark.parametrize("split", ["validation", "valid", "dev"])
def test_folder_of_splits(folder: Path, split: str) -> None:
    assert load_texts(folder, split=split)["text"][:] == ["a"]
    assert load_texts(str(folder), split="train")["text"][:] == LINES
    assert load_texts(folder, split="test[:1]")["text"][:] == ["b"]
    assert load_texts(folder / "ptb.test.txt")["text"][:] == ["b", "c"]
    assert load_texts(f"{folder}/*t.txt", split="test")["text"][:] == ["b", "c"]


def test_documents(folder: Path) -> None:
    assert load_texts(folder, split="test", sample_by="document")["text"][:] == ["b\nc"]


def test_streaming(folder: Path) -> None:
    rows = load_texts(folder, split="train", streaming=True)
    assert isinstance(rows, IterableDataset)
    encoded = tokenize(rows, words())
    assert isinstance(encoded, IterableDataset)
    joined = collect(tokenize(load_texts(folder, split="train"), words())).ids
    items = list(StreamIterableDataset(encoded, rows=1, segment_length=4))
    assert np.concatenate([item["input_ids"] for item in items]).tolist() == joined[: 4 * len(items)].tolist()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    rows = [{"body": "one, two", "label": 1}, {"body": "three\nfour", "label": 2}]
    data = Dataset.from_list(rows)
    path = tmp_path / f"data.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        options = {"sep": "\t"} if suffix == "tsv" else {}
        write = {"csv": data.to_csv, "tsv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}[suffix]
        write(path, **options)
    loaded = load_texts(path, text_column="body")
    assert loaded["body"][:] == ["one, two", "three\nfour"]
    with pytest.raises(ValueError, match=r"no column 'bod' .did you mean 'body'.*its columns are: body, label"):
        load_texts(path, text_column="bod")
    with pytest.raises(ValueError, match=r"'label' of row 0 of .* is 1, not text"):
        load_texts(path if suffix not in ("csv", "tsv") else data, text_column="label")


def test_words_that_pandas_takes_for_missing_are_text(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,other\nnull,1\nNA,2\n,3\n")
    assert load_texts(tmp_path / "data.csv")["text"][:] == ["null", "NA", None]


def test_mapping_of_splits(folder: Path) -> None:
    source = {"train": str(folder / "readme.txt"), "valid": [folder / "ptb.test.txt", folder / "ptb.valid.txt"]}
    assert load_texts(source, split="train")["text"][:] == ["about"]
    assert load_texts(source, split="validation")["text"][:] == ["b", "c", "a"]


def test_in_memory() -> None:
    data = Dataset.from_dict({"text": LINES})
    assert load_texts(data) is data
    splits = DatasetDict({"train": data, "validation": data.select([0])})
    assert load_texts(splits, split="valid").num_rows == 1
    with pytest.raises(ValueError, match=r"no split 'train\[:1\]'; it has: train, validation"):
        load_texts(splits, split="train[:1]")
    with pytest.raises(ValueError, match="no splits, so 'test'"):
        load_texts(data, split="test")


def test_wrong_paths(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no 'ptb.tset.txt'; near names there: ptb.test.txt"):
        load_texts(folder / "ptb.tset.txt")
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*/\*.xml'"):
        load_texts(f"{folder}/*.xml")
    with pytest.raises(FileNotFoundError, match=r"there is no 'no_such/data': .* and the Hub does not provide it"):
        load_texts("no_such/data", split="train")
    (folder / "data.bin").write_bytes(b"x\0")
    with pytest.raises(ValueError, match=r"give a text file, or one whose name ends with one of .csv"):
        load_texts(folder / "data.bin")


def test_wrong_splits(folder: Path) -> None:
    with pytest.raises(ValueError, match="no split 'dev2'; it has: test, train, validation"):
        load_texts(folder, split="dev2")
    with pytest.raises(ValueError, match="several splits, name one of them: test, train, validation"):
        load_texts(folder)


@pytest.mark.parametrize(
    ("name", "content"), [("empty.txt", ""), ("empty.csv", ""), ("header.csv", "text,label\n"), ("empty.jsonl", "")]
)
def test_empty_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="there is no text"):
        load_texts(tmp_path / name)
    with pytest.raises(ValueError, match="there is no text"):
        load_texts(Dataset.from_dict({"text": []}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\na,b\na,b,c\n", "row 1 of .*data.csv' has 3 fields, its header 2: put quotation marks"),
        (b"text,label\nyes, please,a\nno, thanks,b\n", "row 0 of .* has 3 fields, its header 2: put quotation marks"),
        (
            "text\né".encode("latin1"),
            "data.csv' is not UTF-8 .it looks like cp1252: unexpected end of data at byte 5.: save",
        ),
    ],
)
def test_broken_tables(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_texts(tmp_path / "data.csv")


def test_rows_end_with_one_eos_and_are_counted() -> None:
    data = Dataset.from_dict({"text": ["the cat", "sat\n", "", "on\nthe <eos> mäh\n\n"], "other": range(4)})
    tokenizer = words()
    encoded = tokenize(data, tokenizer)
    eos, unk = tokenizer.eos_token_id, tokenizer.unk_token_id
    the, cat, sat, on = tokenizer.convert_tokens_to_ids(["the", "cat", "sat", "on"])
    expected = [[the, cat, eos], [sat, eos], [eos], [on, eos, the, eos, unk, eos, eos]]
    assert encoded.column_names == ["input_ids", "words", "bytes"]
    assert encoded["input_ids"][:] == expected
    assert encoded["words"][:] == [3, 2, 1, 7]
    assert encoded["bytes"][:] == [8, 4, 1, len("on\nthe <eos> mäh\n\n".encode())]
    tokens = collect(encoded, start=eos)
    assert tokens.ids.dtype == np.int32
    assert tokens.ids.tolist() == [eos, *itertools.chain(*expected)]
    assert (tokens.words, tokens.bytes) == (13, sum(encoded["bytes"]))
    assert collect(encoded.select([2, 0])).ids.tolist() == expected[2] + expected[0]


def test_names_of_special_tokens_in_a_text_are_text() -> None:
    tokenizer = LLETokenizer.train(["some text"], vocab_size=300)
    ids = tokenize(Dataset.from_dict({"text": ["a<eos>b<pad>"]}), tokenizer)["input_ids"][0]
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids) == "a<eos>b<pad><eos>"


def test_several_processes_encode_the_same() -> None:
    data = Dataset.from_dict({"text": LINES * 20})
    one, two = tokenize(data, words()), tokenize(data, words(), num_proc=2)
    assert one["input_ids"][:] == two["input_ids"][:]


def test_missing_texts_and_steps() -> None:
    data = Dataset.from_dict({"text": ["a", None]})
    with pytest.raises(ValueError, match="row 1 has no text: filter"):
        tokenize(data, words())
    with pytest.raises(ValueError, match="call tokenize first"):
        collect(data)
    with pytest.raises(TypeError, match="StreamIterableDataset"):
        collect(data.to_iterable_dataset())
    tokenizer = words()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="needs an eos_token"):
        tokenize(data, tokenizer)


def test_vocabulary_must_fit() -> None:
    tokens = TextTokens(np.array([0, 11]), words=1, bytes=1)
    tokens.check_vocabulary(12)
    with pytest.raises(ValueError, match="vocabulary of at least 12 types, the model has 11"):
        tokens.check_vocabulary(11)
