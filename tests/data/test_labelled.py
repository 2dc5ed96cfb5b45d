import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lle.data import check_labelled, split_out_of_scope
from modeling_lle.data import labelled as module

ROWS = {"text": ["where is my card", "wo ist meine Karte?", "bye"], "label": ["card", "card", "goodbye"]}
CLINC = {
    "oos_val": [["what is love", "oos"]],
    "val": [["send cash", "transfer"]],
    "train": [["pay bob", "transfer"], ["say it in german", "translate"]],
    "oos_train": [["why", "oos"]],
    "test": [["hola", "translate"]],
    "oos_test": [],
}
STRANGE = "".join(map(chr, range(32))) + "\x7f\x85\u200b\u202e  שלום 中文 🙂 "


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from the Hub or from caches of earlier runs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes a file, a value other than a text as JSON."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return write


def load_labelled(source: Any, **options: Any) -> Dataset:
    """Texts and labels; where they come from has a test of its own."""
    loaded = module.load_labelled(source, **options)
    assert set(loaded.column_names) - {"text", "label"} <= {"file", "line", "row_in_file"}
    return loaded.select_columns(["text", "label"])


def table(**columns: list) -> Dataset:
    return Dataset.from_dict(columns)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_files(tmp_path: Path, suffix: str) -> None:
    data = Dataset.from_dict({"id": [7, 8, 9], "category": ROWS["label"], "text": ROWS["text"]})
    path = tmp_path / f"banking.train.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(list(data)))
    else:
        write = {"csv": data.to_csv, "tsv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}[suffix]
        write(path, **({"sep": "\t"} if suffix == "tsv" else {}))
    for source in (path, str(tmp_path), f"{tmp_path}/*", {"train": path}):
        loaded = load_labelled(source, split="train")
        assert loaded.to_dict() == ROWS
        assert loaded.features == {"text": Value("string"), "label": Value("string")}
    assert load_labelled(path, split="train[1:]").to_dict() == {key: rows[1:] for key, rows in ROWS.items()}


@pytest.mark.parametrize("text", ["text", "utterance", "sentence", "query", "Text"])
@pytest.mark.parametrize("label", ["label", "intent", "category", "labels", "Category"])
def test_usual_names_of_columns(text: str, label: str) -> None:
    data = table(**{"other": [1, 2, 3], label: ROWS["label"], text: ROWS["text"]})
    assert load_labelled(data).to_dict() == ROWS


def test_columns_that_are_given() -> None:
    data = table(text=["a"], query=["b"], label=["x"], intent=["y"])
    assert load_labelled(data, text_column="query", label_column="intent")[0] == {"text": "b", "label": "y"}
    with pytest.raises(ValueError, match="may have its text in text or query: choose with text_column"):
        load_labelled(data, label_column="intent")
    with pytest.raises(ValueError, match="may have its label in label or intent: choose with label_column"):
        load_labelled(data, text_column="text")
    with pytest.raises(ValueError, match=r"no column 'querry' .did you mean 'query'"):
        load_labelled(data, text_column="querry")
    # A column of texts is no candidate for the labels.
    assert load_labelled(table(category=["a"], label=["x"]), text_column="category")["label"][:] == ["x"]
    with pytest.raises(ValueError, match=r"no column text, .* or query: name the text column with"):
        load_labelled(table(body=["a"], label=["x"]))
    with pytest.raises(ValueError, match=r"no column label, .*with label_column; its columns are: text, klass"):
        load_labelled(table(text=["a"], klass=["x"]))


def test_classes_become_their_names() -> None:
    classes = ClassLabel(names=["oos", "card"])
    single = Dataset.from_dict({"text": ["a", "b"], "intent": [1, -1]}, Features(text=Value("string"), intent=classes))
    assert load_labelled(single)["label"][:] == ["card", None]
    features = Features(text=Value("string"), labels=List(classes))
    several = Dataset.from_dict({"text": ["a", "b"], "labels": [[1, 0], []]}, features)
    assert load_labelled(several.with_format("numpy"))["label"][:] == [["card", "oos"], []]
    assert load_labelled(DatasetDict({"test": several}), split="test").features["label"] == List(Value("string"))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, None, 3], ["1", None, "3"]),
        ([True, False, None], ["true", "false", None]),
        ([[1], [2, 3]], [["1"], ["2", "3"]]),
    ],
)
def test_other_labels_become_names(labels: list, names: list) -> None:
    assert load_labelled(table(text=["a"] * len(labels), label=labels))["label"][:] == names


def test_words_and_holes_of_a_table(write: Callable) -> None:
    path = write("data.csv", "text,label\nnull,None\nNA,NA\nx,\n")
    assert load_labelled(path).to_dict() == {"text": ["null", "NA", "x"], "label": ["None", "NA", None]}
    assert load_labelled(write("whole.csv", "text,label\na,1\nb,\n"))["label"][:] == ["1", None]


def test_numbers(write: Callable) -> None:
    path = write("data.csv", "text,label\na,1.5\nb,2\nc,\n")
    loaded = load_labelled(path, numbers=True)
    assert loaded["label"][:] == [1.5, 2.0, None]
    assert loaded.features["label"] == Value("float64")
    with pytest.raises(ValueError, match=r"label in row 0 of .* is 1.5: for regression targets, give numbers=True"):
        load_labelled(table(text=["a"], label=[1.5]))
    with pytest.raises(ValueError, match="label in row 1 of the data set is 'much': with numbers=True, it should"):
        load_labelled(table(text=["a", "b"], label=["3", "much"]), numbers=True)
    with pytest.raises(ValueError, match="leave out out_of_scope='oos'"):
        load_labelled(path, numbers=True, out_of_scope="oos")
    classes = Features(text=Value("string"), label=ClassLabel(names=["no", "yes"]))
    with pytest.raises(ValueError, match="are classes, not numbers: leave out numbers=True"):
        load_labelled(Dataset.from_dict({"text": ["a"], "label": [1]}, classes), numbers=True)


@pytest.mark.parametrize("split", ["train", "training"])
def test_json_of_splits(write: Callable, split: str) -> None:
    path = write("data_full.json", CLINC)
    for source in (path, path.parent, {"train": path}):
        loaded = load_labelled(source, split=split)
        assert list(zip(loaded["text"], loaded["label"], strict=True)) == [
            ("pay bob", "transfer"),
            ("say it in german", "translate"),
            ("why", "oos"),
        ]
    assert load_labelled(path, split="valid")["text"][:] == ["send cash", "what is love"]
    assert load_labelled(path, split="dev", out_of_scope="none")["label"][:] == ["transfer", "none"]
    assert load_labelled(path, split="test").num_rows == 1
    with pytest.raises(ValueError, match="no split 'extra'; it has: validation, train, test"):
        load_labelled(path, split="extra")
    with pytest.raises(ValueError, match="several splits"):
        load_labelled(path)
    with pytest.raises(ValueError, match="has no column 'utterance'; its columns are: text, label"):
        load_labelled(path, split="train", text_column="utterance")
    write("other.csv", "text,label\na,b\n")
    with pytest.raises(ValueError, match=r"give one file, such as .*data_full.json"):
        load_labelled(path.parent, split="train")


def test_json_of_splits_with_several_labels(write: Callable) -> None:
    path = write("data.json", {"train": [["a", ["x", "y"]]], "oos_train": [["b", "oos"], ["c", ["oos"]]]})
    with pytest.raises(ValueError, match=r"label in row 0 of .* is a list, others are not"):
        load_labelled(path)
    path = write("data.json", {"train": [["a", ["x", "y"]]], "oos_train": [["c", ["oos"]]]})
    assert load_labelled(path)["label"][:] == [["x", "y"], ["oos"]]


def test_other_json_is_left_to_datasets(write: Callable) -> None:
    path = write("data.jsonl", '{"labels": [["no pair"]], "text": "a"}\n')
    with pytest.raises(ValueError, match=r"label in row 0 of .*: it should be a class name, or a list of class names"):
        load_labelled(path)
    assert load_labelled(write("rows.json", [{"labels": ["x"], "text": "a"}]))["label"][:] == [["x"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": [["a", "x"], ["b', "is not valid JSON, perhaps truncated"),
        ({"train": [["a", "x"], ["b"]]}, r"row 1 of 'train' in .* should be \[text, label\], not \['b'\]"),
        ({"train": [["a", "x"]], "test": {"a": "x"}}, "'test' of .* should be a list of .text, label., not"),
        ({"train": [["a", "x"], [5, "x"]]}, "the text in row 1 of .* is 5, not a string"),
        ({"train": [["a", {"x": 1}]]}, "the label in row 0 of .* it should be a class name"),
        ({"train": [["a\ud800", "x"]]}, "which is not valid Unicode: surrogates not allowed"),
        ({"test": [["a", "x"]], "train": []}, "there is no text in .*: it has no rows"),
    ],
)
def test_broken_json_of_splits(write: Callable, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_labelled(write("data.json", content), split="train")


@pytest.mark.parametrize("name", ["data.csv", "data.json", "splits.json"])
def test_texts_pass_untouched(write: Callable, name: str) -> None:
    quoted = '"' + STRANGE.replace('"', '""') + '"'
    content = {
        "data.csv": f"text,label\n{quoted},x\n",
        "data.json": [{"text": STRANGE, "label": "x"}],
        "splits.json": {"train": [[STRANGE, "x"]]},
    }
    loaded = load_labelled(write(name, content[name]))
    assert loaded.to_dict() == {"text": [STRANGE], "label": ["x"]}
    assert check_labelled(loaded) == []


def test_errors(write: Callable) -> None:
    with pytest.raises(FileNotFoundError, match="and the Hub does not provide it"):
        load_labelled("clinc/clinc_oos", name="plus", split="train")
    with pytest.raises(ValueError, match=r"the text in row 1 of .* is 5, not a string"):
        load_labelled(write("data.json", [{"text": "a", "label": "x"}, {"text": 5, "label": "x"}]))
    with pytest.raises(ValueError, match="no split 'dev'; it has: train"):
        load_labelled(DatasetDict({"train": table(**ROWS)}), split="dev")
    with pytest.raises(ValueError, match="there is no text in the data set: it has no rows"):
        load_labelled(table(text=[], label=[]))
    with pytest.raises(ValueError, match="its files have no rows"):
        load_labelled(write("header.csv", "text,label\n"))
    with pytest.raises(TypeError, match="loaded into memory first"):
        load_labelled(table(**ROWS).to_iterable_dataset())


def test_out_of_scope_that_no_row_has(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_labelled(table(**ROWS), out_of_scope="goodbye")
        assert not caplog.records
        load_labelled(table(**ROWS), out_of_scope="oos")
    assert "no row of the data set has the out_of_scope label 'oos'" in caplog.text


def test_split_out_of_scope() -> None:
    data = table(text=["a", "b", "c", "d"], label=["x", "oos", None, "oos"])
    inside, outside = split_out_of_scope(data)
    assert (inside["text"][:], outside["text"][:]) == (["a", "c"], ["b", "d"])
    inside, outside = split_out_of_scope(data, "x")
    assert (inside["text"][:], outside["text"][:]) == (["b", "c", "d"], ["a"])
    assert split_out_of_scope(data, "y")[1].num_rows == 0
    inside, outside = split_out_of_scope(table(text=["a", "b"], label=[["x", "y"], ["oos"]]))
    assert (inside["text"][:], outside["text"][:]) == (["a"], ["b"])
    with pytest.raises(ValueError, match="class indices, not names: load the data set with load_labelled"):
        split_out_of_scope(table(text=["a"], label=[1]))


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        (["a", ""], ["x", "x"], "row 1: the text is empty"),
        (["a", " \t\u3000\n"], ["x", "x"], "row 1: the text is blank"),
        (["a", None], ["x", "x"], "row 1: the text is missing"),
        ([1, 2], ["x", "x"], "row 0: the text is 1, not a string\n  row 1"),
        (["a", "b"], ["x", None], "row 1: the label is missing"),
        (["a", "b"], [" ", "x"], "row 0: the label is missing"),
        (["a", "b"], [["x"], ["x", None]], r"row 1: the label is \['x', None\], not a class name"),
        (["a", "b"], [["x"], None], "row 1: the label is missing"),
        (["a", "b"], [["0", "1"], ["0", "0"]], "row 1: the labels name '0' twice"),
        (["a", "b"], [1.0, float("inf")], "row 1: the label is inf"),
        (["a", "b", "a", "a"], list("xxyx"), "rows 0, 2, 3: the text 'a' is 'x' in rows 0, 3 but 'y' in row 2"),
        (["a", "a"], [["x", "y"], ["x"]], r"rows 0, 1: the text 'a' is \['x', 'y'\] in row 0 but \['x'\] in row 1"),
        ([""] * 12, ["x"] * 12, "row 9: the text is empty\n  and 2 more\n"),
    ],
)
def test_bad_examples(text: list, label: list, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_labelled(table(text=text, label=label), where="'a.csv'")
    assert str(caught.value).startswith("'a.csv' has bad examples (rows are counted from 0):\n")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (["a", "a", "a "], ["x", "x", "y"]),
        (["a", "a"], [["x", "y"], ["y", "x"]]),
        (["a", "b"], [[], ["x"]]),
        (["a", "a"], [1.0, 2.0]),
        (["\x00", "\u200b"], ["x", "x"]),
    ],
)
def test_good_examples(text: list, label: list) -> None:
    assert check_labelled(table(text=text, label=label)) == []


def test_wrong_tables() -> None:
    with pytest.raises(ValueError, match="the data set has no rows: there is nothing to learn from"):
        check_labelled(table(text=[], label=[]))
    with pytest.raises(ValueError, match="no column 'label' and no column 'text' among a: load the data set with"):
        check_labelled(table(a=["x"]))
    with pytest.raises(ValueError, match="class indices, not names"):
        check_labelled(table(text=["a"], label=[3]))


def test_bad_examples_can_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    data = table(text=["a", "", "b", "a", "c", "a"], label=["x", "x", None, "y", "x", "x"])
    with caplog.at_level(logging.WARNING):
        bad = check_labelled(data, refuse=False)
    assert bad == [0, 1, 2, 3, 5]
    assert "row 1: the text is empty" in caplog.text
    assert check_labelled(data.select([row for row in range(len(data)) if row not in bad])) == []


def test_classes_with_one_example_are_only_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert check_labelled(table(text=["a", "b"], label=["x", "x"])) == []
        assert not caplog.records
        assert check_labelled(table(**ROWS)) == []
    assert [record.getMessage() for record in caplog.records] == [
        "1 of the 2 classes of the data set have a single example: 'goodbye'"
    ]
    caplog.clear()
    check_labelled(table(text=[str(i) for i in range(14)], label=[[str(i), "all"] for i in range(14)]))
    assert "14 of the 15 classes" in caplog.text
    assert "'9' and 4 more" in caplog.text


LABEL = st.sampled_from(["x", "y", "", None])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", " ", None]), LABEL), min_size=1, max_size=12))
def test_what_remains_is_good(rows: list[tuple[str | None, str | None]]) -> None:
    texts, labels = zip(*rows, strict=True)
    features = Features(text=Value("string"), label=Value("string"))
    data = Dataset.from_dict({"text": list(texts), "label": list(labels)}, features)
    bad = check_labelled(data, refuse=False)
    if len(bad) < len(rows):
        assert check_labelled(data.select([row for row in range(len(rows)) if row not in bad])) == []
    complete = [bool(text and text.strip() and label) for text, label in rows]
    for row, (text, label) in enumerate(rows):
        others = {other for other, fine in zip(rows, complete, strict=True) if fine and other[0] == text}
        assert (row in bad) == (not complete[row] or others != {(text, label)})


def test_a_folder_of_tables_is_one_table_whose_rows_say_their_file_and_line(write: Callable) -> None:
    folder = write("b.jsonl", '{"text": "x", "label": "l"}\n').parent
    write("a.csv", "text,label\ny,l\n\nz,m\n")
    write("notes.md", "about")
    found = [(row["text"], row["file"], row["line"]) for row in module.load_labelled(folder)]
    assert found == [("y", "a.csv", 2), ("z", "a.csv", 4), ("x", "b.jsonl", 1)]
