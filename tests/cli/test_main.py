"""The command line from end to end, on a few lines of text."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from modeling_lle import LLEForCausalLM
from modeling_lle.cli import held_out
from modeling_lle.cli import main as cli
from modeling_lle.cli.options import Precision
from modeling_lle.common.precision import PRECISIONS
from modeling_lle.configuration_sections import MatchesConfig
from tests.factories.precisions import record_precisions

LINES = [f"the cat {n % 7} sat on the mat {n % 3} and the dog {n % 5} slept\n" for n in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text files, a recipe and what `lle train` made of them."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "texts").mkdir()
    for split, lines in (("train", LINES), ("valid", LINES[:100]), ("test", LINES[100:160])):
        (folder / "texts" / f"{split}.txt").write_text("".join(lines))
    recipe = {
        "data": {"source": str(folder / "texts")},
        "tokenizer": {"kind": "word"},
        "model": {"hidden_size": 16, "history": {"stream": {"window": 100}}},
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": 30,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 2,
            "segment_length": 20,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run("train", folder / "recipe.yaml", "--set", "model.num_hidden_layers=1")
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_train_writes_everything(folder: Path) -> None:
    files = {path.name for path in (folder / "run").iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "recipe.yaml", "metrics.json"}
    assert json.loads((folder / "run" / "config.json").read_text())["backbone"]["num_hidden_layers"] == 1
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    found = metrics["calibration"]
    assert found["after_nats"] <= found["before_nats"]


def test_evaluate_shows_base_and_history_and_writes_results(folder: Path) -> None:
    results = folder / "results" / "cat.json"
    output = run("evaluate", folder / "run", folder / "texts", "--output", folder / "seen", "--results", results)
    assert "perplexity / word" in output
    assert (folder / "seen" / "evaluation.png").stat().st_size > 10_000
    measured = json.loads((folder / "seen" / "evaluation.json").read_text())["metrics"]
    released = json.loads(results.read_text())["metrics"]
    assert released["base_test_ppl"] == measured["base_word_ppl"]
    assert released["stream_test_ppl"] == measured["history_word_ppl"]
    assert released["parameters"] == json.loads((folder / "run" / "metrics.json").read_text())["parameters"]


def test_card_is_written_from_results(folder: Path) -> None:
    results = folder / "cat.json"
    run("evaluate", folder / "run", folder / "texts", "--results", results)
    run("card", folder / "run", results, "--repo-id", "someone/cat", "--dataset", "someone/cats")
    card = (folder / "run" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "num_hidden_layers: 1" in card


def test_calibrate_saves_the_numbers(folder: Path) -> None:
    place = folder / "calibrated"
    options = ("calibrate", folder / "run", folder / "texts", "--output", place, "--limit-tokens", 500)
    output = run(*options, "--json")
    found = json.loads(output[output.index("{") :])
    saved = json.loads((place / "config.json").read_text())["history"]["stream"]
    kept = "before" if found["kept_old_values"] else "after"
    assert found["parameters"]["stream.sharpness"][kept] == saved["sharpness"]
    shown = run(*options)
    assert re.search(r"stream.gate +(-?[\d.e+-]+ ){4}", shown)
    assert re.search(r"Perplexity of the \d+ tokens after the \d+ tokens that were fitted on: ", shown)
    assert "matches." not in shown


@pytest.mark.parametrize("better", [True, False])
def test_calibrate_keeps_exact_matches_only_if_they_predict_better(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    def measure(model: LLEForCausalLM, batches: Any) -> held_out.Measured:
        nats = 2.0 if bool(model.config.matches.window) == better else 3.0
        return held_out.Measured(
            nats, 0.0, {"base_nats": 4.0, "nats": nats, "base_perplexity": 9.0, "perplexity": 8.0}
        )

    monkeypatch.setattr(held_out, "measure_tokens", measure)
    monkeypatch.setattr(held_out, "FAR", math.inf)  # the few texts of this test are fitted all too well
    options = ("calibrate", folder / "run", folder / "texts", "--output", tmp_path / "new", "--limit-tokens", 300)
    output = run(*options, "--matches", 900, "--json")
    found = json.loads(output[output.index("{") :])
    assert found["parameters"].get("matches.window") == ({"before": 0, "after": 900} if better else None)
    matches = json.loads((tmp_path / "new" / "config.json").read_text())["history"]["matches"]
    assert matches["window"] == (900 if better else 0)
    assert (matches == dataclasses.asdict(MatchesConfig())) != better


def test_statistics_switch_the_update_on(folder: Path) -> None:
    output = run("statistics", folder / "run", folder / "texts", "--scope", "head", "--output", folder / "updating")
    assert "history.update.scope is 'head'" in output
    results = folder / "updating.json"
    shutil.copy(folder / "run" / "metrics.json", folder / "updating")
    output = run("evaluate", folder / "updating", folder / "texts", "--results", results)
    assert re.search(r"base +stream +update +all +ratio", output)
    released = json.loads(results.read_text())["metrics"]
    assert {"base_test_ppl", "stream_test_ppl", "update_test_ppl", "all_test_ppl"} <= set(released)


def test_every_command_that_computes_takes_a_precision() -> None:
    app: Any = typer.main.get_command(cli.app)
    found = {**app.commands, **{f"bank {name}": command for name, command in app.commands["bank"].commands.items()}}
    computing = {name for name, command in found.items() if "precision" in {part.name for part in command.params}}
    others = {"train", "card", "export", "doctor", "forget", "bank"} | {
        f"bank {name}" for name in ("forget", "info", "verify", "compact", "copy")
    }
    assert set(found) - computing == others | {"bank export", "bank import"}  # a recipe says it for lle train
    assert [precision.value for precision in Precision] == list(PRECISIONS)


def test_the_precision_is_passed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = record_precisions(monkeypatch)
    place = folder / "precision"
    for command in (
        ("evaluate", folder / "run", folder / "texts"),
        ("calibrate", folder / "run", folder / "texts", "--output", place, "--limit-tokens", 100),
        ("statistics", folder / "run", folder / "texts", "--scope", "all", "--output", place, "--limit-tokens", 100),
        ("explain", folder / "run", "the cat"),
    ):
        for precision in ("float32", "bfloat16"):
            run(*command, "--precision", precision)
            assert seen == [precision]
            seen.clear()
    run("explain", folder / "run", "the cat")
    assert seen == ["auto"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "no recipe at nowhere.yaml"),
        (["train", "{recipe}", "--set", "model.hiden_size=8"], "did you mean 'hidden_size'"),
        (["evaluate", "{run}", "{folder}", "--split", "tets"], "tets"),
        (["evaluate", "{run}", "nowhere.txt"], "nowhere.txt"),
        (["evaluate", "{folder}/nothing", "{folder}"], "nothing"),
    ],
)
def test_errors_are_one_line(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"recipe": folder / "recipe.yaml", "run": folder / "run", "folder": folder / "texts"}
    monkeypatch.setattr("sys.argv", ["lle", *(argument.format(**names) for argument in arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), r"lle: out of memory \(an allocation failed\): give smaller batches"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), "lle: out of memory"),
        (RuntimeError("could not create a primitive"), "lle: out of memory"),  # as oneDNN says it
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), "is the disk full.*--resume"),
        (RuntimeError("could not create a primitive descriptor for the LSTM"), None),
        (RuntimeError("a bug"), None),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    error: Exception, message: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit if message else RuntimeError):
        cli.main()
    assert re.search(message or "^$", capsys.readouterr().err)
