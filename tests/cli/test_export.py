"""`lle export` writes a folder that runs, and says what it holds and how to run it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_lle import HistoryBank
from modeling_lle.cli import main as cli
from tests.factories.classifiers import make_taught_classifier
from tests.factories.exports import load_run
from tests.factories.texts import WORD_TOKENIZER


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with a bank."""
    folder = tmp_path_factory.mktemp("export") / "model"
    make_taught_classifier()[0].save_pretrained(folder, save_history=True)
    WORD_TOKENIZER.save_pretrained(folder)
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("named", [False, True])
def test_a_model_is_exported_with_its_bank(saved: Path, tmp_path: Path, named: bool) -> None:
    said = run(saved, tmp_path / "out", "--int8", *(["--bank", saved] if named else []))
    for part in ("model_quantized.onnx", "bank", "differ from the model by", "run.py classify"):
        assert part in said
    loaded = load_run(tmp_path / "out").load(int8=True)
    assert len(loaded.bank) == len(HistoryBank.from_pretrained(saved))


def test_a_bank_is_left_out_if_that_is_asked_for(saved: Path, tmp_path: Path) -> None:
    run(saved, tmp_path / "out", "--no-bank")
    assert not (tmp_path / "out" / "bank").exists()


def test_bad_options_are_told_before_anything_is_written(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists"):
        run(saved, saved)
    with pytest.raises(ValueError, match="--no-bank exports none"):
        run(saved, tmp_path / "out", "--no-bank", "--namespace", "default")
    assert list(tmp_path.iterdir()) == []
