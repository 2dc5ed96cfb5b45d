"""A text that is not new to a model is noticed."""

import logging
from pathlib import Path

import numpy as np
import pytest

from modeling_lle import Attachment, HistoryBank
from modeling_lle.data.text import encode_texts
from modeling_lle.training.overlap import SKETCH, Seen, save_sketch
from tests.factories.classifiers import make_taught_classifier
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, WORDS


def make_lines(seed: int, lines: int = 40) -> list[str]:
    """Lines of random words, too many for two seeds to share a run of 16."""
    words = np.random.default_rng(seed).choice(WORDS, (lines, 12))
    return [" ".join(line) for line in words]


def encode(lines: list[str]) -> np.ndarray:
    return np.array([token for row in encode_texts(lines, WORD_TOKENIZER) for token in row])


def test_the_training_text_is_noticed_and_new_text_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_sketch(tmp_path, encode(make_lines(0)), WORD_TOKENIZER)
    seen = Seen(tmp_path, None, WORD_TOKENIZER)
    with caplog.at_level(logging.WARNING):
        assert seen.tell(encode(make_lines(1)), "new.txt") == {"training": 0.0}
        assert not caplog.records
        assert seen.tell(encode([" ".join(make_lines(0))]), "'old.txt'") == {"training": 1.0}  # read by document
    assert "'old.txt' is not new to the model (100% of it in the training text of" in caplog.text


def test_what_the_bank_holds_is_noticed_until_it_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_language_model()
    bank = HistoryBank.build(model, WORD_TOKENIZER, make_lines(0), tmp_path / "bank", source="mine")
    bank.add(make_lines(1), model=model, tokenizer=WORD_TOKENIZER, source="ann", namespace="ann")
    both = encode([*make_lines(0), *make_lines(2)])
    assert Seen(tmp_path, Attachment(bank), WORD_TOKENIZER).tell(both, "it")["bank"] == pytest.approx(0.5, abs=0.03)
    assert "in the bank" in caplog.text
    assert Seen(tmp_path, Attachment(bank, ("ann",)), WORD_TOKENIZER).tell(both, "it") == {"bank": 0.0}
    bank.forget(source="mine")
    assert Seen(tmp_path, Attachment(bank), WORD_TOKENIZER).tell(both, "it") == {"bank": 0.0}


def test_texts_of_a_classifier_are_compared_as_wholes(tmp_path: Path) -> None:
    model, texts, _ = make_taught_classifier()
    save_sketch(tmp_path, texts[:4], WORD_TOKENIZER)
    shares = Seen(tmp_path, model.history).tell([*texts, "another text"], "it")
    assert shares == {
        "training": pytest.approx(4 / (len(texts) + 1)),
        "bank": pytest.approx(len(texts) / (len(texts) + 1)),
    }


def test_a_model_without_a_sketch_tells_nothing_of_its_training(tmp_path: Path) -> None:
    save_sketch(tmp_path, encode(make_lines(0)), WORD_TOKENIZER)
    save_sketch(tmp_path, encode(["a b"]), WORD_TOKENIZER)  # too short to be compared
    assert not (tmp_path / SKETCH).exists()
    assert Seen(tmp_path, None, WORD_TOKENIZER).tell(encode(make_lines(0)), "it") == {}
