"""The commands work on a folder whose backbone is a model of transformers."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from modeling_lle.cli import main as cli
from tests.factories.hub_models import make_wrapped_model
from tests.factories.texts import VOCAB, WORDS, make_texts, make_word_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    model = make_wrapped_model("bamba", window=30)
    with torch.no_grad():
        model.lm_head.bias[: VOCAB - len(WORDS)] = -100  # it generates words, and none of the special tokens
    model.save_pretrained(folder / "model")
    make_word_tokenizer().save_pretrained(folder / "model")
    (folder / "texts.txt").write_text("\n".join(make_texts(30, 12)) + "\n")
    return folder


def run(folder: Path, command: str, code: int = 0) -> str:
    arguments = [word.replace("F/", f"{folder}/") for word in command.split()]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout + result.stderr.rpartition("\r")[2] + str(result.exception or "")


def test_build_generate_explain_calibrate_and_evaluate(folder: Path) -> None:
    run(folder, "bank build F/model F/texts.txt F/bank")
    words = run(folder, "generate F/model a --greedy --max-new-tokens 4 --bank F/bank").partition("\n")[0].split()
    assert words
    assert set(words) <= set(WORDS)
    assert "texts.txt:" in run(folder, "explain F/model F/texts.txt --bank F/bank")
    run(folder, "calibrate F/model F/texts.txt --bank F/bank")
    assert "perplexity" in run(folder, "evaluate F/model F/texts.txt --bank F/bank").lower()


def test_export_says_why_it_cannot(folder: Path) -> None:
    pytest.importorskip("onnx")
    said = run(folder, "export F/model F/exported", code=1)
    assert "backbone is a model of transformers of the type 'bamba'" in said
    assert not (folder / "exported").exists()
