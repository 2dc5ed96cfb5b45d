"""Where entries come from: file and line, of an entry within a long document its own line, else source and row."""

from pathlib import Path

import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank.places import LineBreaks, place_of
from modeling_lle.data import load_texts
from modeling_lle.entries import texts as texts_module
from modeling_lle.history.explanation import as_values
from modeling_lle.tokenization import LLETokenizer
from tests.factories.language_models import make_language_model


def test_a_place_is_file_and_line_or_source_and_row() -> None:
    assert place_of("s", 3, {"file": "a.txt", "line": 7}) == "a.txt:7"
    assert place_of("s", 3, {"file": "a.txt", "line": 7}, further=2) == "a.txt:9"
    assert place_of("s", 3, {"file": "a.parquet", "row_in_file": 4}) == "a.parquet, row 4"
    for unknown in ({}, {"file": "a.mo"}, {"line": 7}, {"file": "a.txt", "line": "7"}):
        assert place_of("s", 3, unknown) == "s:3"


def test_line_breaks_are_counted_among_tokens() -> None:
    for kind in ("bpe", "word"):
        tokenizer = LLETokenizer.train(["a b\nc\n\nd"], kind=kind, **({"vocab_size": 300} if kind == "bpe" else {}))
        breaks = LineBreaks(tokenizer)
        ids = torch.tensor(tokenizer("a b\nc\n\nd", add_special_tokens=False)["input_ids"])
        assert breaks.count(ids) == breaks.count(ids) == 3
        assert breaks.count(ids[:1]) == breaks.count(ids[:0]) == breaks.count(torch.tensor([*ids, -1])) == 0


def test_entries_within_a_document_have_their_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "SEGMENT_ENTRIES", 8)  # the document is cut in parts
    words = [f"w{number}" for number in range(12)]
    (tmp_path / "long.md").write_text("\n".join(words) + "\n")
    tokenizer = LLETokenizer.train([" ".join(words)], vocab_size=300)
    model = make_language_model(vocab_size=len(tokenizer))
    rows = load_texts(tmp_path, sample_by="document", cache_dir=tmp_path / "cache")
    bank = HistoryBank.build(model, tokenizer, rows, source="mine")
    breaks, state = LineBreaks(tokenizer), bank.snapshot()
    entries = [entry for document in state.documents() for entry in document.ids]
    text, found = "", dict[str, int]()
    for entry in state.describe(entries):
        found[place_of(entry.source, entry.row, entry.columns, breaks.count(entry.since))] = len(text.split("\n"))
        text += tokenizer.decode([entry.outcome])
    assert found == {f"long.md:{line}": line for line in range(1, len(words) + 1)}
    model.attach_history(bank)
    ids = torch.tensor([tokenizer.eos_token_id, *tokenizer("w1\nw2", add_special_tokens=False)["input_ids"]])
    causes = [cause for item in as_values(model.explain(ids, 2), tokenizer) for cause in item["causes"]]
    assert any(cause["where"].startswith("long.md:") for cause in causes)
