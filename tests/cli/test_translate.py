"""`lle translate` and `lle memory` from end to end, and what they refuse."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modeling_lle import HistoryBank
from modeling_lle import saved as saved_module
from modeling_lle.cli import main as cli
from tests.factories.language_models import make_language_model
from tests.factories.pairs import WORD_PAIRS, WORD_PAIRS_TOKENIZER, make_capitals_pairs
from tests.factories.precisions import record_precisions
from tests.factories.translators import TRUSTED_MEMORY, make_trained_translator, make_word_translator

LANGUAGES = ["--source-language", "en", "--target-language", "de"]
LINES = ["a b c", "", "h", "f g", " ", "a b c", "zz %d"]
TRANSLATED = ["x y", "", "v u y x", "u {n} v", "", "x y"]  # of all lines but the last
CATALOGUE = """# A catalogue.
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\\n"

#. kept as it is,   with its spaces
msgid "b c d e"
msgstr   "bleibt"

#: main.c:1
#, c-format
msgid "a b c"
msgstr ""

#, fuzzy
msgid "h"
msgstr "unscharf"

msgid "f g"
msgid_plural "f g {n}"
msgstr[0] ""
msgstr[1] ""

#~ msgid "gone"
#~ msgstr "weg"
"""
FILLED = CATALOGUE.replace('c-format\nmsgid "a b c"\nmsgstr ""', 'c-format\nmsgid "a b c"\nmsgstr "x y"').replace(
    'msgstr[0] ""\nmsgstr[1] ""', 'msgstr[0] "u {n} v"\nmsgstr[1] "u {n} v"'
)
MARKED = FILLED.replace("#, c-format", "#, fuzzy, c-format").replace('msgid "f g"', '#, fuzzy\nmsgid "f g"')


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator, one with a memory beside it, and files."""
    folder = tmp_path_factory.mktemp("translator")
    model = make_word_translator(history=TRUSTED_MEMORY)
    model.save_pretrained(folder / "model")
    HistoryBank.build(model, WORD_PAIRS_TOKENIZER, WORD_PAIRS, folder / "bank", source="pairs")
    make_language_model().save_pretrained(folder / "language")
    make_word_translator(seed=1).save_pretrained(folder / "other")
    for name in ("model", "language", "other"):
        WORD_PAIRS_TOKENIZER.save_pretrained(folder / name)
    shutil.copytree(folder / "model", folder / "taught")
    shutil.copytree(folder / "bank", folder / "taught" / "history")
    rows = [f"{pair['source']}\t{pair['target']}" for pair in WORD_PAIRS]
    (folder / "pairs.tsv").write_text("\n".join(["en\tde", *rows]))
    (folder / "texts.txt").write_text("\n".join(LINES))
    (folder / "app.po").write_text(CATALOGUE)
    (folder / "terms.csv").write_text("en,de,note\na,x,\nh,w,\n")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "f")


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Translations are the first hypotheses, whatever they lose or add."""

    def first(sources: Any, search: Any, beams: int, *_: Any) -> list[Any]:
        return [own[0] for own in search(list(range(len(sources))), beams, None)]

    monkeypatch.setattr("modeling_lle.pipelines.translation.search_faithfully", first)


def places(folder: Path, arguments: Any) -> list[str]:
    """A command line in which M is the model, T the one with a memory, B the memory, and F/ the folder."""
    names = {"M": folder / "model", "T": folder / "taught", "B": folder / "bank"}
    return [str(names.get(word, word.replace("F/", f"{folder}/"))) for word in arguments]


def run(folder: Path, *arguments: str) -> tuple[str, str]:
    """What a command prints, and what it says beside, without the progress of transformers."""
    result = CliRunner().invoke(cli.app, places(folder, arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines(keepends=True) if "Loading weights" not in line]
    return result.stdout, "".join(line for line in said if line.strip())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_text_is_printed(folder: Path) -> None:
    before = contents(folder)
    printed, said = run(folder, "translate", "T", "a b c %s")
    assert printed == "a b c %s -> x y\n"
    assert said.splitlines()[0] == "the text: the translation lost %s"
    assert said.splitlines()[1].startswith("1 text translated in ")
    assert said.endswith(" s, 1 with other placeholders.\n")
    printed, _ = run(folder, "translate", "M", "d e", "--bank", "B", "--history-top", "1", "--beams", "1")
    first, pair, base = printed.splitlines()
    assert first == "d e -> y z w v"
    assert pair.endswith("'b c d e' -> 'y z w v' (match 0.50, pairs:1)")
    assert base == "  +0.0000  the base"
    assert contents(folder) == before


def test_the_precision_is_passed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = record_precisions(monkeypatch)
    memory = ("F/pairs.tsv", *LANGUAGES, "--precision", "bfloat16")
    run(folder, "memory", "M", *memory, "--calibrate")
    run(folder, "translate", "M", "a b", "--precision", "float32")
    run(folder, "evaluate", "M", "F/pairs.tsv", "--split", "train", *LANGUAGES, "--precision", "bfloat16")
    run(folder, "calibrate", "M", "F/pairs.tsv", "--split", "train", *LANGUAGES)
    assert seen == ["bfloat16", "float32", "bfloat16", "auto"]


@pytest.mark.usefixtures("careless")
def test_lines_stay_lines(folder: Path) -> None:
    before = contents(folder)
    printed, said = run(folder, "translate", "T", "F/texts.txt", "--output", "F/out.txt", "--batch-size", "2")
    lines = (folder / "out.txt").read_text().split("\n")
    assert lines[:6] == TRANSLATED
    assert len(lines) == len(LINES) + 1
    assert lines[-1] == ""
    assert f"line 4 of '{folder}/texts.txt': the translation added {{n}}\n" in said
    assert f"line 7 of '{folder}/texts.txt': the translation lost %d" in said
    assert printed.startswith("5 texts translated in ")
    assert printed.endswith(f", 2 with other placeholders, in {folder}/out.txt.\n")
    after = contents(folder)
    del after["out.txt"]
    assert after == before


@pytest.mark.usefixtures("careless")
def test_tables_keep_columns_and_order(folder: Path) -> None:
    rows = [{"id": f"{number:03}", "say": text, "translation": "old"} for number, text in enumerate(LINES[:4])]
    (folder / "in.jsonl").write_text("\n".join([*map(json.dumps, rows), '{"id": "x", "say": null}']))
    options = ["--text-column", "say", "--exact-matches", "--history-top", "2"]
    printed, _ = run(folder, "translate", "T", "F/in.jsonl", "--output", "F/out.csv", *options)
    assert "3 texts translated in " in printed
    assert "2 of them from the memory" in printed
    with (folder / "out.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [{name: row[name] for name in ("id", "say", "translation")} for row in written[:4]] == rows
    assert [row["predicted_translation"] for row in written] == [*TRANSLATED[:4], ""]
    assert [row["exact"] for row in written] == ["true", "", "true", "", ""]
    assert json.loads(written[3]["added"]) == ["{n}"]
    assert json.loads(written[3]["history"])[0]["text"] == "f g {n}"
    run(folder, "translate", "T", "F/pairs.tsv", "--text-column", "en", "--output", "F/pairs.tsv", "--beams", "1")
    lines = [f"{pair['source']}\t{pair['target']}\t{pair['target']}" for pair in WORD_PAIRS]
    assert (folder / "pairs.tsv").read_text().splitlines()[1:] == lines
    assert (folder / "pairs.tsv").read_text().startswith("en\tde\ttranslation\n")


@pytest.mark.usefixtures("careless")
def test_a_catalogue_is_completed(folder: Path) -> None:
    printed, said = run(folder, "translate", "T", "F/app.po", "--output", "F/de.po")
    assert (folder / "de.po").read_text() == MARKED
    assert (folder / "app.po").read_text() == CATALOGUE
    line = CATALOGUE.splitlines().index('msgid "f g"') + 1
    assert f"line {line} of '{folder}/app.po': the translation added {{n}}\n" in said
    assert printed.startswith("3 texts translated in ")
    printed, _ = run(folder, "translate", "T", "F/app.po")
    assert printed.splitlines() == ["a b c -> x y", "f g -> u {n} v", "f g {n} -> u {n} v"]
    run(folder, "translate", "T", "F/app.po", "--output", "F/app.po", "--no-fuzzy", "--exact-matches")
    assert (folder / "app.po").read_text() == FILLED
    printed, _ = run(folder, "translate", "T", "F/app.po", "--output", "F/again.po")
    assert (folder / "again.po").read_text() == FILLED
    assert printed.startswith("0 texts translated in ")


def test_what_would_add_a_placeholder_is_searched_again(folder: Path) -> None:
    _, said = run(folder, "translate", "T", "F/app.po", "--output", "F/de.po")
    assert (
        'msgid "f g"\nmsgid_plural "f g {n}"\nmsgstr[0] "u h"\nmsgstr[1] "u {n} v"' in (folder / "de.po").read_text()
    )
    assert "{n}" not in said


@pytest.mark.usefixtures("careless")
def test_what_is_confident_is_not_fuzzy(folder: Path) -> None:
    pytest.importorskip("polib")
    path = folder / "taught" / "config.json"
    values = json.loads(path.read_text())
    values["translator"]["confidence"] = [-4, 0, 0, 0, 8]  # by the best match alone
    path.write_text(json.dumps(values))
    said, _ = run(folder, "translate", "T", "F/app.po", "--output", "F/new.po", "--confidence", "0.9")
    assert (folder / "new.po").read_text() == MARKED.replace("#, fuzzy, c-format", "#, c-format")
    assert " with a confidence of 0.9 or more, " in said
    run(folder, "translate", "T", "F/app.po", "--output", "F/none.po", "--confidence", "1")
    assert (folder / "none.po").read_text() == MARKED
    printed, _ = run(folder, "translate", "T", "a b c", "--confidence", "0")
    assert printed == "a b c -> x y  (confidence 0.98)\n"
    result = CliRunner().invoke(cli.app, places(folder, ["translate", "M", "a b c", "--confidence", "0"]))
    assert "the confidence in translations has not been fitted" in str(result.exception)


def test_the_confidence_is_fitted_to_the_memory(tmp_path: Path) -> None:
    model, tokenizer = make_trained_translator()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    pairs = make_capitals_pairs(90, 2)
    rows = [
        f"{source}\t{target if place % 3 else 'Rot'}"
        for place, (source, target) in enumerate(zip(*pairs[:].values(), strict=True))
    ]
    (tmp_path / "pairs.tsv").write_text("\n".join(["en\tde", *rows]))
    arguments = ["memory", "F/model", "F/pairs.tsv", *LANGUAGES, "--confidence"]
    printed, said = run(tmp_path, *arguments)
    assert "% of 90 pairs are translated as they stand, each from other pairs" in printed + said
    assert len(json.loads((tmp_path / "model" / "config.json").read_text())["translator"]["confidence"]) == 5


@pytest.mark.usefixtures("careless")
def test_terms_and_contradictions_are_reported(folder: Path) -> None:
    glossary = ["--glossary", "F/terms.csv", *LANGUAGES]
    (folder / "more.jsonl").write_text('{"source": "h", "target": "u u"}')
    run(folder, "memory", "T", "F/more.jsonl", *LANGUAGES, "--source", "more")
    options = [*glossary, "--exact-matches", "--output"]
    printed, said = run(folder, "translate", "T", "F/texts.txt", *options, "F/out.jsonl")
    assert said.splitlines()[:3] == [
        f"line 3 of '{folder}/texts.txt': the translation lacks 'w' for 'h'",
        f"line 3 of '{folder}/texts.txt': the memory has other translations too: 'v u y x' (pairs:4)",
        f"line 4 of '{folder}/texts.txt': the translation added {{n}}",
    ]
    assert ", 2 with other placeholders, 1 without a term of the glossary, in " in printed
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert rows[2]["terms"] == [{"source": "h", "target": "w", "found": False}]
    assert rows[0]["terms"] == [{"source": "a", "target": "x", "found": True}]


def test_a_catalogue_of_another_language_is_refused(folder: Path) -> None:
    pytest.importorskip("polib")
    content = CATALOGUE.replace('UTF-8\\n"', 'UTF-8\\n"\n"Language: fr\\n"')
    (folder / "fr.po").write_text(content)
    result = CliRunner().invoke(cli.app, places(folder, ["translate", "T", "F/fr.po", *LANGUAGES]))
    assert "fr.po' is a catalogue of 'fr' by its header, and the target language is 'de'" in str(result.exception)
    assert run(folder, "translate", "T", "F/fr.po", "--target-language", "fr")[0]


def test_an_interrupted_command_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    for source in ("texts.txt", "app.po"):
        output = f"F/out{Path(source).suffix}"
        with pytest.raises(ZeroDivisionError):
            run(folder, "translate", "T", f"F/{source}", "--output", output, "--beams", "1")
    assert contents(folder) == before


def test_a_memory_is_made_added_to_and_forgotten(folder: Path) -> None:
    model = contents(folder / "model")
    printed, _ = run(folder, "memory", "M", "F/pairs.tsv", *LANGUAGES)
    assert "5 of 5 pairs are new, in " in printed
    assert f"the memory {folder}/model/history has 5 pairs" in printed
    assert "takes it back" in printed
    assert run(folder, "translate", "M", "a b c")[0] == "a b c -> x y\n"
    (folder / "more.jsonl").write_text(
        '{"source": "a b c", "target": "u u"}\n{"source": "a b c", "target": "x y"}\n{"source": "d", "target": ""}\n'
    )
    add = ["memory", "M", "F/more.jsonl", *LANGUAGES, "--skip-broken", "--source", "more"]
    assert "2 of 2 pairs are new" in run(folder, *add, "--namespace", "mine")[0]
    assert "0 of 2 pairs are new" in run(folder, *add, "--namespace", "mine")[0]
    assert "1 of 2 pairs is new" in run(folder, *add)[0]
    assert run(folder, "translate", "M", "a b c", "--namespace", "mine", "--exact-matches")[0] == "a b c -> x y\n"
    assert run(folder, "translate", "M", "a b c", "--exact-matches")[0] == "a b c -> u u\n"
    info = json.loads(run(folder, "bank", "info", "F/model/history", "--json")[0])
    assert sorted(info["namespaces"]) == ["default", "mine"]
    assert {(item["namespace"], item["source"]) for item in info["sources"]} == {
        ("default", f"{folder}/pairs.tsv"),
        ("default", "more"),
        ("mine", "more"),
    }
    assert "6 entries forgotten" in run(folder, "bank", "forget", "F/model/history", "--namespace", "mine")[0]
    assert "3 entries forgotten" in run(folder, "bank", "forget", "F/model/history", "--source", "more")[0]
    gone = ["bank", "forget", "F/model/history", "--where", "text=h", "--compact"]
    assert "5 entries forgotten" in run(folder, *gone)[0]
    assert "is whole" in run(folder, "bank", "verify", "F/model/history")[0]
    assert run(folder, "translate", "M", "a b c", "--exact-matches")[0] == "a b c -> x y\n"
    assert "'h'" not in run(folder, "translate", "M", "h a", "--history-top", "9")[0]
    after = contents(folder / "model")
    assert {name: data for name, data in after.items() if not name.startswith("history/")} == model


def test_a_memory_elsewhere(folder: Path) -> None:
    before = contents(folder / "model")
    printed, _ = run(folder, "memory", "M", "F/pairs.tsv", "F/new/one", *LANGUAGES)
    assert f"lle bank forget {folder}/new/one --source" in printed
    assert run(folder, "translate", "M", "h", "--bank", "F/new/one")[0] == "h -> v u y x\n"
    assert contents(folder / "model") == before


def test_a_memory_that_fails_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    monkeypatch.setattr(saved_module.HistoryBank, "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(folder, "memory", "M", "F/pairs.tsv", *LANGUAGES)
    assert contents(folder) == before


def test_calibrate(folder: Path) -> None:
    options = ["F/pairs.tsv", *LANGUAGES, "--json"]
    output, _ = run(folder, "calibrate", "T", *options, "--output", "F/fitted")
    found = json.loads(output[output.index("{") :])
    assert (found["fitted_on"], found["measured_on"]) == ("4 pairs", "1 pair")
    saved = json.loads((folder / "fitted" / "config.json").read_text())["history"]["bank"]
    kept = "before" if found["kept_old_values"] else "after"
    assert saved["gate"] == found["parameters"]["bank.gate"][kept]
    other, _ = run(folder, "calibrate", "M", *options, "--bank", "B")
    assert json.loads(other[other.index("{") :])["held_out"] == found["held_out"]
    shown, _ = run(folder, "memory", "T", "F/pairs.tsv", *LANGUAGES, "--calibrate")
    assert "that were not fitted on, each predicted from other pairs: " in shown


def test_a_memory_of_some_size_is_calibrated_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers() -> Any:
        return json.loads((folder / "taught" / "config.json").read_text())["history"]["bank"]

    fits = "that were not fitted on"
    arguments = ["memory", "T", "F/pairs.tsv", *LANGUAGES]
    untouched = numbers()
    assert fits not in run(folder, *arguments)[0]
    monkeypatch.setattr("modeling_lle.cli.translate.FITTED", 4)
    assert fits not in run(folder, *arguments, "--no-calibrate")[0]
    assert numbers() == untouched
    plain = {**untouched, "sharpness": 14.0, "gate": [-1.5, 0.3, 0.3, 0.3]}
    config = json.loads((folder / "taught" / "config.json").read_text())
    config["history"]["bank"] = plain
    (folder / "taught" / "config.json").write_text(json.dumps(config))
    assert fits in run(folder, *arguments)[0]
    fitted = numbers()
    assert fitted != plain
    assert fits not in run(folder, *arguments)[0]
    assert numbers() == fitted


FAULTS = [
    (["translate", "T", "F/none.txt"], "there is no file"),
    (["translate", "T", "F/texs.txt"], "(did you mean 'texts.txt'?)"),
    (["translate", "T", "F/none.po"], "there is no file"),
    (["translate", "T", "F/empty.txt"], "it is empty"),
    (["translate", "T", "F/blank.txt"], "it is blank"),
    (["translate", "T", "  "], "there is nothing to translate in the text"),
    (["translate", "T", "F/latin.txt"], "is not UTF-8"),
    (["translate", "T", "F/app.mo"], "app.mo'"),
    (["translate", "T", "F/model"], "cannot read"),
    (["translate", "T", "F/broken.po"], "line 5 of"),
    (["translate", "T", "F/pairs.tsv"], "has no column 'text'"),
    (["translate", "T", "F/numbers.jsonl"], "the text in row 1 of"),
    (["translate", "T", "F/texts.txt", "--output", "F/none/out.txt"], "make it first"),
    (["translate", "T", "F/texts.txt", "--output", "F/out.po"], "its name should end with"),
    (["translate", "T", "F/app.po", "--output", "F/out.txt"], "its name should end with one of .po, .pot"),
    (["translate", "T", "F/texts.txt", "--output", "F/texts.txt"], "would be replaced by its translation"),
    (["translate", "T", "a", "--output", "F/out.txt", "--history-top", "1"], "can hold translations only"),
    (["translate", "T", "F/taken.csv", "--output", "F/out.csv"], "'predicted_translation' already"),
    (["translate", "T", "a", "--glossary", "F/terms.tsv"], "(did you mean 'terms.csv'?)"),
    (["translate", "T", "a", "--glossary", "F/terms.csv"], "call the column of the source so"),
    (["translate", "T", "a", "--namespace", "none"], "has no namespace 'none'; it has: default"),
    (["translate", "M", "a", "--namespace", "none"], "name one with --bank"),
    (["translate", "M", "a", "--exact-matches"], "has no memory for exact matches: name one with --bank"),
    (["translate", "M", "a", "--bank", "F/none"], "`lle memory` of sentence pairs"),
    (["translate", "M", "a", "--memory", "B"], "there is no --memory: use --bank"),
    (["translate", "F/other", "a", "--bank", "B"], "was encoded by another backbone"),
    (["translate", "F/language", "a"], "holds a language model, and a translator is needed: use lle generate"),
    (["classify", "M", "a"], "holds a translator, and a classifier of texts is needed: use lle translate"),
    (["calibrate", "M", "F/pairs.tsv", *LANGUAGES, "--split", "train"], "has no memory"),
    (["calibrate", "T", "F/pairs.tsv"], "give --source-language and --target-language"),
    (["calibrate", "T", "F/pairs.tsv", "--keep-in-scope", "1"], "taught, a translator: leave it out"),
    (["memory", "F/language", "F/pairs.tsv", *LANGUAGES], "holds a language model"),
    (["memory", "M", "F/none.tsv", *LANGUAGES], "none.tsv"),
    (["memory", "M", "F/gap.tsv", *LANGUAGES], "--skip-broken"),
    (["memory", "M", "F/pairs.tsv", "--source-language", "en", "--target-language", "fr"], "no column 'fr'"),
    (["memory", "M", "F/pairs.tsv", *LANGUAGES, "--split", "test"], "has no split 'test'"),
    (["memory", "F/other", "F/pairs.tsv", "B", *LANGUAGES], "was encoded by another backbone"),
    (["memory", "M", "F/pairs.tsv", "F/texts.txt", *LANGUAGES], "cannot write to the bank"),
    (["memory", "M", "F/pairs.tsv", *LANGUAGES, "--namespace", ""], "a namespace needs a name"),
    (["memory", "owner/name", "F/pairs.tsv", *LANGUAGES], "give the folder of its bank with BANK"),
    (["bank", "build", "M", "F/texts.txt", "F/new"], "use lle memory"),
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
    if any(".po" in argument for argument in arguments):
        pytest.importorskip("polib")
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text("\n \n")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "app.mo").touch()
    (folder / "broken.po").write_text('msgid ""\nmsgstr ""\n\nmsgid "a"\nmsgstr "b\n')
    (folder / "numbers.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    (folder / "taken.csv").write_text("text,translation,predicted_translation\na,b,c\n")
    (folder / "gap.tsv").write_text("en\tde\na\t\n")
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
