"""The terminal: nothing that comes from data can steer it, and JSON stays JSON."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modeling_lle import HistoryBank
from modeling_lle.cli import main as cli
from modeling_lle.common.terminal import Formatter, printable, printable_lines
from modeling_lle.evaluation.explanations import format_explanations
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import make_capitals_tokenizer
from tests.factories.texts import WORD_TOKENIZER, make_texts, make_word_tokenizer
from tests.factories.translators import make_translator

EVIL = "\x1b]52;c;evil\x07\x9b2J\u202edeman\u2028\x7f\r"
SHOWN = "\\u001b]52;c;evil\\u0007\\u009b2J\\u202edeman\\u2028\\u007f\\r"


def test_controls_are_shown_and_letters_are_left() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("a\tb\nc\ud800") == "a\\tb\\nc\\ud800"
    assert printable_lines(f"a\tb\n{EVIL}") == f"a\tb\n{SHOWN}"
    for text in ("süß, 漢字 \u3000 नमस्ते \u200d \U0001f469\u200d\U0001f680", ""):
        assert printable(text) == printable_lines(text) == text
    assert json.loads(printable_lines(json.dumps({"a": EVIL}, ensure_ascii=False))) == {"a": EVIL}
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s\n", (EVIL,), None)
    assert Formatter("%(message)s").format(record) == f"{SHOWN}\n"


def shown(folder: Path, *arguments: str) -> str:
    """What a command writes, in which M is the model, B the bank."""
    names = {"M": str(folder / "model"), "B": str(folder / "bank")}
    result = CliRunner().invoke(cli.app, [names.get(word, word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert not [code for code in ("\x1b]", "\x9b", "\x07", "\u202e") if code in result.output]
    return result.output


def save(folder: Path, model: Any, tokenizer: Any) -> None:
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def test_banks_and_explanations(tmp_path: Path) -> None:
    model, tokenizer = make_language_model(), make_word_tokenizer()
    save(tmp_path, model, tokenizer)
    bank = HistoryBank.build(model, tokenizer, make_texts(5, 5), tmp_path / "bank", source=EVIL, namespace=EVIL)
    assert SHOWN in shown(tmp_path, "bank", "search", "M", "B", "a b")
    assert json.loads(shown(tmp_path, "bank", "info", "B", "--json"))["sources"][0]["source"] == EVIL
    assert SHOWN in shown(tmp_path, "bank", "compact", "B")
    assert SHOWN in shown(tmp_path, "explain", "M", "a b a b", "--bank", "B")
    model.attach_history(bank)
    page = format_explanations(model.explain(bank.segments().__next__()[1].tokens[:6].long()), tokenizer, colour=False)
    assert "\x1b" not in page


def test_classifiers(tmp_path: Path) -> None:
    save(tmp_path, make_classifier(), WORD_TOKENIZER)
    told = shown(tmp_path, "learn", "M", "a b", "--label", EVIL, "--new-labels", "--source", EVIL)
    assert "\\u001b" in told
    assert SHOWN in shown(tmp_path, "classify", "M", "a b", "--history-top", "2", "--top", "4")


def test_translators(tmp_path: Path) -> None:
    tokenizer = make_capitals_tokenizer()
    save(tmp_path, make_translator(tokenizer), tokenizer)
    (tmp_path / "pairs.json").write_text(json.dumps({"source": "ab", "target": EVIL}))
    languages = "--source-language", "en", "--target-language", "de"
    shown(tmp_path, "memory", "M", str(tmp_path / "pairs.json"), "B", *languages, "--source", EVIL)
    told = shown(
        tmp_path, "translate", "M", "ab", "--bank", "B", "--exact-matches", "--beams", "1", "--history-top", "1"
    )
    assert SHOWN in told


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["lle", "bank", "info", str(tmp_path / EVIL)])
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    with pytest.raises(SystemExit):
        cli.main()
    error = capsys.readouterr().err
    assert SHOWN in error
    assert "\x07" not in error


def test_a_terminated_command_cleans_up() -> None:
    code = (
        "import os, signal, typer; from modeling_lle.cli import main as cli\n"
        "cli.app = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "try:\n    cli.main()\nfinally:\n    print('cleaned up', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("cleaned up\n", 143)
