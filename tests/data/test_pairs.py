"""Sentence pairs: every form that they come in gives the same table, and what lacks a side is named."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict, Features, Translation, Value

from modeling_lle.data import load_pairs
from modeling_lle.data.pairs import match_language

PAIRS = {
    "source": ["Good morning", "  two, spaces\u2028 and 7 ", "007", '"NA"'],
    "target": ["Guten Morgen", "zwei,\x0bLeer\x85zeichen", "null", "n/a"],
}
Write = Callable[[str, Any], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from the Hub or from caches of earlier runs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file: bytes or a text as they are, another value as JSON."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.fixture
def folder(write: Write, tmp_path: Path) -> Path:
    """A folder of lines in three languages."""
    lines = {"train": ["a", "b"], "val": ["c"], "test_2016_flickr": ["d"], "test_2017_flickr": ["e", "f"]}
    for stem, texts in lines.items():
        for language in ("en", "de", "fr"):
            write(f"{stem}.{language}", "".join(f"{text} {language}\n" for text in texts))
    write("README.md", "about")
    return tmp_path


def load(source: Any, **options: Any) -> Dataset:
    """Sentences only; where they come from has a test of its own."""
    loaded = load_pairs(source, **{"source_language": "en", "target_language": "de", **options})
    assert set(loaded.column_names) - {"source", "target"} <= {"file", "line", "row_in_file"}
    return loaded.select_columns(["source", "target"])


def texts(*values: str, language: str) -> list[str]:
    return [f"{value} {language}" for value in values]


@pytest.mark.parametrize(
    ("split", "expected"), [("train", "ab"), ("validation", "c"), ("val", "c"), ("dev", "c"), ("test", "def")]
)
def test_lines_by_language(folder: Path, split: str, expected: str) -> None:
    for source in (folder, str(folder), f"{folder}/*"):
        loaded = load(source, split=split)
        assert loaded.to_dict() == {
            "source": texts(*expected, language="en"),
            "target": texts(*expected, language="de"),
        }
        assert loaded.features == {"source": Value("string"), "target": Value("string")}
    assert load(folder, split=split, source_language="fr")["source"][:] == texts(*expected, language="fr")


def test_a_glob_names_two_files(folder: Path) -> None:
    expected = {"source": texts("e", "f", language="en"), "target": texts("e", "f", language="de")}
    for split in (None, "test"):
        assert load(f"{folder}/test_2017_flickr.*", split=split).to_dict() == expected
    assert load({"train": f"{folder}/test_2017_flickr.*"}, split="train").to_dict() == expected
    with pytest.raises(ValueError, match="no split 'train'; it has: test"):
        load(f"{folder}/test_2017_flickr.*", split="train")


def test_lines_are_kept_as_they_are(write: Write, tmp_path: Path) -> None:
    for language, side in (("en", "source"), ("de", "target")):
        write(f"corpus.{language}", "\ufeff" + "\r\n".join(PAIRS[side]))
    assert load(tmp_path).to_dict() == PAIRS


def test_a_language_that_is_not_there(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train.en' needs .*train.es': give .*languages there: de, en, fr$"):
        load(folder, target_language="es", split="train")
    with pytest.raises(FileNotFoundError, match=r"train.en' needs its translations in .*train.de': give both by a"):
        load(folder / "train.en")
    with pytest.raises(FileNotFoundError, match=r"holds no file whose name ends with one of .xx, .yy, .csv"):
        load(folder, source_language="xx", target_language="yy")
    with pytest.raises(ValueError, match="both languages are 'en': name two"):
        load(folder, target_language="en")


def test_lines_without_a_partner(write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write("train.en", "a\n\nc\nd\ne\nf\n")
    write("train.de", "A\nB\n \nD\n")
    with pytest.raises(ValueError, match=r"the source in line 2 of .*train.en' and .*train.de' is blank: fix it, or"):
        load(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, skip_broken=True).to_dict() == {"source": ["a", "d"], "target": ["A", "D"]}
    assert "4 of 6 pairs of" in caplog.text
    assert "the first because the source in line 2 of" in caplog.text
    write("train.de", "A\nB\nC\nD\nE\nF\nG\n")
    write("train.en", "a\nb\nc\n")
    with pytest.raises(ValueError, match=r"line 4 of .*train.de' has no translation, as .*train.en' ends with line 3"):
        load(tmp_path)
    assert load(tmp_path, skip_broken=True)["target"][:] == ["A", "B", "C"]


@pytest.mark.parametrize("columns", [("en", "de"), ("en-US", "de_AT"), ("source", "target"), ("Source", "Target")])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_tables(tmp_path: Path, suffix: str, columns: tuple[str, str]) -> None:
    data = Dataset.from_dict({"n": range(4), **dict(zip(columns, (PAIRS["source"], PAIRS["target"]), strict=True))})
    path = tmp_path / f"some.train.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(list(data)))
    else:
        write = {"csv": data.to_csv, "tsv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}[suffix]
        write(path, **({"sep": "\t"} if suffix == "tsv" else {}))
    for source in (path, str(tmp_path), f"{tmp_path}/*", {"train": path}):
        assert load(source, split="train").to_dict() == PAIRS


def test_numbers_in_a_table_are_texts(write: Write) -> None:
    assert load(write("a.csv", "en,de\n007,1.0\n")).to_dict() == {"source": ["007"], "target": ["1.0"]}


def test_columns_that_are_given(write: Write) -> None:
    path = write("a.jsonl", '{"en": "a", "de": "b", "english": "c", "german": "d", "translation": {"en": "x"}}')
    assert load(path, source_column="english", target_column="german")[0] == {"source": "c", "target": "d"}
    assert load(path, source_column="english")[0] == {"source": "c", "target": "b"}
    with pytest.raises(ValueError, match=r"no column 'ger' .*its columns are: en, de, english, german, translation"):
        load(path, target_column="ger")
    with pytest.raises(ValueError, match="no column 'es' or 'target': name the target column with target_col"):
        load(Dataset.from_dict({"en": ["a"], "de": ["b"]}), target_language="es")


def test_translations_in_memory() -> None:
    rows = [{"en": "a", "de": "A", "fr": None}, {"en": "b", "de": "B", "fr": "bé"}]
    plain = Dataset.from_dict({"translation": rows})
    typed = Dataset.from_dict({"translation": rows}, Features({"translation": Translation(["en", "de", "fr"])}))
    for data in (plain, typed, plain.with_format("numpy"), DatasetDict({"train": typed})):
        assert load(data).to_dict() == {"source": ["a", "b"], "target": ["A", "B"]}
    assert load(DatasetDict({"train": plain, "validation": plain.select([1])}), split="dev")["source"][:] == ["b"]
    with pytest.raises(ValueError, match="the data set has no text in 'es'; its languages are: de, en, fr"):
        load(plain, target_language="es")
    with pytest.raises(ValueError, match="the target in row 0 of the data set is missing"):
        load(plain, target_language="fr")
    assert load(plain, target_language="fr", skip_broken=True)["target"][:] == ["bé"]
    with pytest.raises(TypeError, match="streamed rows must be loaded into memory"):
        load(plain.to_iterable_dataset())


def test_translations_in_a_file(write: Write) -> None:
    rows = [{"translation": {"en": "a", "de": "A"}}, {"translation": {"en": "b"}}, {"translation": "c"}]
    path = write("a.json", rows)
    with pytest.raises(ValueError, match=r"the target in row 1 of .*a.json' is missing: fix it"):
        load(path)
    assert load(path, skip_broken=True)[:] == {"source": ["a"], "target": ["A"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "en,de\na,b\n,c\n", "the source in row 1 of .*a.csv' is blank"),
        ("a.csv", "en,de\na,b\nc\n", "the target in row 1 of .*a.csv' is missing"),
        ("a.jsonl", '{"en": "a", "de": 3}', "the target in row 0 of .*a.jsonl' is 3, no string"),
        ("a.csv", "", "a.csv': it is empty"),
        ("a.csv", b"en,de\nb\xe9,c\n", r"a.csv' is not UTF-8 \(.* at byte 7\): save it as UTF-8"),
        ("a.jsonl", '{"en": ', "row 0 of .* is not valid JSON"),
        ("a.txt", "a", "cannot read .*a.txt': give a file whose name ends with one of .en, .de, .csv"),
    ],
)
def test_tables_with_faults(write: Write, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(write(name, content))


def test_nothing_to_read(write: Write, tmp_path: Path) -> None:
    write("train.en", "")
    write("train.de", "")
    with pytest.raises(ValueError, match="has no pairs with both sides"):
        load(tmp_path)
    with pytest.raises(ValueError, match="has no pairs with both sides"):
        load(write("train.csv", "en,de\na,\n"), skip_broken=True)
    write("train.csv", "en,de\na,b\n")
    assert load(tmp_path).to_dict() == {"source": ["a"], "target": ["b"]}  # parallel files and tables, together
    with pytest.raises(FileNotFoundError, match=r"holds no 'tain.en'; near names there: train.en"):
        load(tmp_path / "tain.en")
    with pytest.raises(FileNotFoundError, match=r"there is no 'no_such/data': .* and the Hub does not provide it"):
        load("no_such/data")
    write("latin.en", b"caf\xe9\n")
    write("latin.de", "Kaffee\n")
    with pytest.raises(ValueError, match=r"latin.en' is not UTF-8 .*save it as UTF-8"):
        load(f"{tmp_path}/latin.*")


def test_tmx(write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def unit(**texts: str) -> str:
        segments = "".join(
            f'<tuv xml:lang="{name.replace("_", "-")}"><seg>{t}</seg></tuv>' for name, t in texts.items()
        )
        return f"<tu>{segments}</tu>\n"

    good = [unit(en_US="a", de="A", fr="x"), unit(DE="B", en="b", en_GB="c")]
    write("1.tmx", f"<tmx><body>\n{good[0]}</body></tmx>")
    path = write("2.tmx", f"<tmx><body>\n{good[1]}</body></tmx>")
    for source in (tmp_path, f"{tmp_path}/*.tmx"):
        assert load(source).to_dict() == {"source": ["a", "b"], "target": ["A", "B"]}
    with pytest.raises(ValueError, match=r"2.tmx' has no text in 'es'; its languages are: DE, en, en-GB"):
        load(path, target_language="es")
    with pytest.raises(ValueError, match=r"the target in the unit in line 2 of .*2.tmx' is missing: fix it, or"):
        load(write("2.tmx", f"<tmx>\n{unit(en='x')}{good[1]}</tmx>"))
    write("2.tmx", f"<tmx>\n{unit(en='x')}<tu>\n<tuv>&\n{good[1]}{unit(en='y', de='')}")
    with pytest.raises(ValueError, match=r"the unit in line 3 of .*2.tmx' has no end: fix it, or skip"):
        load(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, skip_broken=True)["target"][:] == ["A", "B"]
    assert "3 of 5 pairs of" in caplog.text
    assert "the first because the unit in line 3 of" in caplog.text


CATALOGUE = r"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

msgid "a \"b\"\n"
msgstr "A\u2028\n"

msgctxt "again"
msgid "a"
msgstr "A"

#, fuzzy
msgid "fuzzy"
msgstr "unscharf"

msgid "not yet"
msgstr ""

msgid " "
msgstr " "

msgid "one"
msgid_plural "many"
msgstr[0] "eins"
msgstr[1] "viele"
msgstr[2] "sehr viele"

msgid "sheep"
msgid_plural "sheep"
msgstr[0] ""
msgstr[1] "Schafe"

#~ msgid "old"
#~ msgstr "alt"
""".replace(r"\u2028", "\u2028")
TRANSLATED = {
    "source": ['a "b"\n', "a", "one", "many", "sheep"],
    "target": ["A\u2028\n", "A", "eins", "viele", "Schafe"],
}


def test_po(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write("locale/de.po", CATALOGUE)
    with caplog.at_level(logging.WARNING):
        assert load(path).to_dict() == TRANSLATED
        assert load(path.parent, skip_broken=True).to_dict() == TRANSLATED
    assert not caplog.records
    path = write("locale/de.po", CATALOGUE + 'msgid "cut"\nmsgstr "a')
    line = CATALOGUE.count("\n") + 2
    with pytest.raises(ValueError, match=rf"line {line} of .*de.po' is not valid PO.*: fix it, or skip"):
        load(path)
    with caplog.at_level(logging.WARNING):
        assert load(path, skip_broken=True).to_dict() == TRANSLATED
    assert "1 of 6 pairs of" in caplog.text
    with pytest.raises(ValueError, match="has no pairs with both sides"):
        load(write("empty.po", 'msgid "a"\nmsgstr ""\n'))


def test_mo(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "de.mo"
    polib = pytest.importorskip("polib")
    polib.pofile(CATALOGUE.replace("\u2028", "")).save_as_mofile(str(path))
    expected = [(source, target.replace("\u2028", "")) for source, target in zip(*TRANSLATED.values(), strict=True)]
    loaded = load(path)
    assert set(zip(loaded["source"], loaded["target"], strict=True)) == set(
        expected[:-1]
    )  # polib leaves half ones out
    for options in ({}, {"skip_broken": True}):
        with pytest.raises(ValueError, match=r"cut.mo' is not a valid MO file, perhaps truncated"):
            load(write("cut.mo", path.read_bytes()[:-9]), **options)


def test_catalogues_of_another_language(write: Write, tmp_path: Path) -> None:
    polib = pytest.importorskip("polib")
    content = CATALOGUE.replace("\u2028", "").replace('UTF-8\\n"', 'UTF-8\\n"\n"Language: fr\\n"')
    path = write("fr.po", content)
    compiled = tmp_path / "fr.mo"
    polib.pofile(content).save_as_mofile(str(compiled))
    for own in (path, compiled):
        assert len(load(own, target_language="fr")) >= 4
        with pytest.raises(
            ValueError, match=rf"{own.name}' is a catalogue of 'fr' by its header, .* is 'de': leave it"
        ):
            load(own, skip_broken=True)


def test_without_polib(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polib", None)
    monkeypatch.delitem(sys.modules, "modeling_lle.data.catalogue", raising=False)
    path = write("de.po", CATALOGUE)
    with pytest.raises(ImportError, match=r'PO and MO files need polib: pip install "modeling_lle\[translation\]"'):
        load(path)


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        ("en", ["de", "en-US", "en"], "en"),
        ("en", ["de", "EN_us", "en-GB"], "EN_us"),
        ("EN-us", ["en", "en-US"], "en-US"),
        ("en-US", ["en", "en-GB"], None),
        ("en", ["eng", "enm-x"], None),
        ("en", [], None),
    ],
)
def test_languages_and_their_varieties(wanted: str, found: list[str], expected: str | None) -> None:
    assert match_language(wanted, found) == expected


def test_pairs_of_each_format_say_their_file_and_line(write: Write, tmp_path: Path) -> None:
    write("p.en", "x\ny\n")
    write("p.de", "X\nY\n")
    write("t.csv", 'en,de\n"a\nb",A\nc,C\n')
    write("l.json", '[\n {"en": "d", "de": "D"},\n {"en": "e",\n "de": "E"}, {"en": "f", "de": "F"}]')
    units = "".join(
        f'<tu>\n<tuv xml:lang="en"><seg>{t}</seg></tuv><tuv xml:lang="de"><seg>{t}</seg></tuv></tu>\n' for t in "gh"
    )
    write("m.tmx", f"<tmx><body>\n{units}</body></tmx>")
    write("c.po", 'msgid ""\nmsgstr "Language: de\\n"\n\nmsgid "i"\nmsgstr "I"\n')
    Dataset.from_dict({"en": ["j"], "de": ["J"]}).to_parquet(tmp_path / "q.parquet")
    rows = list(load_pairs(tmp_path, source_language="en", target_language="de"))
    found = {row["source"][0]: f"{row['file']}:{row['line'] or row['row_in_file']}" for row in rows}
    assert found == {
        **{"x": "p.en:1", "y": "p.en:2", "a": "t.csv:2", "c": "t.csv:4", "d": "l.json:2", "e": "l.json:3"},
        **{"f": "l.json:4", "g": "m.tmx:2", "h": "m.tmx:4", "i": "c.po:4", "j": "q.parquet:1"},
    }
    alone = load_pairs(tmp_path / "t.csv", source_language="en", target_language="de")
    assert alone["file"][0] == str(tmp_path / "t.csv")
