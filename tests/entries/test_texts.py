"""Texts as entries: every position has its key, an interrupted import goes on, and bad rows are named."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset, load_dataset
from torch import Tensor

from modeling_lle import HistoryBank
from modeling_lle.bank.files import BankError, Folder
from modeling_lle.common.ahead import ahead
from modeling_lle.entries import texts as texts_module
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_texts

MODEL = make_language_model()
TEXTS = make_texts(12, 9)
KIND = MODEL.entry_kind


def build(texts: Any = TEXTS, **options: Any) -> HistoryBank:
    return HistoryBank.build(MODEL, WORD_TOKENIZER, texts, **options)


def content(bank: HistoryBank) -> tuple[Tensor, Tensor]:
    batches = list(bank.snapshot().entries())
    return torch.cat([batch.keys for batch in batches]).float(), torch.cat([batch.outcomes for batch in batches])


@torch.no_grad()
def reference(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Keys (N, D) and outcomes (N,), one text and one token at a time."""
    keys, outcomes = [], []
    for text in texts:
        ids = [
            WORD_TOKENIZER.eos_token_id,
            *WORD_TOKENIZER(text, add_special_tokens=False)["input_ids"],
            WORD_TOKENIZER.eos_token_id,
        ]
        states = MODEL.model(torch.tensor([ids])).last_hidden_state[0]
        keys.append(torch.nn.functional.normalize(states[:-1], dim=-1))
        outcomes += ids[1:]
    return torch.cat(keys), torch.tensor(outcomes)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"TEXTS": 5, "SEGMENT_ENTRIES": 7, "ROWS": 2, "MAX_STEPS": 3, "PIECE": 4, "WARM_UP": 100},
        {"SEGMENT_ENTRIES": 1, "PIECE": 2, "WARM_UP": 100},
    ],
)
def test_holds_every_position(sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in sizes.items():
        monkeypatch.setattr(texts_module, name, value)
    bank = build()
    keys, outcomes = reference(TEXTS)
    got, got_outcomes = content(bank)
    assert len(bank) == len(outcomes)
    assert torch.equal(got_outcomes, outcomes)
    torch.testing.assert_close(got, keys, atol=0.005, rtol=0)
    assert bank.info()["sources"] == [{"namespace": "default", "source": "added-1", "rows": 12, "tokens": 0}]


def test_merged_duplicates_count() -> None:
    """The state forgets what lies far back, so entries with the same recent past are nearly the same."""
    text = " ".join(["a", "b", "c", "d", "e", "f", "g", "h"] * 12)
    plain, merged = build([text]), build([text], merge=True)
    assert len(merged) < len(plain) / 2
    ids = torch.tensor([WORD_TOKENIZER(text, add_special_tokens=False)["input_ids"][20:44]])
    model = make_language_model(window=0)
    model.config.bank.neighbours = 200  # all of them
    model.attach_history(plain)
    expected = model(ids).logits.exp()
    model.attach_history(merged)
    torch.testing.assert_close(model(ids).logits.exp(), expected, atol=0.02, rtol=0)
    found = merged.search(torch.eye(6)[:1], len(merged))
    count, place = found.counts[0].max(0)
    assert count > 1
    before = len(merged)
    merged.forget([int(found.ids[0, place])])
    merged.compact()
    segment = merged.folder.read_segment(merged.manifest.segments[0])
    assert len(merged) == before - 1
    assert int((segment.tokens == -1).sum()) == count


def test_only_what_the_model_did_not_know() -> None:
    bank, everything = build(keep_below=0.1), build()
    assert 0 < len(bank) < len(everything)
    ids = torch.arange(len(everything))
    known = []
    for text in everything.describe(ids.tolist(), before=100):
        with torch.no_grad():
            logits = MODEL(torch.tensor([text.before]), use_history=False).logits[0, -1]
        known.append(float(logits.softmax(-1)[text.outcome]) < 0.1)
    assert sum(known) == len(bank)


def test_work_ahead_keeps_the_order_and_the_error() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise RuntimeError("the sixth")

    coming = ahead(items())
    assert [next(coming) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="the sixth"):
        next(coming)
    assert list(ahead(iter([]))) == []


def stream(kind: str, folder: Path) -> IterableDataset:
    """The texts, in files that are read while iterating."""
    rows = Dataset.from_list([{"text": text, "user": number} for number, text in enumerate(TEXTS)])
    for shard in range(3):
        part = rows.select(range(4 * shard, 4 * shard + 4))
        (part.to_parquet if kind == "parquet" else part.to_json)(folder / f"{shard}.{kind}")
    files = {"train": str(folder / f"*.{kind}")}
    name = {"jsonl": "json"}.get(kind, kind)
    return load_dataset(name, data_files=files, split="train", streaming=True, cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_stream_is_added_and_resumed_like_rows_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.setattr(texts_module, "SEGMENT_ENTRIES", 10)
    monkeypatch.setattr(texts_module, "TEXTS", 2)
    rows = stream(kind, tmp_path)
    whole, encode = build(rows, source="texts"), texts_module._encode
    in_memory = build(Dataset.from_list(list(rows)), source="texts")
    calls, asked = [], []

    def killed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(texts_module, "_encode", killed)
    with pytest.raises(KeyboardInterrupt):
        build(rows, path=tmp_path / "bank", source="texts")
    begun = HistoryBank.open(tmp_path / "bank").manifest.added[0]
    assert 0 < begun.rows < 12
    tokenise = texts_module.encode_texts
    monkeypatch.setattr(
        texts_module, "encode_texts", lambda texts, *rest: asked.extend(texts) or tokenise(texts, *rest)
    )
    bank = HistoryBank.open(tmp_path / "bank")
    bank.add(rows, model=MODEL, tokenizer=WORD_TOKENIZER, source="texts", resume=True, progress=True)
    assert asked == TEXTS[begun.rows :]
    assert "| 12/12 [" in capsys.readouterr().err
    for other in (whole, in_memory):
        assert list(bank.documents()) == list(other.documents())
        assert all(map(torch.equal, content(bank), content(other)))


def test_resuming_an_interrupted_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "SEGMENT_ENTRIES", 10)
    whole = build(source="texts")
    bank = HistoryBank.build(MODEL, WORD_TOKENIZER, TEXTS[:1], tmp_path, source="warm up")
    bank.forget(source="warm up")

    writes = 0
    write = Folder.write_manifest

    def write_twice(folder: Folder, manifest: Any) -> None:
        nonlocal writes
        writes += 1
        if writes > 2:
            raise KeyboardInterrupt
        write(folder, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_manifest", write_twice)
        with pytest.raises(KeyboardInterrupt):
            bank.add(TEXTS, source="texts")
    bank = HistoryBank.open(tmp_path)
    assert len(bank) == 20
    with pytest.raises(ValueError, match="go on with resume=True"):
        bank.add(TEXTS, source="texts", model=MODEL, tokenizer=WORD_TOKENIZER)
    bank.add(TEXTS, source="texts", model=MODEL, tokenizer=WORD_TOKENIZER, resume=True)
    bank.compact()
    assert torch.equal(content(bank)[1], content(whole)[1])
    torch.testing.assert_close(content(bank)[0], content(whole)[0], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ([], {}, "no rows"),
        ([{"txt": "a"}], {}, "row 0 has no column 'text'; its columns are: txt"),
        ([{"text": 3}], {}, "the column 'text' of row 0 holds int, not text"),
        ([3], {}, "row 0 is int: give texts"),
        (["a"], {"columns": ["user"]}, "has no column"),
        (["a"], {"keep_below": 0.0}, "keep_below is a probability above 0"),
        (["a"], {"namespace": ""}, "a namespace needs a name"),
        (["a"], {"source": 3}, "a source needs a name, a text that is not empty; got 3"),
        (["a", "\ud800"], {}, r"the text of row 1 holds '\\ud800', which is no proper Unicode"),
        ([{"text": "a", "user": "\udc00"}], {}, "row 0 holds"),
        ([{"text": "a", "\udc00": 3}], {}, "row 0 holds"),
        (["a"], {"source": "\ud800"}, "the name of the source holds"),
        (["a"], {"namespace": "\ud800"}, "the name of the namespace holds"),
    ],
)
def test_data_that_cannot_be_added(dataset: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(dataset, **options)


def test_a_data_set_with_columns() -> None:
    rows = Dataset.from_dict({"text": TEXTS, "user": ["ann", "bob"] * 6, "row": range(12), "parts": [[1]] * 12})
    bank = build(rows, source="set")
    text = bank.describe([0], before=3, after=2)[0]
    assert (text.namespace, text.source, text.row) == ("default", "set", 0)
    assert text.columns == {"user": "ann", "row_": 0, "parts": [1]}
    assert text.before == [WORD_TOKENIZER.eos_token_id]
    assert len(text.after) == min(2, len(TEXTS[0].split()))


def test_an_outcome_is_a_token() -> None:
    bank = build(["a b"])
    assert KIND.outcome == MODEL.outcome == "token"
    assert [KIND.name(entry.outcome, bank, WORD_TOKENIZER) for entry in bank.describe(range(2))] == ["a", "b"]
    KIND.check(bank)
    other = HistoryBank.temporary(bank.fingerprint, bank.width, bank.vocab_size, labels=())
    with pytest.raises(BankError, match="holds labels, and texts have tokens as outcomes: open another bank"):
        KIND.add(other, ["a"], MODEL, WORD_TOKENIZER)


def test_a_threshold_needs_an_output_layer_over_tokens() -> None:
    model = make_language_model().model
    bank = HistoryBank.build(model, WORD_TOKENIZER, ["a b"])
    assert len(bank) == 3
    with pytest.raises(ValueError, match=r"keep_below needs a language model, .*; got LLEModel"):
        bank.add(["a b"], keep_below=0.5)
