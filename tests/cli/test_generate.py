"""`lle generate`: what goes on with a text, where the text comes from, and turns."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from modeling_lle import HistoryBank, LLETokenizer
from modeling_lle.cli import main as cli
from modeling_lle.cli.conversation import Conversation
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of words, whose lines end with <eos>, and a bank beside it."""
    folder = tmp_path_factory.mktemp("generate")
    model = make_language_model(50, vocab_size=len(WORD_TOKENIZER))
    model.save_pretrained(folder / "model")
    WORD_TOKENIZER.save_pretrained(folder / "model")
    HistoryBank.build(model, WORD_TOKENIZER, ["a b c d", "c d e f"], folder / "bank", source="two lines")
    return folder


def generate(folder: Path, *arguments: object, given: str | None = None) -> str:
    words = ["generate", folder / "model", *arguments]
    result = CliRunner().invoke(cli.app, list(map(str, words)), input=given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def make_conversation() -> Conversation:
    model = make_language_model(50, vocab_size=len(WORD_TOKENIZER))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    return Conversation(model, WORD_TOKENIZER, options)


def test_a_text_may_be_given_in_three_ways(folder: Path) -> None:
    (folder / "text.txt").write_text("a b c")
    options = ("--greedy", "--max-new-tokens", 6)
    said = generate(folder, "a b c", *options)
    assert 1 <= len(said.split()) <= 6
    assert generate(folder, folder / "text.txt", *options) == said
    assert generate(folder, "-", *options, given="a b c") == said


def test_sampling_beams_and_seeds(folder: Path) -> None:
    drawn = [generate(folder, "a", "--seed", seed, "--top-k", 5, "--temperature", 2) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert generate(folder, "a b", "--beams", 3, "--max-new-tokens", 5).strip()
    assert generate(folder, "a b", "--temperature", 0) == generate(folder, "a b", "--greedy")
    often = generate(folder, "a b", "--greedy", "--repetition-penalty", 50, "--max-new-tokens", 4).split()
    assert len(set(often)) == len(often)


def test_the_entries_behind_each_token(folder: Path) -> None:
    said = generate(folder, "a b c d c", "--greedy", "--max-new-tokens", 3, "--explain", "--bank", folder / "bank")
    assert said.count("share of the base") == 3
    assert "two lines:" in said
    assert "ago" in said
    plain = generate(folder, "a b c d c", "--greedy", "--max-new-tokens", 3, "--no-history")
    assert "ago" not in plain


def test_turns_are_read_and_make_entries_and_replies_do_not() -> None:
    conversation = make_conversation()
    conversation.write("a b c\nd")
    conversation.go_on()
    cache: Any = conversation.cache
    assert cache.stream.count.tolist() == [5]  # of <eos> a b c <eos> d
    conversation.write("e f")
    assert conversation.generated == [False] * 6 + [True] * 4 + [False] * 3  # a new line, for a word tokenizer <eos>
    conversation.go_on()
    assert conversation.cache is cache
    assert cache.stream.count.tolist() == [8]
    whole = make_conversation()
    whole.tokens, whole.generated = conversation.tokens[:13], conversation.generated[:13]
    ids, generated = torch.tensor([whole.tokens]), torch.tensor([whole.generated])
    again = whole.model.generate(ids, generated=generated, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert again[0].tolist() == conversation.tokens


def test_a_dialogue(folder: Path) -> None:
    options = ("--interactive", "--greedy", "--max-new-tokens", 3)
    said = generate(folder, *options, given="a b\n/help\n\n/reset\na b\n")
    turns = [turn.strip() for turn in said.split("> ")]
    assert turns[1] == turns[5] != ""  # after the reset, as at first
    assert generate(folder, *options, given="/quit\na b\n").strip() == ">"


def test_ctrl_c_ends_a_turn_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = []

    def interrupt(printer: Any, text: str, stream_end: bool = False) -> None:
        printed.append(text)
        if len(printed) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("modeling_lle.cli.conversation._Printer.on_finalized_text", interrupt)
    before = signal.getsignal(signal.SIGINT)
    said = generate(folder, "--interactive", "--seed", 0, "--max-new-tokens", 500, given="a b c\n")
    assert said.count("> ") == 2
    assert len(printed) < 8
    assert signal.getsignal(signal.SIGINT) is before


def test_control_characters_and_the_end_of_a_text_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = LLETokenizer.train(["x y\x1b[2J z\n" * 9], kind="bpe", vocab_size=300)
    conversation = Conversation(make_language_model(9, vocab_size=len(tokenizer)), tokenizer, {})
    tokens = [*tokenizer("x y\x1b[2J\nz")["input_ids"], tokenizer.eos_token_id]

    monkeypatch.setattr(conversation.model, "stream", lambda ids, **options: iter(tokens))
    conversation.go_on()
    assert capsys.readouterr().out == "x y\\u001b[2J\nz\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "there is no 'nowhere.txt'"),
        ([], "give a TEXT to go on with"),
        (["a", "--greedy", "--top-p", "0.5"], "--top-p and --greedy contradict each other"),
        (["a", "--no-history", "--explain"], "--no-history recalls nothing"),
        (["a", "--interactive", "--beams", "2"], "--beams search for a whole text"),
        (["-", "--interactive"], "--interactive reads what you type"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments: list[str], message: str, folder: Path) -> None:
    result = CliRunner().invoke(cli.app, ["generate", str(folder / "model"), *arguments])
    assert message in str(result.exception)


def test_a_classifier_is_named(tmp_path: Path) -> None:
    make_classifier().save_pretrained(tmp_path)
    WORD_TOKENIZER.save_pretrained(tmp_path)
    result = CliRunner().invoke(cli.app, ["generate", str(tmp_path), "a"])
    assert "holds a classifier of texts, which generates no text: use lle classify" in str(result.exception)
