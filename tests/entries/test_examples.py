"""Labelled examples as entries: rows with a text and a label, each text once, also where two processes teach."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank.files import BankError
from modeling_lle.bank.places import place_of
from modeling_lle.entries import examples as examples_module
from modeling_lle.entries.examples import forget, held_out
from modeling_lle.history.label_rule import SINGLE
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER

ROWS = [
    {"text": "a b", "label": "label-0"},
    {"text": "c d", "label": "label-2"},
    {"text": "a b", "label": "label-0"},
]


def test_a_bank_is_built_of_rows() -> None:
    model = make_classifier()
    bank = HistoryBank.build(model, WORD_TOKENIZER, ROWS, source="rows")
    assert model.entry_kind.outcome == model.outcome == "label"
    assert [(item.source, item.row, item.columns) for item in bank.documents()] == [
        ("rows", 0, {"text": "a b", "label": "label-0"}),
        ("rows", 1, {"text": "c d", "label": "label-2"}),
    ]
    entries = bank.describe(range(2))
    names = [model.entry_kind.name(entry.outcome, bank, WORD_TOKENIZER) for entry in entries]
    assert names == ["label-0", "label-2"]
    taught = make_classifier()
    taught.learn(["a b", "c d"], ["label-0", "label-2"], WORD_TOKENIZER)
    for one, other in zip(bank.snapshot().entries(), taught.history_bank.snapshot().entries(), strict=True):
        assert torch.equal(one.keys, other.keys)
    rows = [{"sentence": "e f", "intent": "label-1"}]
    assert bank.add(rows, text_column="sentence", label_column="intent", namespace="other") == 1
    assert bank.labels == ("label-0", "label-2", "label-1")


def test_rows_that_are_no_examples_are_named() -> None:
    model = make_classifier()
    bank = HistoryBank.build(model, WORD_TOKENIZER, ROWS)
    for rows, message in [
        (["a"], "row 0 is str: give mappings with the columns text, label"),
        ([ROWS[0], {"text": "e", "intent": "x"}], "row 1 has no column 'label'; its columns are: text, intent"),
        ([{"text": " ", "label": "label-0"}], "text 0 is ' ': an example needs a text that is not empty"),
        ([{"text": "e", "label": "new"}], r"the label 'new' of text 0, 'e', is new.*: pass new_labels=True"),
        ([{"text": "a b", "label": "label-1"}], r"has the text 'a b' with the label label-0.*: pass relabel=True"),
    ]:
        with pytest.raises(ValueError, match=message):
            bank.add(rows)
    assert len(bank) == 2
    assert bank.add([{"text": "a b", "label": "new"}], new_labels=True, relabel=True) == 1
    assert sorted(item.columns["label"] for item in bank.documents()) == ["label-2", "new"]


def test_examples_keep_where_they_come_from() -> None:
    model = make_classifier()
    model.learn(["a b", "c d"], ["label-0", "label-2"], WORD_TOKENIZER, places=[{"file": "t.csv", "line": 2}, {}])
    bank = model.history_bank
    rows = [{"text": "e f", "label": "label-1", "file": "u.csv", "line": np.int32(7), "other": 1}]
    assert bank.add(rows) == 1
    placed = [{"file": "t.csv", "line": 2}, {}, {"file": "u.csv", "line": 7}]
    assert [{**item.columns, "text": "", "label": ""} for item in bank.documents()] == [
        {"text": "", "label": "", **place} for place in placed
    ]
    found = [place_of(item.source, item.row, item.columns) for item in bank.documents()]
    assert found == ["t.csv:2", "taught-1:1", "u.csv:7"]


def test_a_bank_of_tokens_takes_no_examples() -> None:
    model, bank = make_classifier(), HistoryBank.build(make_language_model(), WORD_TOKENIZER, ["a b"])
    with pytest.raises(BankError, match="holds tokens, and examples have labels as outcomes: open"):
        model.entry_kind.add(bank, ROWS, model, WORD_TOKENIZER)


def test_texts_of_a_bank_are_left_out_of_what_is_fitted_on(caplog: pytest.LogCaptureFixture) -> None:
    bank = HistoryBank.build(make_classifier(), WORD_TOKENIZER, ROWS)
    assert held_out(bank, ["e", "a b", "f"]) == [0, 2]
    assert "1 of the 3 texts are in the bank, and left out" in caplog.text
    bank.forget(where={"text": "a b"})
    assert held_out(bank, ["a b"]) == [0]
    with pytest.raises(ValueError, match="has all of these texts: give held-out ones"):
        held_out(bank, ["c d"])


def test_what_cannot_be_taken_back_is_named() -> None:
    bank = HistoryBank.build(make_classifier(), WORD_TOKENIZER, ROWS)
    with pytest.raises(BankError, match="has no example with the text 'e'"):
        forget(bank, "e", None, SINGLE)
    with pytest.raises(BankError, match=r"has no example with the label 'label-1' \(did you mean 'label-"):
        forget(bank, None, "label-1", SINGLE)
    with pytest.raises(BankError, match="no entry for which all of this holds: the condition"):
        forget(bank, ["a b"], "label-2", SINGLE)
    with pytest.raises(ValueError, match="give texts, label, ids, source or namespace"):
        forget(bank, None, None, SINGLE)
    assert forget(bank, ["a b", "c d"], "label-2", SINGLE) == 1
    assert [item.columns["text"] for item in bank.documents()] == ["a b"]


def test_two_handles_teach_a_text_one_label(tmp_path: Path) -> None:
    one, other = make_classifier(), make_classifier()
    one.learn(["a"], ["label-0"], WORD_TOKENIZER)
    one.history_bank.save_pretrained(tmp_path)
    one.attach_history(HistoryBank.open(tmp_path), tokenizer=WORD_TOKENIZER)
    other.attach_history(HistoryBank.open(tmp_path), tokenizer=WORD_TOKENIZER)
    assert one.learn(["b", "c"], ["label-0", "label-1"]) == 2
    with pytest.raises(ValueError, match="the bank has the text 'b' with the label label-0, text 0 has label-1"):
        other.learn(["b"], ["label-1"])
    assert other.learn(["c", "d"], ["label-1", "label-2"]) == 1
    assert [item.source for item in other.history_bank.manifest.added] == ["taught-1", "taught-2", "taught-3"]


def test_a_text_that_is_taught_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process teaches while this one encodes: what it checked before it had the lock is checked again."""
    one, other = make_classifier(), make_classifier()
    one.learn(["a"], ["label-0"], WORD_TOKENIZER)
    one.history_bank.save_pretrained(tmp_path)
    for model in (one, other):
        model.attach_history(HistoryBank.open(tmp_path), tokenizer=WORD_TOKENIZER)
    encode, calls = examples_module._segment, 0

    def meanwhile(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            other.learn(["b"], ["label-0"], new_labels=True)
        return encode(*given)

    monkeypatch.setattr(examples_module, "_segment", meanwhile)
    assert one.learn(["b", "c"], ["label-0", "label-1"]) == 1
    calls = -5
    sources = [(item.source, item.rows) for item in one.history_bank.manifest.added]
    assert sources == [("taught-1", 1), ("taught-2", 1), ("taught-3", 1)]
    calls = 0
    other.forget(["b"])
    one.history_bank.refresh()
    with pytest.raises(ValueError, match="has the text 'b' with the label label-0"):
        one.learn(["b"], ["label-1"])


def test_a_classifier_says_that_nothing_fits() -> None:
    model, texts, labels = make_taught_classifier(6)
    other = next(label for label in labels if label != labels[0])
    with pytest.raises(BankError, match="no entry for which all of this holds: the condition"):
        model.forget([texts[0]], label=other)
