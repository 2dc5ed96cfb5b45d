"""Several processes build one bank: the same as one, whatever fails; other data, models and options are errors.

Threads with banks of their own stand for processes; tests/scripts/test_bank_build.py starts real ones.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from modeling_lle import HistoryBank
from modeling_lle.bank.files import PARTS, BankError
from modeling_lle.bank.fingerprint import fingerprint
from modeling_lle.bank.parts import IMPORT, Parts
from modeling_lle.entries import pairs as pairs_module
from modeling_lle.entries import texts as texts_module
from tests.bank.memory_bank import MemoryBank
from tests.factories.language_models import make_language_model
from tests.factories.pairs import SUBWORD_PAIRS_TOKENIZER, pair_rows
from tests.factories.texts import WORD_TOKENIZER, make_texts
from tests.factories.translators import make_subword_translator

MODEL = make_language_model()
TEXTS = make_texts(40, 9)
ROWS = Dataset.from_list([{"text": text, "user": f"user {n}"} for n, text in enumerate(TEXTS)])


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "SEGMENT_ENTRIES", 20)
    monkeypatch.setattr(texts_module, "TEXTS", 3)


def build(path: Path, rows: Any = ROWS, model: Any = MODEL, **options: Any) -> HistoryBank:
    options = {"source": "texts", "parts": path / PARTS, **options}
    return HistoryBank.build(model, WORD_TOKENIZER, rows, path, **options)


def at_once(*calls: Callable[[], Any]) -> list[Exception]:
    """Calls functions in threads of their own; returns their errors."""
    errors: list[Exception] = []

    def run(call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def assert_same(one: HistoryBank, other: HistoryBank) -> None:
    """Asserts that two banks are alike to the last bit, but for names of files."""
    assert one.manifest.added == other.manifest.added
    assert one.manifest.next_id == other.manifest.next_id
    pairs = list(zip(one.segments(), other.segments(), strict=True))
    for (_, segment), (_, expected) in pairs:
        assert segment.documents == expected.documents
        for name in ("keys", "ids", "positions", "counts", "copies", "tokens", "starts"):
            assert torch.equal(getattr(segment, name), getattr(expected, name)), name


@pytest.mark.parametrize("options", [{}, {"merge": True, "keep_below": 0.3}, {"key_width": 3}])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_together_they_make_what_one_makes(tmp_path: Path, processes: int, options: dict[str, Any]) -> None:
    alone = build(tmp_path / "alone", parts=None, **options)
    assert at_once(*[lambda: build(tmp_path / "together", **options)] * processes) == []
    together = HistoryBank.open(tmp_path / "together")
    assert_same(together, alone)
    assert not (tmp_path / "together" / PARTS).exists()
    assert together.verify() == []


@pytest.mark.parametrize("before", [0, 3])
def test_sentence_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    monkeypatch.setattr(pairs_module, "WRITTEN", 2)
    model, rows = make_subword_translator(), [*pair_rows(), *pair_rows()[:2]]

    def add(name: str, parts: Path | None) -> None:
        bank = HistoryBank.open(tmp_path / name)
        bank.add(rows, model=model, tokenizer=SUBWORD_PAIRS_TOKENIZER, source="texts", parts=parts)

    for name in ("alone", "together"):
        size = fingerprint(model), model.key_size, model.config.vocab_size
        bank = HistoryBank.create(tmp_path / name, *size)
        if before:
            bank.add(rows[:before], model=model, tokenizer=SUBWORD_PAIRS_TOKENIZER, source="first")
    add("alone", None)
    parts = tmp_path / "together" / PARTS
    assert at_once(*[lambda: add("together", parts)] * 3) == []
    assert_same(HistoryBank.open(tmp_path / "together"), HistoryBank.open(tmp_path / "alone"))
    generation = HistoryBank.open(tmp_path / "together").generation
    add("together", parts)
    assert HistoryBank.open(tmp_path / "together").generation == generation
    assert not parts.exists()


class Encode:
    """Encodes segments, and notes where each begins; the first process at the row `fatal` dies when `now` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fatal: int | None = None) -> None:
        self.begun: list[tuple[int, int]] = []
        self.fatal, self.now, self._encode = fatal, threading.Event(), texts_module._encode
        monkeypatch.setattr(texts_module, "_encode", self)

    def __call__(self, model: Any, parts: Any, *others: Any) -> Any:
        self.begun.append((parts[0].row, parts[0].begin))
        if self.fatal is not None and parts[0].row >= self.fatal:
            self.fatal = None
            self.now.wait(20)
            raise RuntimeError("killed")
        return self._encode(model, parts, *others)


def test_one_that_dies_costs_the_segment_that_it_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, path = build(tmp_path / "alone", parts=None), tmp_path / "together"
    encode = Encode(monkeypatch, fatal=8)

    def survive() -> None:
        while encode.fatal is not None:
            time.sleep(0.001)
        build(path)
        encode.now.set()

    errors = at_once(lambda: build(path), survive)
    assert [str(error) for error in errors] == ["killed"]
    begun, interrupted = HistoryBank.open(path).manifest.added[0], len(encode.begun)
    assert 0 < begun.rows < 20
    assert at_once(*[lambda: build(path)] * 3) == []
    assert encode.begun[interrupted:] == [(begun.rows, begun.tokens)]
    assert_same(HistoryBank.open(path), alone)


def test_a_part_that_nobody_encodes_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bank = HistoryBank.create(tmp_path / "bank", fingerprint(MODEL), MODEL.key_size, MODEL.config.vocab_size)
    with Parts(tmp_path / "parts", bank, "default", "texts") as parts:
        parts._own[0, 0] = (5, 0), "digest"
        parts._warn_of_gaps()
    assert "the source 'texts' is incomplete" in caplog.text
    assert not parts.is_complete()


def test_the_interrupted_go_on_in_any_number_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, path = build(tmp_path / "alone", parts=None), tmp_path / "together"
    encode = Encode(monkeypatch, fatal=20)
    encode.now.set()
    with pytest.raises(RuntimeError, match="killed"):
        build(path)
    bank = HistoryBank.open(path)
    bank.add(ROWS, model=MODEL, tokenizer=WORD_TOKENIZER, source="texts", resume=True)
    assert_same(bank, alone)
    build(path)
    assert_same(HistoryBank.open(path), alone)
    assert not (path / PARTS).exists()


def test_other_data_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Encode(monkeypatch, fatal=20)
    encode.now.set()
    with pytest.raises(RuntimeError, match="killed"):
        build(tmp_path / "bank")
    for other in (["c", *TEXTS[1:]], [*TEXTS[:3], "a b", *TEXTS[4:]]):
        rows = Dataset.from_list([{"text": text, "user": f"user {n}"} for n, text in enumerate(other)])
        fresh = HistoryBank.create(tmp_path / other[0], *size())
        with pytest.raises(BankError, match="another process has read other rows of the source 'texts'"):
            fresh.add(rows, model=MODEL, tokenizer=WORD_TOKENIZER, source="texts", parts=tmp_path / "bank" / PARTS)
    changed = ROWS.map(lambda row: {"user": row["user"] + "!"})
    with pytest.raises(BankError, match="other rows"):
        HistoryBank.create(tmp_path / "columns", *size()).add(
            changed, model=MODEL, tokenizer=WORD_TOKENIZER, source="texts", parts=tmp_path / "bank" / PARTS
        )


def size() -> tuple[str, int, int]:
    return fingerprint(MODEL), MODEL.key_size, MODEL.config.vocab_size


def test_other_options_models_and_banks_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, encode = tmp_path / "bank", Encode(monkeypatch, fatal=20)
    encode.now.set()
    with pytest.raises(RuntimeError, match="killed"):
        build(path)
    with pytest.raises(BankError, match="begun with merge=False, and this process has True"):
        build(path, merge=True)
    with pytest.raises(BankError, match="begun with rows=40, and this process has 39"):
        build(path, rows=ROWS.select(range(39)))
    with pytest.raises(BankError, match="encoded by another backbone"):
        build(path, model=make_language_model(recurrence="gru"))
    with pytest.raises(BankError, match="was begun with keys of the width 6"):
        build(path, key_width=3)
    with pytest.raises(ValueError, match="give source="):
        build(path, source=None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        build(tmp_path / "other")


def test_what_was_left_aside_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, encode = tmp_path / "bank", Encode(monkeypatch, fatal=20)
    encode.now.set()
    with pytest.raises(RuntimeError, match="killed"):
        build(path)
    bank = HistoryBank.open(path)
    with Parts(path / PARTS, bank, "default", "texts", {}) as running:
        bank.compact()
        assert (running.path / IMPORT).exists()
        running._own[0, 0] = (40, 0), ""  # not complete
    assert bank.verify() == [f"{PARTS}/{running.path.name}"]
    bank.compact()
    assert bank.verify() == []
    assert not (path / PARTS).exists()


def test_a_bank_that_is_removed_takes_its_parts_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, encode = tmp_path / "bank", Encode(monkeypatch, fatal=20)
    encode.now.set()
    with pytest.raises(RuntimeError, match="killed"):
        build(path)
    HistoryBank.open(path).folder.remove()
    assert not path.exists()


def test_a_bank_that_is_a_service(tmp_path: Path) -> None:
    alone, bank = build(tmp_path / "alone", parts=None), MemoryBank.create(*size())
    options = {"model": MODEL, "tokenizer": WORD_TOKENIZER, "source": "texts", "parts": tmp_path / "parts"}
    assert at_once(*[lambda: MemoryBank(bank.store).add(ROWS, **options)] * 3) == []
    bank.refresh()
    assert list(bank.documents()) == list(alone.documents())
    keys, expected = (
        torch.cat([batch.keys for batch in held.snapshot().entries()]).bfloat16() for held in (bank, alone)
    )
    assert torch.equal(keys, expected)
    assert bank.snapshot().added("default", "texts").rows == len(ROWS)
    assert not (tmp_path / "parts").exists()


def test_a_damaged_part_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, encode = tmp_path / "bank", Encode(monkeypatch, fatal=20)
    encode.now.set()
    with pytest.raises(RuntimeError, match="killed"):
        build(path)
    (folder,) = (path / PARTS).iterdir()
    record = min(folder.glob("part-*.json"))
    whole = {"end": [1, 0], "digest": "", "info": {"namespace": "default", "entries": 1, "tokens": 1, "documents": 1}}
    elsewhere = {**whole["info"], "file": {"name": "../other.safetensors", "bytes": 1, "sha256": ""}}
    for number, damage in enumerate(("{", "[]", "{}", json.dumps(whole), json.dumps({**whole, "info": elsewhere}))):
        record.write_text(damage)
        with pytest.raises(BankError, match=f"{record.name} is damaged: remove {folder}"):
            HistoryBank.create(tmp_path / f"fresh {number}", *size()).add(
                ROWS, model=MODEL, tokenizer=WORD_TOKENIZER, source="texts", parts=path / PARTS
            )
