"""Models and banks that a command names, and what is said if they are not there, without waiting for the Hub."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modeling_lle.cli import main as cli


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["lle", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_only_what_may_be_on_the_hub_is_looked_up_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: Any, timeout: float, **__: Any) -> None:
        assert timeout <= 5
        asked.append(timeout)
        raise OSError("no route")

    asked: list[float] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").touch()
    assert "holds no 'mien'; near names there: mine" in run(monkeypatch, capsys, "classify", "runs/mien", "a")
    assert "did you mean 'runs/mine'?" in run(monkeypatch, capsys, "evaluate", "runs", "texts")
    assert "there is no bank at '/nobank'" in run(
        monkeypatch, capsys, "explain", "runs/mine", "a", "--bank", "/nobank"
    )
    assert "there is no bank at 'runs'" in run(monkeypatch, capsys, "translate", "runs/mine", "a", "--bank", "runs")
    assert not asked
    assert "the Hub does not answer (no route)" in run(monkeypatch, capsys, "calibrate", "owner/name", "texts")
    assert len(asked) == 1


def test_an_interrupted_command_says_what_is_kept_and_renamed_options_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "config.json").touch()
    monkeypatch.setattr("modeling_lle.saved.task_in", interrupt)
    for command, kept in (("calibrate", "the model is unchanged"), ("evaluate", "no file was written")):
        result = CliRunner().invoke(cli.app, [command, str(tmp_path), "texts"])
        assert (result.exit_code, result.stderr) == (130, f"lle: interrupted; {kept}.\n")
    result = CliRunner().invoke(cli.app, ["bank", "build", str(tmp_path), "texts", str(tmp_path / "bank")])
    assert "what was added stays; repeat the command" in result.stderr
