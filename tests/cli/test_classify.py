"""`lle classify`, `learn`, `forget` and `evaluate` of a classifier, from end to end, and what they refuse."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from modeling_lle import HistoryBank
from modeling_lle.cli import main as cli
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.precisions import record_precisions
from tests.factories.texts import WORD_TOKENIZER, encode_texts, make_texts

TEXTS = list(dict.fromkeys(make_texts(30, 5, seed=3)))
LABELS = [f"label-{len(text) % 3}" for text in TEXTS]
SHARP = {"bank": {"sharpness": 60.0, "gate": [6.0, 0.0, 0.0, 0.0]}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with their tokenizer, and files."""
    folder = tmp_path_factory.mktemp("classifier")
    out_of_scope = {"weights": [-3.0, -0.5, 0.0, 0.0], "threshold": 0.9}
    values = {"history": SHARP, "classifier": {"out_of_scope": out_of_scope}}
    make_classifier(**values).save_pretrained(folder / "model")
    make_classifier(of_tokens=True).save_pretrained(folder / "tokens")
    make_language_model().save_pretrained(folder / "language")
    make_classifier(problem_type="multi_label_classification").save_pretrained(folder / "several")
    make_classifier(labels=1).save_pretrained(folder / "numbers")
    for name in ("model", "tokens", "language", "several", "numbers"):
        WORD_TOKENIZER.save_pretrained(folder / name)
    rows = [f"{n:03},{text},{label}" for n, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))]
    (folder / "train.csv").write_text("\n".join(["id,text,label", *rows]))
    (folder / "test.csv").write_text("\n".join(["id,text,label", *rows, "x,<unk> <unk> <pad>,oos"]))
    (folder / "texts.txt").write_text("\n".join(TEXTS[:5]))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "f")


def run(folder: Path, *arguments: str) -> str:
    """Runs a command line in which M is the model, B a bank, and F/ the folder."""
    result = CliRunner().invoke(cli.app, places(folder, arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def places(folder: Path, arguments: Any) -> list[str]:
    names = {"M": folder / "model", "B": folder / "bank"}
    return [str(names.get(word, word.replace("F/", f"{folder}/"))) for word in arguments]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def predict(folder: Path, bank: str | None = None) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    if bank is not None:
        model.attach_history(HistoryBank.from_pretrained(folder / bank), tokenizer=WORD_TOKENIZER)
    return model(**encode_texts(*TEXTS)).logits


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys, modeling_lle.cli.main; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("bank", [None, "bank"])
def test_learn_classify_and_forget(folder: Path, bank: str | None) -> None:
    where = [] if bank is None else ["--bank", "B"]
    place = bank or "model/history"
    before = contents(folder / "model")
    output = run(folder, "learn", "M", "F/train.csv", "--source", "mine", *where)
    assert f"{len(TEXTS)} of {len(TEXTS)} examples are new, of 3 labels, in " in output
    assert "lle forget" in output
    assert "0 of" in run(folder, "learn", "M", "F/train.csv", *where)
    taught = predict(folder, place)
    assert "1 of 1 example is new, of 1 label" in run(
        folder, "learn", "M", "h h h h", "--label", "new", "--new-labels", *where
    )
    assert "  new  'h h h h'\n" in run(folder, "classify", "M", "h h h h", *where)
    shown = run(folder, "classify", "M", "h h h h", "--history-top", "1", "--top", "2", *where)
    assert "new  'h h h h', taught-1:0 (entry " in shown
    assert len(shown.splitlines()) == 4
    assert "1 example taken back" in run(folder, "forget", "M", "h h h h", "--label", "new", *where)
    assert torch.equal(predict(folder, place), taught)
    assert "5 examples taken back" in run(folder, "forget", "M", "F/texts.txt", *where)
    gone = LABELS[5:].count("label-1")
    assert f"{gone} examples taken back" in run(folder, "forget", "M", "--label", "label-1", *where)
    assert "taken back" in run(folder, "forget", "M", "--source", "mine", "--namespace", "default", *where)
    assert torch.equal(predict(folder, place), predict(folder))
    after = contents(folder / "model")
    assert {name: data for name, data in after.items() if not name.startswith("history/")} == before


def test_the_precision_is_passed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = record_precisions(monkeypatch)
    for command in (("learn", "M", "F/train.csv"), ("classify", "M", "a"), ("evaluate", "M", "F/train.csv")):
        split = ("--split", "train") if command[0] == "evaluate" else ()
        run(folder, *command, *split, "--precision", "bfloat16")
    rows = [f"{text} {text[0]},{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    (folder / "held.csv").write_text("\n".join(["text,label", *rows]))
    run(folder, "calibrate", "M", "F/held.csv", "--split", "train", "--precision", "float32")
    assert seen == ["bfloat16"] * 3 + ["float32"]


def test_namespaces(folder: Path) -> None:
    run(folder, "learn", "M", "h h h h", "--label", "ann's", "--new-labels", "--namespace", "ann")
    run(folder, "learn", "M", "h h h h", "--label", "label-0", "--namespace", "bob")
    assert "ann's" in run(folder, "classify", "M", "h h h h", "--namespace", "ann")
    assert "label-0" in run(folder, "classify", "M", "h h h h", "--namespace", "bob")


def test_written_files_keep_columns_and_order(folder: Path) -> None:
    run(folder, "learn", "M", "F/train.csv")
    printed = run(
        folder, "classify", "M", "F/train.csv", "--output", "F/out.csv", "--history-top", "2", "--out-of-scope"
    )
    assert "predicted_label, score, out_of_scope, threshold, refused, mass, history" in printed
    with (folder / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["text"], row["label"]) for row in rows] == [
        (f"{n:03}", text, label) for n, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]
    assert {row["predicted_label"] for row in rows} <= {"label-0", "label-1", "label-2", "out_of_scope"}
    assert json.loads(rows[3]["history"])[0]["causes"][0]["columns"]["text"] == TEXTS[3]
    run(folder, "classify", "M", "F/texts.txt", "--output", "F/out.jsonl", "--top", "3", "--batch-size", "2")
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == TEXTS[:5]
    assert all(sum(label["score"] for label in line["labels"]) == pytest.approx(1) for line in lines)
    assert [line["label"] for line in lines] == [line["labels"][0]["label"] for line in lines]
    (folder / "model" / "history").rename(folder / "away")
    run(folder, "classify", "M", "F/texts.txt", "--output", "F/out.jsonl", "--out-of-scope")
    assert {json.loads(line)["mass"] for line in (folder / "out.jsonl").read_text().splitlines()} == {None}


def test_an_interrupted_command_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "out.csv").write_text("old")
    monkeypatch.setattr("json.dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(folder, "classify", "M", "F/texts.txt", "--output", "F/out.csv")
    assert (folder / "out.csv").read_text() == "old"
    assert not list(folder.glob(".*"))


def test_evaluate(folder: Path) -> None:
    output = run(folder, "evaluate", "M", "F/test.csv", "--output", "F/seen", "--results", "F/results/cat.json")
    assert output.splitlines()[1:3][0].split() == ["base"]
    assert "None of these: " in output
    assert (folder / "seen" / "confusion.png").stat().st_size > 5_000
    base = json.loads((folder / "seen" / "evaluation.json").read_text())["metrics"]
    released = json.loads((folder / "results" / "cat.json").read_text())
    assert released["metrics"] == base
    assert {"accuracy", "macro_f1", "ece", "out_of_scope_recall", "parameters"} <= set(base)
    assert base["accuracy"] == base["base_accuracy"]
    run(folder, "learn", "M", "F/train.csv")
    output = run(folder, "evaluate", "M", "F/test.csv", "--results", "F/taught.json")
    assert output.splitlines()[1].split() == ["base", "history"]
    taught = json.loads((folder / "taught.json").read_text())["metrics"]
    assert taught["base_accuracy"] == pytest.approx(base["accuracy"])
    assert taught["accuracy"] > base["accuracy"]


def test_calibrate(folder: Path) -> None:
    run(folder, "learn", "M", "F/train.csv")
    rows = [f"{text} {text[0]},{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    strange = [f"<unk> {text},none" for text in TEXTS[:8]]
    (folder / "several.jsonl").write_text('{"text": "a b", "label": ["label-0"]}\n')
    (folder / "held.csv").write_text("\n".join(["text,label", *rows, *strange, f"{TEXTS[0]},{LABELS[0]}"]))
    options = ["--split", "train", "--out-of-scope-label", "none", "--keep-in-scope", "0.9"]
    bank = contents(folder / "model" / "history")
    output = run(folder, "calibrate", "M", "F/held.csv", *options, "--output", "F/first")
    assert '"None of these": threshold 0.90 before, ' in output
    assert "labels of the training" in output
    output = run(folder, "calibrate", "M", "F/held.csv", *options, "--json")
    found = json.loads(output[output.index("{") :])
    numbers = [int(found[name].split()[0]) for name in ("fitted_on", "measured_on")]
    assert sum(numbers) == len(TEXTS)  # the last text is in the bank, and left out
    assert numbers[1] == found["held_out"]["after"]["trained_texts"] > 0
    saved = json.loads((folder / "model" / "config.json").read_text())
    assert saved["classifier"]["out_of_scope"]["threshold"] == found["out_of_scope"]["threshold"] < 1
    kept = "before" if found["kept_old_values"] else "after"
    assert saved["history"]["bank"]["gate"] == found["parameters"]["bank.gate"][kept]
    assert saved["classifier"]["background"] == found["parameters"]["classifier.background"][kept]
    assert contents(folder / "model" / "history") == bank
    fixed = ["--fixed", "sharpness", "--fixed", "background"]
    run(folder, "calibrate", "M", "F/held.csv", *options, *fixed, "--output", "F/fitted")
    again = json.loads((folder / "fitted" / "config.json").read_text())
    assert again["history"]["bank"]["sharpness"] == saved["history"]["bank"]["sharpness"]
    assert again["classifier"]["background"] == saved["classifier"]["background"]
    assert not (folder / "fitted" / "history").exists()
    assert (folder / "fitted" / "tokenizer.json").exists()


def test_one_example_against_a_thousand(folder: Path) -> None:
    many = list(dict.fromkeys(make_texts(1500, 8, seed=7)))[:1000]
    (folder / "many.csv").write_text("text,label\n" + "".join(f"{text},label-0\n" for text in many))
    assert "1,000 of 1,000 examples are new, of 1 label" in run(folder, "learn", "M", "F/many.csv")
    run(folder, "learn", "M", "<unk> h <unk> h", "--label", "rare", "--new-labels")
    assert "  rare  " in run(folder, "classify", "M", "<unk> h <unk> h")
    assert "  label-0  " in run(folder, "classify", "M", many[10])


def test_texts_of_all_kinds(folder: Path) -> None:
    odd = ["a\0b", "\u202eabc", "猫 кот γάτα", "a\u2028b", "a\tb\nc", " ".join(["a", "b"] * 25_000)]
    lines = [json.dumps({"text": text, "label": "label-0"}) for text in odd]
    (folder / "odd.jsonl").write_text("\ufeff" + "\n".join(lines))
    assert f"{len(odd)} of {len(odd)} examples are new" in run(folder, "learn", "M", "F/odd.jsonl")
    run(folder, "classify", "M", "F/odd.jsonl", "--output", "F/out.csv")
    with (folder / "out.csv").open(newline="", encoding="utf-8") as file:
        csv.field_size_limit(200_000)
        rows = list(csv.DictReader(line.replace("\0", "␀") for line in file))
    assert [row["text"] for row in rows] == [text.replace("\0", "␀") for text in odd]
    assert len(HistoryBank.from_pretrained(folder / "model")) == len(odd)
    assert f"{len(odd)} examples taken back" in run(folder, "forget", "M", "F/odd.jsonl")


def test_several_labels_and_numbers(folder: Path) -> None:
    rows = [{"text": "a b", "label": ["label-0", "label-1"]}, {"text": "c", "label": []}]
    (folder / "several.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "several.csv").write_text('text,label\nd,"[""label-0"", ""label-2""]"\ne,label-1\n')
    assert "2 of 2 examples are new" in run(folder, "learn", "F/several", "F/several.jsonl")
    assert "2 of 2 examples are new" in run(folder, "learn", "F/several", "F/several.csv")
    assert "1 example taken back" in run(folder, "forget", "F/several", "--label", '["label-0", "label-1"]')
    (folder / "numbers.csv").write_text("text,label\na b,3.5\nc,-1\n")
    assert "2 of 2 examples are new" in run(folder, "learn", "F/numbers", "F/numbers.csv")
    assert "1 example taken back" in run(folder, "forget", "F/numbers", "--label", "3.5")


FAULTS = [
    (["classify", "M", "F/none.csv"], "there is no file"),
    (["classify", "M", "F/train.csv", "--text-column", "texts"], "no column 'texts' (did you mean 'text'?)"),
    (["classify", "M", "F/empty.csv"], "it is empty"),
    (["classify", "M", "F/latin.txt"], "is not UTF-8"),
    (["classify", "M", "  "], "the text in row 0 of the text is blank"),
    (["classify", "M", "F/texts.txt", "--output", "F/none/out.csv"], "make it first"),
    (["classify", "M", "F/texts.txt", "--output", "F/out.xls"], "its name should end with"),
    (["classify", "M", "F/taken.csv", "--output", "F/out.csv"], "the columns 'label' and 'predicted_label' already"),
    (["classify", "M", "a", "--bank", "F/none"], "none"),
    (["classify", "M", "a", "--namespace", "ann"], "has no bank"),
    (
        ["classify", "F/several", "a", "--out-of-scope"],
        "fit one with `lle calibrate MODEL DATA --out-of-scope-label NAME`",
    ),
    (["classify", "F/tokens", "a"], "holds a classifier of tokens, and a classifier of texts is needed: use it in"),
    (["classify", "F/language", "a"], "holds a language model, and a classifier of texts is needed: use lle"),
    (["learn", "F/language", "a", "--label", "b"], "holds a language model"),
    (["learn", "M", "a"], "the text has no label: give --label"),
    (["learn", "M", "F/train.csv", "--label-column", "lable"], "no column 'lable' (did you mean 'label'?)"),
    (["learn", "M", "a", "--label", "label-7"], "is new (did you mean"),
    (["learn", "M", "F/contradiction.csv"], "'a' has two labels: label-0 (text 0) and label-1 (text 2)"),
    (["learn", "M", "F/gap.csv"], "the text in row 1 of"),
    (["learn", "M", "F/unlabelled.csv"], "has no label in 'label': fill it in, or give --label"),
    (["learn", "M", "F/late.csv"], "the label 'label-9' of text 2"),
    (["learn", "F/numbers", "a", "--label", "much"], "should be a finite number"),
    (["learn", "M", "a", "--label", "label-0", "--bank", "F/train.csv"], "cannot write to the bank"),
    (["learn", "owner/name", "a", "--label", "b"], "is not a local folder"),
    (["forget", "M"], "nothing to forget: give texts, --label, --source or --namespace"),
    (["forget", "M", "a"], "there is no bank at"),
    (
        ["evaluate", "M", "F/train.csv", "--split", "train", "--rows", "2"],
        "model, a classifier of texts: leave it out",
    ),
    (["evaluate", "F/language", "F/train.csv", "--batch-size", "2"], "language, a language model: leave it out"),
    (["evaluate", "F/tokens", "F/test.csv"], "holds a classifier of tokens"),
    (["evaluate", "F/several", "F/test.csv"], "only single-label classifiers"),
    (["evaluate", "M", "F/test.csv", "--label-column", "lable"], "no column 'lable'"),
    (["calibrate", "M", "F/test.csv", "--split", "test"], "has no bank"),
    (["calibrate", "M", "F/test.csv", "--limit-tokens", "9"], "model, a classifier of texts: leave it out"),
    (["calibrate", "F/language", "F/train.csv", "--keep-in-scope", "1"], "--keep-in-scope is not for "),
    (["calibrate", "F/taught", "F/held.csv", "--split", "train", "--fixed", "gates"], "did you mean 'gate'"),
    (["calibrate", "F/tokens", "F/test.csv"], "holds a classifier of tokens"),
    (["calibrate", "F/several", "F/test.csv"], "only single-label classifiers"),
    (["calibrate", "owner/name", "F/test.csv"], "is not a local folder: give --output"),
    (["calibrate", "F/taught", "F/train.csv", "--split", "train"], "has all of these texts: give held-out ones"),
    (["calibrate", "F/taught", "F/late.csv", "--split", "train"], "knows the label 'label-9' (row 2"),
    (["calibrate", "F/taught", "F/several.jsonl", "--split", "train"], "knows the label ['label-0'] (row 0"),
    (["calibrate", "F/taught", "F/contradiction.csv", "--split", "train"], "has bad examples"),
    (["calibrate", "F/taught", "F/strange.csv", "--split", "train"], "there is nothing in scope"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), FAULTS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_faults_are_one_line_and_change_nothing(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "F/taught" in arguments:
        shutil.copytree(folder / "model", folder / "taught")
        run(folder, "learn", "F/taught", "F/train.csv")
    (folder / "strange.csv").write_text("text,label\na,oos\n")
    (folder / "several.jsonl").write_text('{"text": "a b", "label": ["label-0"]}\n')
    (folder / "held.csv").write_text("text,label\na b a b a,label-0\n")
    (folder / "empty.csv").touch()
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "taken.csv").write_text("text,label,predicted_label\na,b,c\n")
    (folder / "contradiction.csv").write_text("text,label\na,label-0\nb,label-0\na,label-1\n")
    (folder / "gap.csv").write_text('text,label\na,label-0\n"",label-0\n')
    (folder / "unlabelled.csv").write_text("text,label\na,\nb, \n")
    (folder / "late.csv").write_text("text,label\na,label-0\nb,label-1\nc,label-9\n")
    before = contents(folder)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)  # the Hub has owner/name
    monkeypatch.setattr("sys.argv", ["lle", *places(folder, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert contents(folder) == before


def test_a_failed_lesson_leaves_the_bank_as_it_was(folder: Path) -> None:
    run(folder, "learn", "M", "F/train.csv")
    before = contents(folder / "model" / "history")
    (folder / "late.csv").write_text("text,label\na a a a a a,label-0\nb,label-9\n")
    with pytest.raises(ValueError, match=r"late.csv' cannot be learned: the label 'label-9' of text 1"):
        run(folder, "learn", "M", "F/late.csv")
    with pytest.raises(ValueError, match="has no example with the text 'nothing'"):
        run(folder, "forget", "M", "nothing")
    other = "label-0" if LABELS[0] != "label-0" else "label-1"
    with pytest.raises(ValueError, match="relabel=True"):
        run(folder, "learn", "M", TEXTS[0], "--label", other)
    assert contents(folder / "model" / "history") == before
    assert "1 of 1 example is new" in run(folder, "learn", "M", TEXTS[0], "--label", other, "--relabel")
    assert len(HistoryBank.from_pretrained(folder / "model")) == len(TEXTS)
