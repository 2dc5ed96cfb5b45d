"""Files of rows: read as they are written, written whole or not at all, and every fault named."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_lle.data.tables import check_output, free_names, read_table, write_lines, write_table

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ODD = "a\x0bb\x1cc\x85d\u2028e\u202ef\ufeffg 猫 🙂"


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_a_text_that_is_no_file() -> None:
    for text in ("where is my card", "a" * 100_000, "two\nlines", "nul\0", "what is in report.csv", ""):
        table = read_table(text, "t")
        assert (table.rows, table.where) == ([{"t": text}], "the text")


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.txt", f"\ufeffone\r\n{ODD}\nlast"), "t")
    assert table.texts("t") == ["one", ODD, "last"]


def test_csv_keeps_what_is_written(tmp_path: Path) -> None:
    long = "x" * 300_000
    path = write(tmp_path / "a.csv", f'id,text,note\n007,"one, ""two""\nthree",1.0\n8,NA,\n9,{long}\n')
    table = read_table(path)
    assert table.texts("text") == ['one, "two"\nthree', "NA", long]
    assert table.values("id") == ["007", "8", "9"]
    assert table.values("note") == ["1.0", "", None]
    assert read_table(write(tmp_path / "a.tsv", "text\tlabel\na, b\tc\n")).rows == [{"text": "a, b", "label": "c"}]


@pytest.mark.parametrize(
    "content", ['{"text": "a", "n": 1.50}\n\n{"text": "b", "m": [1]}', '[{"text": "a"}, {"text": "b"}]']
)
def test_json(tmp_path: Path, content: str) -> None:
    assert read_table(write(tmp_path / "a.jsonl", content)).texts("text") == ["a", "b"]


@given(rows=st.lists(st.fixed_dictionaries({"text": TEXTS, "a b": TEXTS}), min_size=1, max_size=4))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_what_is_written_is_read_again(tmp_path: Path, ending: str, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / f"a.{ending}"
    write_table(path, rows)
    assert read_table(str(path)).rows == rows
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_values_that_are_no_strings(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [{"a": None, "b": 0.5}, {"b": [{"x": "é"}], "c": True}])
    assert (tmp_path / "a.csv").read_text() == 'a,b,c\n,0.5,\n,"[{""x"": ""é""}]",true\n'


def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path) -> None:
    for ending in ("csv", "jsonl"):
        path = tmp_path / f"a.{ending}"
        write_table(path, [{"text": "old"}])
        before = path.read_bytes()
        with pytest.raises(TypeError):
            write_table(path, [{"text": "new"}, {"text": object()}])
        assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "no text in .*a.csv': it is empty"),
        ("a.csv", "text,label\n", "no text in .*a.csv': it has no rows"),
        ("a.txt", "", "it is empty"),
        ("a.jsonl", "\n", "it is empty"),
        ("a.txt", b"caf\xe9\n", r"a.txt' is not UTF-8 \(.* at byte 3\): save it as UTF-8"),
        ("a.csv", "text\na\nb,c\n", "row 1 of .* has 2 fields, its header 1: put quotation marks"),
        ("a.csv", 'text\n"a\n', "not valid CSV: unexpected end of data"),
        ("a.csv", "text,text\na,b\n", "two columns called 'text': rename one"),
        ("a.csv", "Text,label\na,b\n", "has no column 'text' .did you mean 'Text'.*; its columns are: Text, label"),
        ("a.csv", "text,label\na,b\n,c\n", "the text in row 1 of .*a.csv' is blank: remove the row"),
        ("a.csv", "label,text\na,b\nc\n", "the text in row 1 of .* is missing"),
        ("a.txt", "a\n\nb\n", "the text in row 1 of .* is blank"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}', "the text in row 1 of .* is 3, no string"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "row 1 of .* is not valid JSON"),
        ("a.jsonl", '"a"', "row 0 of .* is 'a': write one JSON object per line"),
        ("a.jsonl", '{"text": "\\ud800"}', r"row 0 of .* holds '\\ud800', which is no proper Unicode"),
        ("a.log", "a\0", "give a text file, or one whose name ends with one of .csv"),
    ],
)
def test_files_with_faults(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        read_table(path).texts("text")


def test_names_with_faults(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", "text\na\n")
    with pytest.raises(FileNotFoundError, match=r"no file .*tset.csv' .did you mean 'test.csv'"):
        read_table(str(tmp_path / "tset.csv"))
    with pytest.raises(ValueError, match="give a text file, or one whose name ends with"):
        read_table(str(tmp_path))
    with pytest.raises(ValueError, match=r"the text holds .*no proper Unicode"):
        read_table("caf\udce9")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none'; make it first"):
        check_output(tmp_path / "none" / "a.csv")
    with pytest.raises(ValueError, match=r"its name should end with one of .csv, .tsv"):
        check_output(tmp_path / "a.xls")
    with pytest.raises(ValueError, match=r"its name should end with one of .po$"):
        check_output(tmp_path / "a.csv", (".po",))
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write_table(tmp_path / "b.csv", [{"text": "a"}])


def test_json_round_trip_keeps_values(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1, "x": None, "deep": {"k": [1.5, True]}}]
    write_table(tmp_path / "a.jsonl", rows)
    assert json.loads((tmp_path / "a.jsonl").read_text()) == rows[0]


def test_texts_become_one_line_each(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.txt", ["a\nb", "", "c\r\n\nd", "e\u2028f", "g\r"])
    assert (tmp_path / "a.txt").read_bytes().decode() == "a b\n\nc d\ne\u2028f\ng \n"
    assert [row["text"] for row in read_table(str(tmp_path / "a.txt")).rows] == ["a b", "", "c d", "e\u2028f", "g "]


def test_names_of_new_columns() -> None:
    assert free_names(["label", "score"], ["text", "label"], "it") == {"label": "predicted_label", "score": "score"}
    with pytest.raises(ValueError, match="it has the columns 'a' and 'predicted_a' already: rename one"):
        free_names(["a"], ["a", "predicted_a"], "it")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_that_cannot_be_written_stays_as_it_was(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write_table(path, [{"text": "before"}])
    before = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_table(path, [{"text": "after"}, {"text": object()}])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
