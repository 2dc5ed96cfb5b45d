"""`lle suggest`: from unlabelled texts to a file that a person fills in and teaches, and what it refuses."""

import csv
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from modeling_lle import HistoryBank
from modeling_lle.cli import main as cli
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_texts

TEXTS = list(dict.fromkeys(make_texts(40, 5, seed=3)))
COLUMNS = ["text", "label", "suggested_label", "probability", "why", "nearest_example", "nearest_label"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model without a bank, and files."""
    make_classifier().save_pretrained(tmp_path / "model")
    WORD_TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "taught.csv").write_text("text,label\n" + "".join(f"{text},label-0\n" for text in TEXTS[:8]))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return tmp_path


def run(folder: Path, *arguments: str) -> Result:
    names = [str(folder / "model") if word == "M" else word.replace("F/", f"{folder}/") for word in arguments]
    return CliRunner().invoke(cli.app, names, catch_exceptions=False)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_suggest_fill_in_and_teach(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(folder, "learn", "M", "F/taught.csv").exit_code == 0
    told = run(folder, "suggest", "M", "F/texts.txt", "--number", "6", "--output", "F/next.csv").output
    assert "lle learn" in told
    assert "8 of the" in caplog.text
    rows = rows_of(folder / "next.csv")
    assert list(rows[0]) == COLUMNS
    assert len(rows) == 6
    assert not {row["text"] for row in rows} & set(TEXTS[:8])
    assert {row["label"] for row in rows} == {""}
    assert {row["nearest_example"] for row in rows} <= set(TEXTS[:8])
    for row, label in zip(rows, ["label-1", "label-2", "strange", "label-1"], strict=False):
        row["label"] = label
    with (folder / "next.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    left = run(folder, "suggest", "M", "F/next.csv", "--number", "6", "--output", "F/left.csv").output
    assert "4 texts with a label in 'label': left out." in left
    assert "There are only 2 texts" in left
    taught = run(folder, "learn", "M", "F/next.csv", "--new-labels").output
    assert "2 texts of" in taught
    assert "4 of 4 examples are new, of 3 labels" in taught
    assert len(HistoryBank.from_pretrained(folder / "model")) == 12
    again = run(folder, "suggest", "M", "F/texts.txt", "--number", "6", "--output", "F/next.csv")
    assert again.exit_code == 0
    assert not {row["text"] for row in rows_of(folder / "next.csv")} & {row["text"] for row in rows[:4]}


def test_suggestions_are_shown(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = run(folder, "suggest", "M", "F/texts.txt", "--number", "3").output
    assert "no bank is attached" in caplog.text
    assert len([line for line in alone.splitlines() if line.startswith("  ")]) == 3
    assert run(folder, "learn", "M", "F/taught.csv", "--bank", "F/bank").exit_code == 0
    shown = run(folder, "suggest", "M", "F/texts.txt", "--number", "3", "--bank", "F/bank").output
    assert len([line for line in shown.splitlines() if line.startswith("  ")]) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["F/language", "F/texts.txt"], "holds a language model, and a classifier of texts is needed"),
        (["F/several", "F/texts.txt"], "only single-label classifiers"),
        (["M", "F/blank.csv"], "there is no text to label"),
        (["M", "F/labelled.csv"], "there is no text to label"),
        (["M", "F/texts.txt", "--label-column", "lable"], "no column 'lable'"),
        (["M", "F/texts.txt", "--output", "F/out.xls"], "its name should end with"),
        (["M", "F/texts.txt", "--namespace", "ann"], "has no bank"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_faults_are_one_line(folder: Path, arguments: list[str], message: str) -> None:
    make_language_model().save_pretrained(folder / "language")
    make_classifier(problem_type="multi_label_classification").save_pretrained(folder / "several")
    for name in ("language", "several"):
        WORD_TOKENIZER.save_pretrained(folder / name)
    (folder / "blank.csv").write_text('text,id\n"",1\n" ",2\n')
    (folder / "labelled.csv").write_text("text,label\na,label-0\n")
    with pytest.raises(ValueError, match=message):
        run(folder, "suggest", *arguments)
