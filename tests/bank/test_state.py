"""What a bank promises to threads: each search and prediction is of one state, whatever others write meanwhile."""

import copy
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from modeling_lle import HistoryBank, LLEForCausalLM
from modeling_lle.bank.state import BankState
from modeling_lle.pipelines.translation import LLETranslationPipeline
from tests.factories.classifiers import make_taught_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import make_capitals_pairs, make_capitals_tokenizer
from tests.factories.texts import WORD_TOKENIZER, encode_texts, make_ids, make_texts
from tests.factories.translators import make_translator

TEXTS = make_texts(12, 9)
ROUNDS = 3


@pytest.fixture(params=["small", "indexed"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Banks that are searched exactly, and ones with an index."""
    if request.param == "indexed":
        index = pytest.importorskip("modeling_lle.bank.faiss_index")
        monkeypatch.setattr("modeling_lle.bank.state.EXACT_ENTRIES", 0)
        monkeypatch.setattr(index, "_make", flat_index)
        monkeypatch.setattr(index, "Index", FlatIndex)


def flat_index(keys: Callable[[torch.Tensor], torch.Tensor], entries: int) -> Any:
    """An index that needs no training, as few keys as there are."""
    from modeling_lle.bank import faiss_index as index

    vectors = keys(torch.arange(entries)).float().numpy()
    made = index.faiss.IndexFlatIP(vectors.shape[1])
    made.add(vectors)
    return made


class FlatIndex:
    """Proposes all that it knows."""

    def __init__(self, index: Any, setting: Any) -> None:
        self.index, self.entries = index, index.ntotal

    def candidates(self, queries: torch.Tensor, neighbours: int, usable: float) -> torch.Tensor:
        return torch.from_numpy(self.index.search(queries.numpy(), self.entries)[1])


MODEL = make_language_model()


def build(texts: Any = TEXTS, **options: Any) -> HistoryBank:
    return HistoryBank.build(MODEL, WORD_TOKENIZER, texts, **options)


def in_threads(read: Callable[[], Any], change: Callable[[int], Any], readers: int = 8) -> None:
    """Calls `read` in threads again and again while `change` is called `ROUNDS` times; raises what they raise."""
    done, errors = threading.Event(), []

    def work() -> None:
        try:
            with torch.no_grad():
                while not done.wait(0.01):  # so that the writer has its turn
                    read()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(readers)]
    for thread in threads:
        thread.start()
    try:
        for number in range(ROUNDS):
            change(number)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def change_texts(bank: HistoryBank, gone: set[int]) -> Callable[[int], None]:
    """Adds a source, forgets it, and compacts now and then; what is forgotten joins `gone` afterwards."""

    def change(number: int) -> None:
        first = bank.manifest.next_id
        bank.add(TEXTS[number : number + 3], source="passing")
        bank.forget(source="passing")
        gone.update(range(first, bank.manifest.next_id))
        if number % 2:
            bank.compact()

    return change


def test_a_language_model_beside_a_writer(size: None) -> None:
    model, ids, bank = make_language_model(), make_ids(1, 6), build()
    model.attach_history(bank)
    gone: set[int] = set()
    query = torch.eye(6)[:2]

    def read() -> None:
        before = set(gone)
        output = model(ids, output_history=True)
        torch.testing.assert_close(output.logits.exp().sum(-1), torch.ones(1, 6), atol=1e-4, rtol=0)
        assert not before & set(output.history.bank_ids.flatten().tolist())
        state = bank.snapshot()
        found = state.search(query, 4)
        assert [text.outcome for text in state.describe(found.ids[0].tolist())] == found.outcomes[0].tolist()
        for item in model.explain(ids, top=2):
            assert item.base_share <= 1

    in_threads(read, change_texts(bank, gone))
    assert len(bank) == len(build())


def test_a_classifier_beside_a_teacher(size: None) -> None:
    model, texts, labels = make_taught_classifier(6)
    classify = pipeline("text-classification", model=model, tokenizer=WORD_TOKENIZER)
    inputs = encode_texts(*texts[:2])
    known = {*labels, *model.trained_labels, *(f"new-{number}" for number in range(ROUNDS))}

    def read() -> None:
        pinned = model.history.pinned()
        output = model(**inputs, history=pinned)
        assert output.logits.shape[-1] == len(output.label_names)
        assert output.label_names == model.label_names(pinned)
        torch.testing.assert_close(output.logits.softmax(-1).sum(-1), torch.ones(2))
        result = classify(texts[0], top_k=None, return_history=True, history_top=99)
        assert {item["label"] for item in result["labels"]} <= known
        assert sum(item["score"] for item in result["labels"]) == pytest.approx(1, abs=1e-4)
        # What was taught of a label moves that label, also where another thread has renumbered the labels.
        novel = sum(item["score"] for item in result["labels"] if item["label"].startswith("new"))
        (explained,) = result["history"]
        assert explained["text"] == result["labels"][0]["label"]
        assert explained["prob"] == pytest.approx(result["labels"][0]["score"], abs=1e-4)
        causes = explained["causes"]
        assert novel <= sum(cause["share"] for cause in causes if cause["outcome"].startswith("new")) + 1e-4

    def change(number: int) -> None:
        model.learn([texts[0] + " h"], [f"new-{number}"], WORD_TOKENIZER, new_labels=True, relabel=True)
        if number % 2:
            model.forget(label=f"new-{number}")
            model.history_bank.compact()

    in_threads(read, change, readers=4)


def test_a_translator_beside_a_writer() -> None:
    tokenizer = make_capitals_tokenizer()
    model, pairs = make_translator(tokenizer), list(make_capitals_pairs(8))
    model.attach_history(HistoryBank.build(model, tokenizer, pairs[:5], source="kept"))
    bank = model.history_bank
    translate = LLETranslationPipeline(model=model, tokenizer=tokenizer)
    sources = {pair["source"] for pair in pairs}

    def read() -> None:
        (result,) = translate(pairs[0]["source"], return_history=True, history_top=8, max_new_tokens=2)
        assert {pair["text"] for pair in result["history"]} <= sources
        shares = result["base_share"] + sum(pair["share"] for pair in result["history"])
        assert shares == pytest.approx(1, abs=1e-4)

    def change(number: int) -> None:
        bank.add(pairs[5 + number % 3 :], source="passing")
        bank.forget(source="passing")
        bank.compact()

    in_threads(read, change, readers=4)


@pytest.fixture
def waiting_search(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes the next view of a bank wait, once it has begun: events that it has, and that it may go on."""
    begun, may_end, first = threading.Event(), threading.Event(), threading.Lock()
    make = BankState._make_view

    def wait(state: BankState, *arguments: Any) -> Any:
        view = make(state, *arguments)
        if first.acquire(blocking=False):
            begun.set()
            assert may_end.wait(10)
        return view

    monkeypatch.setattr(BankState, "_make_view", wait)
    yield begun, may_end
    may_end.set()


def test_a_search_after_forgetting_finds_nothing_of_it(size: None, waiting_search: Any) -> None:
    bank, query = build(TEXTS[:6], source="gone"), torch.eye(6)[:2]
    bank.add(TEXTS[6:], source="kept")
    gone = set(range(sum(len(text.split()) + 1 for text in TEXTS[:6])))
    begun, may_end = waiting_search
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(bank.search(query, 20)))
    thread.start()
    assert begun.wait(10)
    bank.forget(source="gone")
    may_end.set()
    thread.join()
    assert gone & set(found[0].ids.flatten().tolist())  # that search began before
    for _ in range(2):
        assert not gone & set(bank.search(query, 20).ids.flatten().tolist())


def test_an_index_that_outlives_a_compaction_is_not_kept(size: None, waiting_search: Any) -> None:
    from modeling_lle.bank.index_files import index_files

    bank = build(TEXTS[:6], source="gone")
    bank.add(TEXTS[6:], source="kept")
    begun, may_end = waiting_search
    thread = threading.Thread(target=bank.search, args=(torch.eye(6)[:1], 2))
    thread.start()
    assert begun.wait(10)
    bank.forget(source="gone")
    bank.compact()
    may_end.set()
    thread.join()
    assert list(index_files(bank.folder)) == []
    state = bank.snapshot()
    bank.forget(source="kept")
    bank.compact()
    state.search(torch.eye(6)[:1], 2)  # an old state may still be searched, and its index is not written
    assert list(index_files(bank.folder)) == []
    assert bank.verify() == []


def test_a_view_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, made = build(), []
    make = BankState._make_view

    def count(state: BankState, *arguments: Any) -> Any:
        made.append(arguments)
        return make(state, *arguments)

    monkeypatch.setattr(BankState, "_make_view", count)
    threads = [threading.Thread(target=bank.search, args=(torch.eye(6), 3)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_what_belongs_to_an_old_state_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr("modeling_lle.bank.view.IN_MEMORY", 0)  # its keys are read from open files
    model, bank, ids = make_language_model(), build(), make_ids(1, 4)
    model.attach_history(bank)
    model(ids)
    before = weakref.ref(bank.snapshot()), weakref.ref(bank.snapshot().view(None, "balanced"))
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for number in range(3):
        bank.add(TEXTS[number : number + 1])
        model(ids)
    gc.collect()
    assert [reference() for reference in before] == [None, None]
    if opened:
        assert len(os.listdir("/proc/self/fd")) <= opened + len(bank.manifest.segments)


def test_two_writers_of_one_process_wait_for_each_other() -> None:
    bank = build(source="first")
    before, added = len(bank), []

    def write() -> None:
        for text in TEXTS[:3]:
            added.append(bank.add([text]))

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sources = [item.source for item in bank.manifest.added]
    assert len(sources) == len(set(sources)) == len(added) + 1 == 10
    assert len(bank) == before + sum(added)
    assert bank.verify() == []
    assert len(HistoryBank.open(bank.folder.path)) == len(bank)


def test_a_copy_of_a_model_recalls_from_the_same_bank() -> None:
    model, ids = make_language_model(), make_ids(1, 5)
    model.attach_history(build())
    other: LLEForCausalLM = copy.deepcopy(model)
    assert other.history_bank is model.history_bank
    assert torch.equal(other(ids).logits, model(ids).logits)


@pytest.mark.parametrize("head", ["language model", "classifier", "translator"])
def test_gradients_are_asked_for_beside_a_bank(size: None, head: str) -> None:
    """Outside of `no_grad`, where the queries hang on the weights."""
    if head == "classifier":
        model, texts, _ = make_taught_classifier(6)
        inputs: Any = encode_texts(*texts[:2])
        logits = model(**inputs, output_history=True, output_out_of_scope=True).logits
    elif head == "translator":
        tokenizer = make_capitals_tokenizer()
        model, pairs = make_translator(tokenizer), list(make_capitals_pairs(4))
        model.attach_history(HistoryBank.build(model, tokenizer, pairs), tokenizer=tokenizer)
        inputs = tokenizer([pairs[0]["source"]], return_tensors="pt")
        labels = tokenizer([pairs[0]["target"]], return_tensors="pt")["input_ids"]
        logits = model(**inputs, labels=labels, output_history=True).logits
    else:
        model = make_language_model()
        model.attach_history(build())
        model.explain(make_ids(1, 5))
        model.generate(make_ids(1, 5), max_new_tokens=2)
        logits = model(make_ids(1, 5), output_history=True).logits
    logits.exp().sum().backward()
    assert any(weight.grad is not None for weight in model.parameters())
