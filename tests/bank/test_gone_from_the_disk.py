"""What was forgotten is gone from the disk: every byte that a command has written, wherever, is searched for it."""

import json
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from modeling_lle import HistoryBank
from modeling_lle.cli import main as cli
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import make_capitals_tokenizer
from tests.factories.texts import WORD_TOKENIZER, make_texts, make_word_tokenizer
from tests.factories.translators import make_translator

SECRET = "h g h g f h g h"
WORDS = {"source": "zeppelin", "label": "zebra", "column": "zebulon"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all caches and temporary files go as well."""
    for name in ("cache", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def run(folder: Path, command: str) -> None:
    """Runs a command line in which M is the model, B the bank, and F the folder."""
    names = {"M": folder / "model", "B": folder / "bank"}
    arguments = [str(names.get(word, word)).replace("F/", f"{folder}/") for word in command.split()]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() + path.name.encode() for path in folder.rglob("*") if path.is_file())


def give(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".txt":
        path.write_text("\n".join(row["text"] for row in rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.mark.parametrize("kind", ["txt", "json", "parquet"])
@pytest.mark.parametrize("command", ["build", "add"])
def test_texts(folder: Path, kind: str, command: str) -> None:
    make_language_model().save_pretrained(folder / "model")
    tokenizer = make_word_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": text, "user": WORDS["column"]} for text in (SECRET, "a b")]
    give(folder / f"private.{kind}", rows)
    if command == "add":
        HistoryBank.build(make_language_model(), tokenizer, make_texts(3, 4), folder / "bank")
    run(folder, f"bank {command} M F/private.{kind} B --source {WORDS['source']}")
    (folder / f"private.{kind}").unlink()
    tokens = torch.tensor(tokenizer(SECRET, add_special_tokens=False)["input_ids"], dtype=torch.int32)
    traces = [tokens.numpy().tobytes(), SECRET.encode()]
    traces += [WORDS["column"].encode()] if kind != "txt" else []
    assert traces[0] in written(folder)
    run(folder, f"bank forget B --source {WORDS['source']} --compact")
    assert not any(trace in written(folder) for trace in traces)
    assert not list((folder / "temporary").iterdir())


def test_labelled_examples(folder: Path) -> None:
    make_classifier().save_pretrained(folder / "model")
    WORD_TOKENIZER.save_pretrained(folder / "model")
    give(folder / "private.json", [{"text": SECRET, "label": WORDS["label"]}, {"text": "a b", "label": "label-1"}])
    run(folder, f"learn M F/private.json --source {WORDS['source']} --new-labels")
    (folder / "private.json").unlink()
    run(folder, f"forget M --label {WORDS['label']}")
    run(folder, "bank compact F/model/history")
    assert not any(trace.encode() in written(folder) for trace in (SECRET, WORDS["label"]))
    assert not list((folder / "temporary").glob("lle-bank-*/bank"))


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_sentence_pairs(folder: Path, kind: str) -> None:
    tokenizer = make_capitals_tokenizer()
    make_translator(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    give(folder / f"private.{kind}", [{"source": "ab cde zyx", "target": "AB CDE ZYX"}])
    give(folder / f"other.{kind}", [{"source": "ab", "target": "AB"}])
    for name, source in (("private", WORDS["source"]), ("other", "kept")):
        run(folder, f"memory M F/{name}.{kind} B --source-language en --target-language de --source {source}")
    (folder / f"private.{kind}").unlink()
    assert b"ab cde zyx" in written(folder)
    run(folder, f"bank forget B --source {WORDS['source']} --compact")
    assert not any(trace in written(folder) for trace in (b"ab cde zyx", b"AB CDE ZYX"))
