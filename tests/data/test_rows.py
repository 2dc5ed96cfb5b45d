"""Rows as they are written, the same for whoever reads them, and every fault with its file and row."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from modeling_lle import HistoryBank
from modeling_lle.data import load_labelled, load_pairs, load_texts
from modeling_lle.data.rows import class_name, ending, read_lines, read_rows
from modeling_lle.data.tables import read_table
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_word_tokenizer
from tests.factories.translators import make_translator

WORDS = ["001", "010", "1e3", "true", "NA", "null", "None", "nan", "2024-01-01", "1.50", " a ", "\u00a0b"]
BOM = b"\xef\xbb\xbf"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(name: str, columns: tuple[str, str], values: list[str]) -> str:
    """The values as both columns of a file of that kind."""
    if name.endswith("l"):
        return "".join(json.dumps(dict.fromkeys(columns, value)) + "\n" for value in values)
    separator = "\t" if name.endswith("tsv") else ","
    return "\n".join(separator.join(line) for line in [columns, *zip(values, values, strict=True)])


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.tsv", "a.jsonl", "A.JsonL"])
@pytest.mark.parametrize("mark", [b"", BOM])
def test_whoever_reads_a_table_gets_what_is_written(tmp_path: Path, cache: Path, name: str, mark: bytes) -> None:
    path = write(tmp_path / name, mark + table(name.lower(), ("text", "label"), WORDS).encode())
    first = 1 if name.lower().endswith("l") else 2
    places = {"file": [str(path)] * len(WORDS), "line": list(range(first, first + len(WORDS)))}
    assert load_labelled(path).to_dict() == {"text": WORDS, "label": WORDS, **places}
    due = [{"text": word, "label": word} for word in WORDS]
    placed = [{**row, "file": str(path), "line": line} for line, row in enumerate(due, start=first)]
    assert list(load_texts(path)) == list(load_texts(path, streaming=True)) == placed
    assert list(read_rows(path)) == read_table(str(path)).rows == due
    assert read_table(str(path)).lines == places["line"]
    pairs = write(tmp_path / f"pairs{name}", mark + table(name.lower(), ("en", "de"), WORDS).encode())
    assert load_pairs(pairs, source_language="en", target_language="de").to_dict() == {
        "source": WORDS,
        "target": WORDS,
        **places,
        "file": [str(pairs)] * len(WORDS),
    }
    assert not any(file.stat().st_size for file in cache.rglob("*") if file.is_file())  # no text lies there


@pytest.mark.parametrize("name", ["a.txt", "A.TXT"])
def test_the_mark_before_a_text_file_is_no_text(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, BOM + b"one\r\n\ntwo")
    assert read_table(str(path)).rows == [{"text": "one"}, {"text": ""}, {"text": "two"}]
    due = [{"text": text, "file": str(path), "line": line} for line, text in enumerate(("one", "", "two"), start=1)]
    assert list(load_texts(path)) == list(load_texts(path, streaming=True)) == due
    for streaming in (False, True):
        document = {"text": "one\n\ntwo", "file": str(path), "line": 1}
        assert list(load_texts(path, sample_by="document", streaming=streaming)) == [document]
    assert list(read_lines(path)) == ["one", "", "two"]


def test_labels_of_json_are_called_as_json_writes_them(tmp_path: Path) -> None:
    labels = [1, True, "01", False, 0, "1", None]
    rows = [json.dumps({"text": f"t{number}", "label": label}) for number, label in enumerate(labels)]
    loaded = load_labelled(write(tmp_path / "a.jsonl", "\n".join(rows)))
    assert loaded["label"][:] == ["1", "true", "01", "false", "0", "1", None]
    assert [class_name(label) for label in (2.0, float("nan"), -3)] == ["2", None, "-3"]
    for wrong in (1.5, ["a"], {"a": 1}, float("inf")):
        with pytest.raises(ValueError, match="should be a class name"):
            class_name(wrong)


def test_columns_of_several_kinds_and_rows_without_some(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": "01", "m": [1, {}]}, {"text": "c", "day": "2024-01-01"}]
    path = write(tmp_path / "a.json", json.dumps(rows))
    for found in (load_texts(path), load_texts(path, streaming=True)):
        assert [row["text"] for row in found] == ["a", "b", "c"]
        assert [str(row.get("n")) for row in found] == ["1", "01", "None"]
        assert [row.get("day") for row in found] == [None, None, "2024-01-01"]


FAULTS: list[tuple[str, str | bytes, str]] = [
    (
        "a.csv",
        "text,label\na,b\n".encode("utf-16"),
        r"a.csv' is not UTF-8 \(it looks like utf-16: .* at byte 0\): save it as UTF-8",
    ),
    (
        "a.txt",
        "one\n".encode("utf-16"),
        r"a.txt' is not UTF-8 \(it looks like utf-16: .* at byte 0\): save it as UTF-8",
    ),
    ("a.jsonl", b'{"text": "caf\xe9"}', r"a.jsonl' is not UTF-8 \(.* at byte 13\): save it as UTF-8"),
    ("a.csv", b"text\na\ncaf\xe9\n", r"a.csv' is not UTF-8 \(.* at byte 10\): save it as UTF-8"),
    ("a.csv", "text,label\na,b\nc,d,e\n", "row 1 of .*a.csv' has 3 fields, its header 2"),
    ("a.csv", "text,text\na,b\n", "a.csv' has two columns called 'text': rename one"),
    ("a.csv", "text,,\na,b,c\n", "a.csv' has 2 columns without a name: name them"),
    ("a.csv", 'text\na\n"b', "line 3 of .*a.csv' is not valid CSV: unexpected end of data"),
    ("a.jsonl", '{"text": "a"}\n{"text": ', "row 1 of .*a.jsonl' is not valid JSON"),
    ("a.jsonl", '{"text": "a"}\n3\n', "row 1 of .*a.jsonl' is 3: write one JSON object per line"),
    ("a.json", '[{"text": "a"}, 3]', "row 1 of .*a.json' is 3"),
    ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}', r"row 1 of .*a.jsonl' holds '\\ud800', which is no proper"),
    ("a.csv.gz", "\0", r"cannot read .*a.csv.gz': unpack it, and give a text file, or one whose name ends with"),
    ("a.xls", "\0", r"cannot read .*a.xls': give a text file, or one whose name ends with one of .csv"),
]


@pytest.mark.parametrize(("name", "content", "message"), FAULTS)
def test_faults_are_named_the_same_for_whoever_reads(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        load_texts(path)
    with pytest.raises(ValueError, match=message):
        list(load_texts(path, streaming=True))
    with pytest.raises(ValueError, match=message):
        read_table(str(path))


def test_faults_that_only_some_can_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the split 'train' of .*a.parquet'"):
        load_texts(write(tmp_path / "a.parquet", "PAR"))
    mixed = write(tmp_path / "b.jsonl", '{"text": "a"}\n{"text": 3}')
    with pytest.raises(ValueError, match=r"the column 'text' of row 1 of .*b.jsonl' is 3, not text"):
        load_texts(mixed)
    with pytest.raises(
        ValueError, match=r"labels.*lable.csv' has no column .* \(is it 'lable'\?\): name the label column"
    ):
        load_labelled(write(tmp_path / "labels.lable.csv", "text,lable\na,b\n"))


def test_slices_of_few_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one line\n")
    assert load_texts(path, split="train[:80%]")["text"][:] == ["one line"]
    with pytest.raises(ValueError, match=r"no text in 'train\[80%:\]' of .*a.txt': it takes none of the 1 rows of"):
        load_texts(path, split="train[80%:]")
    with pytest.raises(ValueError, match=r"cannot slice .*a.txt' by 'train\[:80': Unrecognized"):
        load_texts(path, split="train[:80")
    with pytest.raises(ValueError, match=r"streamed rows cannot be sliced: leave out \[:1\] or streaming"):
        load_texts(path, split="train[:1]", streaming=True)
    rows = write(tmp_path / "b.csv", "text\n" + "\n".join("abcdefgh"))
    assert load_texts(rows, split="train[25%:75%]")["text"][:] == list("cdef")
    assert load_texts(rows, split="train[:2]+train[-1:]")["text"][:] == list("abh")


def test_half_of_a_character_is_refused_by_banks() -> None:
    model, tokenizer = make_language_model(), make_word_tokenizer()
    rows: list[Any] = [{"text": "a b"}, {"text": "c \ud800"}]
    with pytest.raises(ValueError, match=r"the text of row 1 holds '\\ud800', which is no proper Unicode"):
        HistoryBank.build(model, tokenizer, rows)
    with pytest.raises(ValueError, match=r"row 0 holds '\\udfff', which is no proper Unicode"):
        HistoryBank.build(model, tokenizer, [{"text": "a b", "user": "\udfff"}])
    pairs = Dataset.from_dict({"source": ["a"], "target": ["b"]}).to_list()
    with pytest.raises(ValueError, match=r"the column 'target' of row 1 holds '\\ud800'"):
        HistoryBank.build(make_translator(tokenizer), tokenizer, [*pairs, {"source": "a", "target": "\ud800"}])


def test_endings() -> None:
    endings = (".csv", ".zh-CN")
    names = {"a.csv": ".csv", "a.CSV": ".csv", "a.zh-CN": ".zh-CN", "a.zh-cn": ".zh-cn", "a": ""}
    assert {name: ending(Path(name), endings) for name in names} == names
