"""What a source holds: any text file is read, what is left out is named, and names rarely decide splits."""

import logging
from pathlib import Path

import pytest

from modeling_lle.data import load_texts, survey
from modeling_lle.data.encoding import guess_encoding


def write(folder: Path, **contents: str | bytes) -> Path:
    """Writes files; "__" in a name stands for a folder, and "_" for the dot."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def test_any_text_file_is_taken_and_others_are_named(tmp_path: Path) -> None:
    write(tmp_path, a_txt="hi\n", sub__b_md="# b\n", LICENSE="free\n", old_txt=b"caf\xe9\n", logo_png=b"\x89PNG\0\0\1")
    write(tmp_path, none_txt="", bad_csv="a,b\n1,2\n", good_csv="text,b\nx,1\n", package_json='{\n "a": 1\n}\n')
    write(tmp_path, _git__config="x", node_modules="")
    found = survey(tmp_path, "text")
    assert {file.name: file.kind for file in found.taken} == {
        **{"LICENSE": "text", "a.txt": "text", "good.csv": "csv", "package.json": "text", "sub/b.md": "text"}
    }
    assert not found.splits
    said = found.summary()
    assert said[0] == "5 files taken: 1 no ending, 1 .txt, 1 .csv, 2 others"
    for part in ("1 binary (logo.png)", "1 hidden (.git)", "1 not UTF-8 (old.txt: it looks like cp1252)"):
        assert part in said[1]
    assert "without a column 'text' (bad.csv: it has a, b)" in said[1]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.txt", "valid.txt", "test.txt"], {"train": 1, "validation": 1, "test": 1}),
        (["ptb.train.txt", "ptb.valid.txt", "readme.txt"], {"train": 1, "validation": 1}),
        (["train/a.txt", "train/b.txt", "test/a.txt"], {"train": 2, "test": 1}),
        (["train-00000-of-00002.txt", "train-00001-of-00002.txt"], {"train": 2}),
        (["train.txt", "test_a.txt", "test_b.txt"], {"train": 1, "test": 2}),
        (["add_test.txt", "a.txt", "b.txt"], {}),
        (["train.py", "test.py", "a.py", "b.py", "c.py", "d.py"], {}),  # code: most of the text is elsewhere
        (["training.md", "a.md", "b.md"], {}),
        (["config.dev.yaml", "config.test.yaml", "a.txt"], {}),
        (["test/a.txt", "b.txt"], {}),
    ],
)
def test_names_decide_splits_only_if_they_are_meant(tmp_path: Path, names: list[str], splits: dict[str, int]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("some text\n" * (2 if name.startswith("train.") else 1))
    assert {split: len(files) for split, files in survey(tmp_path).splits.items()} == splits


def test_files_of_no_split_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, train_txt="one\ntwo\n", test_txt="three\n", notes_txt="x\n")
    with caplog.at_level(logging.WARNING):
        assert load_texts(tmp_path, split="train", streaming=True)
        assert load_texts(tmp_path, split=("validation", "test"), streaming=True)
    assert [record.getMessage() for record in caplog.records] == [
        f"1 file of {str(tmp_path)!r} is left out: 1 of no split (notes.txt)"
    ]


def test_a_source_without_splits_is_one_text(tmp_path: Path) -> None:
    write(tmp_path, a_txt="one\ntwo\n", add__test_txt="three\n", table_csv="text,n\nfour,1\n")
    for options in ({}, {"split": ("test", "validation")}, {"split": "train"}):
        rows = list(load_texts(tmp_path, streaming=True, **options))  # type: ignore[arg-type]
        assert [(row["text"], row["file"], row["line"]) for row in rows] == [
            ("one", "a.txt", 1),
            ("two", "a.txt", 2),
            ("three", "add/test.txt", 1),
            ("four", "table.csv", 2),
        ]
    assert sorted(load_texts(tmp_path, cache_dir=tmp_path / "cache")["text"]) == ["four", "one", "three", "two"]
    with pytest.raises(ValueError, match=r"has no split 'test': it is one text.*Leave out the split"):
        load_texts(tmp_path / "a.txt", split="test")


def test_a_changed_file_is_read_again_and_copies_lie_in_the_given_cache(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    for text in ("one", "two"):
        path.write_text(f"{text}\n")
        assert load_texts(path, cache_dir=cache)["text"][:] == [text]
    assert any(cache.rglob("*.arrow"))


def test_a_path_that_does_not_exist_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path, texts__a_txt="x\n"))
    for missing in ("texts/b", "texts/a.md", "notes.txt", "./texst", "/no/such"):
        with pytest.raises(FileNotFoundError, match=r"there is no .* holds no '(?!.*Hub)"):
            load_texts(missing)


def test_encodings_are_guessed() -> None:
    texts = {"cp1252": "Füße, Müll", "utf-16": "abc déf", "utf-16-le": "abc def ghi", "gb18030": "我的卡在哪里"}
    texts |= {"cp1251": "\u0413\u0434\u0435 \u043c\u043e\u044f \u043a\u0430\u0440\u0442\u0430"}
    assert {name: guess_encoding(text.encode(name)) for name, text in texts.items()} == {name: name for name in texts}
    assert guess_encoding(bytes(range(256))) is None
