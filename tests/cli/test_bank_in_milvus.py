"""Commands with the address of a bank in place of its folder."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_lle import HistoryBank
from modeling_lle.cli import main as cli
from modeling_lle.saved import bank_place, remember, teach
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.milvus_places import in_file
from tests.factories.pairs import WORD_PAIRS, WORD_PAIRS_TOKENIZER
from tests.factories.texts import WORD_TOKENIZER
from tests.factories.translators import make_word_translator


@pytest.fixture
def place(tmp_path: Path) -> str:
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    return in_file(tmp_path).format("mine")


def lle(*words: object) -> str:
    result = CliRunner().invoke(cli.app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_language_model(place: str, tmp_path: Path) -> None:
    model, texts = tmp_path / "model", tmp_path / "texts.txt"
    make_language_model(50, vocab_size=len(WORD_TOKENIZER)).save_pretrained(model)
    WORD_TOKENIZER.save_pretrained(model)
    texts.write_text("a b c d\nc d e f\n")
    lle("bank", "build", model, texts, place, "--source", "lines")
    entries = len(HistoryBank.open(place))
    assert f"{place}: {entries} entries" in lle("bank", "build", model, texts, place, "--source", "lines")  # resumes
    assert f"{entries} entries added" in lle("bank", "add", model, texts, place, "--source", "more")
    assert "source more, namespace default: 2 rows read" in lle("bank", "info", place)
    assert lle("bank", "search", model, place, "a b").count("texts.txt:") == 8
    assert lle("generate", model, "a b", "--bank", place, "--max-new-tokens", 4).strip()
    assert f"{entries // 2} entries forgotten" in lle("bank", "forget", place, "--source", "more", "--where", "line=1")
    lle("bank", "forget", place, "--source", "more", "--compact")
    assert f"{place} is whole: {entries} entries." in lle("bank", "verify", place)


def test_a_classifier_is_taught(place: str) -> None:
    where = bank_place("nowhere", place)
    for texts in (["a b", "c d"], ["e f"]):
        model = make_classifier()
        assert teach(model, WORD_TOKENIZER, where, texts, ["label-1"] * len(texts)) == len(texts)
        assert model.history_bank is not None
        assert model.history_bank.name == place
    assert len(HistoryBank.open(place)) == 3


def test_a_memory_of_a_translator(place: str) -> None:
    model = make_word_translator()
    added = [remember(model, WORD_PAIRS_TOKENIZER, Path(place), part) for part in (WORD_PAIRS[:2], WORD_PAIRS[2:])]
    assert added == [2, len(WORD_PAIRS) - 2]
    assert model.history_bank is not None
    assert model.history_bank.name == place


def test_a_wrong_address_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    make_language_model().save_pretrained(tmp_path)
    result = CliRunner().invoke(cli.app, ["generate", str(tmp_path), "a", "--bank", "milvus://ann:secret@box/mine"])
    assert result.exit_code != 0
    assert "LLE_MILVUS_TOKEN" in str(result.exception) + result.output
    assert "secret" not in result.output
