"""`lle bank` and `lle explain` from end to end, on a few lines of text."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from modeling_lle import HistoryBank
from modeling_lle.cli import main as cli
from modeling_lle.entries import texts as texts_module
from tests.factories.language_models import make_language_model
from tests.factories.precisions import record_precisions
from tests.factories.texts import make_texts, make_word_tokenizer

TEXTS = make_texts(20, 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_language_model().save_pretrained(tmp_path / "model")
    make_word_tokenizer().save_pretrained(tmp_path / "model")
    rows = [json.dumps({"text": text, "user": "ann" if n % 2 else "bob"}) for n, text in enumerate(TEXTS)]
    (tmp_path / "train.json").write_text("\n".join(rows))
    (tmp_path / "more.txt").write_text("a b a b\nc d\n")
    return tmp_path


def run(folder: Path, command: str) -> str:
    """Runs a command line in which M is the model, B the bank, and F the folder."""
    names = {"M": folder / "model", "B": folder / "bank"}
    arguments = [str(names.get(word, word)).replace("F/", f"{folder}/") for word in command.split()]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_build_add_search_forget_and_compact(folder: Path) -> None:
    entries = sum(len(text.split()) + 1 for text in TEXTS)
    assert f"{entries} entries" in run(folder, "bank build M F/train.json B --source first")
    assert "8 entries added" in run(folder, "bank add M F/more.txt B --source more --namespace mine")
    info = json.loads(run(folder, "bank info B --json"))
    assert info["entries"] == entries + 8
    assert {item["source"]: item["rows"] for item in info["sources"]} == {"first": 20, "more": 2}
    found = run(folder, "bank search M B a --neighbours 3 --namespace mine")
    assert len(found.splitlines()) == 3
    assert all("more.txt:" in line for line in found.splitlines())
    assert "is whole" in run(folder, "bank verify B")
    mine = sum(len(text.split()) + 1 for text in TEXTS[1::2])
    assert f"{mine} entries forgotten" in run(folder, "bank forget B --where user=ann")
    assert "1 entry forgotten" in run(folder, f"bank forget B --ids {entries}")
    assert "MiB freed" in run(folder, "bank compact B")
    assert "7 entries forgotten" in run(folder, "bank forget B --source more --compact")
    assert len(HistoryBank.open(folder / "bank")) == entries - mine


def test_a_bank_is_built_with_projected_keys(folder: Path) -> None:
    run(folder, "bank build M F/train.json B --source first --key-width 3")
    assert "Its keys are states that are projected to the width 3." in run(folder, "bank info B")
    assert "0 entries added" in run(folder, "bank add M F/train.json B --source first --resume")
    run(folder, "bank build M F/more.txt B --source more --key-width 3")
    arguments = ["bank", "build", str(folder / "model"), str(folder / "more.txt"), str(folder / "bank")]
    with pytest.raises(ValueError, match="was begun with keys of the width 3: leave key_width out"):
        CliRunner().invoke(cli.app, [*arguments, "--key-width", "4"], catch_exceptions=False)


def test_ranks_share_the_parts_of_a_bank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "SEGMENT_ENTRIES", 20)
    run(folder, "bank build M F/train.json F/alone --source first")
    encode, seen = texts_module._encode, []

    def killed(*arguments: object) -> object:
        seen.append(arguments)
        if len(seen) == 3:
            raise OSError("killed")
        return encode(*arguments)

    monkeypatch.setattr(texts_module, "_encode", killed)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OSError, match="killed"):
        run(folder, "bank build M F/train.json B --source first")
    assert (folder / "bank" / "parts").is_dir()
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        run(folder, "bank build M F/train.json B --source first")
    monkeypatch.setenv("WORLD_SIZE", "1")
    for _ in range(2):
        run(folder, "bank add M F/more.txt B --source more --parts F/parts --streaming")
    run(folder, "bank add M F/more.txt F/alone --source more")
    assert list(HistoryBank.open(folder / "bank").documents()) == list(HistoryBank.open(folder / "alone").documents())
    assert not (folder / "bank" / "parts").exists()
    assert not (folder / "parts").exists()


def test_the_precision_is_passed_on_to_the_thread_that_encodes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, inside = record_precisions(monkeypatch), []
    segment = texts_module._encode

    def watched(*arguments: object) -> object:
        inside.append(torch.is_autocast_enabled("cpu"))
        return segment(*arguments)

    monkeypatch.setattr(texts_module, "_encode", watched)
    run(folder, "bank build M F/train.json B --source first --precision float32")
    run(folder, "bank add M F/more.txt B --source more --precision bfloat16")
    run(folder, "bank search M B a --precision float32")
    assert seen == ["float32", "bfloat16", "float32"]
    assert inside == [False, True]


def test_building_again_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "SEGMENT_ENTRIES", 20)
    done = 0
    segment = texts_module._encode

    def interrupted(*arguments: object) -> object:
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        return segment(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(texts_module, "_encode", interrupted)
        with pytest.raises((KeyboardInterrupt, AssertionError)):
            run(folder, "bank build M F/train.json B")
    assert len(HistoryBank.open(folder / "bank")) == 40
    run(folder, "bank build M F/train.json B")
    assert len(HistoryBank.open(folder / "bank")) == sum(len(text.split()) + 1 for text in TEXTS)


def test_parquet_and_back(folder: Path) -> None:
    run(folder, "bank build M F/train.json B")
    run(folder, "bank forget B --ids 3,4")
    assert "entries written" in run(folder, "bank export B F/bank.parquet")
    run(folder, "bank import F/bank.parquet F/again")
    before, after = HistoryBank.open(folder / "bank"), HistoryBank.open(folder / "again")
    assert len(after) == len(before)
    first = before.describe([n for n in range(len(before) + 2) if n not in (3, 4)])
    for one, other in zip(first, after.describe(range(len(after))), strict=True):
        assert (one.outcome, one.before, one.after, one.columns) == (
            other.outcome,
            other.before,
            other.after,
            other.columns,
        )


def test_calibrate_evaluate_and_explain_with_a_bank(folder: Path) -> None:
    run(folder, "bank build M F/train.json B")
    (folder / "new.txt").write_text("\n".join(make_texts(20, 6, seed=8)))
    output = run(folder, "calibrate M F/new.txt --bank B --output F/fitted --json")
    fitted = json.loads(output[output.index("{") :])
    saved = json.loads((folder / "fitted" / "config.json").read_text())["history"]
    kept = "before" if fitted["kept_old_values"] else "after"
    assert fitted["parameters"]["bank.gate"][kept] == saved["bank"]["gate"]
    assert fitted["parameters"]["stream.recency"][kept] == saved["stream"]["recency"]
    assert fitted["parameters"]["bank.sharpness"]["after"] != fitted["parameters"]["bank.sharpness"]["before"]
    assert set(fitted["held_out"]["after"]) == {"nats", "base_nats", "perplexity", "base_perplexity"}
    output = run(folder, "evaluate F/fitted F/more.txt --bank B")
    first, second, *_ = output.splitlines()
    assert first.endswith("more.txt.")
    assert second.split() == ["base", "stream", "bank", "both", "ratio"]
    output = run(folder, "explain M F/more.txt --bank B --top 2 --output F/page.html")
    assert "train.json:" in output
    assert "tokens ago" in output
    assert "train.json:" in (folder / "page.html").read_text()
    text = " ".join(["a b"] * 100)  # longer than the name of a file can be
    result = CliRunner().invoke(cli.app, ["explain", str(folder / "model"), text], catch_exceptions=False)
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bank info F/none", "there is no bank at"),
        ("bank add M F/more.txt B --source first", "go on with --resume"),
        ("bank forget B", "nothing to forget"),
        ("bank forget B --ids 3,x", "ids are comma-separated numbers"),
        ("bank forget B --where user", "write column=value"),
        (
            "bank forget B --where usr=ann",
            "no column 'usr' (did you mean 'user'?); its columns are: file, line, row, user",
        ),
        ("bank forget B --where user=eve", "no entry for which all of this holds"),
        ("bank forget B --source nothing", "no source 'nothing'; it has: first"),
        ("bank search M B a --namespace x", "no namespace 'x'"),
        ("bank import F/more.txt F/other", "more.txt is no Parquet file"),
        ("explain M text --bank F/none", "`lle bank build` makes one"),
        ("explain M F/none.txt", "holds no 'none.txt'"),
        ("bank add M F/more.txt B --as first", "there is no --as: use --source"),
    ],
)
def test_errors_are_one_line(
    folder: Path,
    arguments: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(folder, "bank build M F/train.json B --source first")
    names = {"M": folder / "model", "B": folder / "bank"}
    words = [str(names.get(word, word)).replace("F/", f"{folder}/") for word in arguments.split()]
    monkeypatch.setattr("sys.argv", ["lle", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
