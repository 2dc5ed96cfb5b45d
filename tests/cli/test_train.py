"""`lle train` on files, without a recipe."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from modeling_lle.cli import main as cli
from modeling_lle.cli import train as command


def lle(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_files_become_a_model_by_a_recipe_that_gives_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_lle.training.planning.seconds_of_a_step", lambda recipe, patience: 0.2)
    folder, out = tmp_path / "notes", tmp_path / "out"
    folder.mkdir()
    for number in range(12):
        lines = [f"the cat {number + line % 7} sat on the mat {line % 3}" for line in range(12)]
        (folder / f"note{number}.md").write_text("\n".join(lines))
    (folder / "old.txt").write_bytes(b"caf\xe9 au lait")
    said = lle("train", "--data", folder, "--minutes", 0.1, "--output", out)
    assert "12 files taken" in said
    assert "old.txt" in said
    assert "task: text-generation" in said
    assert "neither trained on nor fitted on: perplexity" in said
    assert f"lle evaluate {out} FILES" in said
    assert (out / "README.md").is_file()
    assert not list(out.glob("checkpoint-*"))
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["data"]["source"] == str(folder)
    lle("train", out / "recipe.yaml", "--output", tmp_path / "again")
    first, again = (json.loads((place / "metrics.json").read_text()) for place in (out, tmp_path / "again"))
    assert first["test"] == pytest.approx(again["test"])
    with pytest.raises(FileExistsError, match=r"trained model.*--output.*--overwrite"):
        lle("train", out / "recipe.yaml")


def test_what_is_kept_of_a_stopped_training(tmp_path: Path) -> None:
    assert "nothing of the training is kept" in command._kept(tmp_path)
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{}")
    assert "checkpoint-4 is kept" in command._kept(tmp_path)
    assert "--resume" in command._kept(tmp_path)


def test_nothing_to_resume_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command._check_place(tmp_path, resume=True, overwrite=False)
    assert f"no checkpoint in {tmp_path} to resume from: training begins anew" in capsys.readouterr().err


def test_a_text_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("text")
    with pytest.raises(ValueError, match="give --data"):
        lle("train", tmp_path / "mine.txt")
