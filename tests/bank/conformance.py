"""What every `Bank` must do, as functions that take one: run a new implementation through `CHECKS`.

A `Subject` makes empty banks and opens others' handles; tests/bank/test_conformance.py shows two of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import HistoryBank
from modeling_lle.bank.found import Document
from modeling_lle.bank.manifest import Added, BankError
from modeling_lle.bank.protocol import Bank, Snapshot
from modeling_lle.bank.segment import Segment
from tests.factories.language_models import make_language_model

FINGERPRINT, WIDTH, VOCABULARY = "of the tests", 8, 50


@dataclasses.dataclass(frozen=True)
class Subject:
    """An implementation.

    Attributes:
        make: Makes an empty bank with a fingerprint, a width, the size of a vocabulary and labels (None: of tokens).
        again: Another handle on the same entries, as another process would open it.
        tidy: Does what the bank does now and then to save space.
        is_service: Whether every handle sees at once what another one has changed, and `tidy` takes entries from older
            snapshots too.
    """

    make: Callable[[str, int, int, tuple[str, ...] | None], Bank]
    again: Callable[[Any], Bank]
    tidy: Callable[[Any], Any] = lambda bank: None
    is_service: bool = False

    def empty(self, labels: tuple[str, ...] | None = None) -> Bank:
        return self.make(FINGERPRINT, WIDTH, VOCABULARY, labels)

    def filled(self) -> Bank:
        """Eleven entries: the documents 0 and 1 of "first" and 0 of "second" in "ann", 0 of "second" in "bob"."""
        bank = self.empty()
        first, second = segment([[3, 4, 5], [6, 7]], seed=1), segment([[3, 8]], "second", seed=2)
        bank.append([(Segment.join([first[0], second[0]]), [*first[1], *second[1]])], "ann")
        bank.append([segment([[9, 4, 3, 11]], "second", "bob", seed=3)], "bob")
        return bank


def segment(
    outcomes: Sequence[Sequence[int]], source: str = "first", namespace: str = "ann", seed: int = 0, first: int = 0
) -> tuple[Segment, list[Added]]:
    """Documents with an entry for each outcome, the rows of a source from `first` on."""
    size = sum(map(len, outcomes))
    lengths = torch.tensor([len(own) for own in outcomes])
    keys = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(seed))
    made = Segment(
        keys=torch.nn.functional.normalize(keys, dim=-1).bfloat16(),
        ids=torch.arange(size),
        positions=torch.arange(size) + torch.repeat_interleave(torch.arange(len(outcomes)), lengths) + 1,
        counts=torch.ones(size, dtype=torch.int32),
        copies=torch.zeros(0, 2, dtype=torch.long),
        tokens=torch.tensor([token for own in outcomes for token in (2, *own)], dtype=torch.int32),
        starts=torch.nn.functional.pad((lengths + 1).cumsum(0), (1, 0)),
        documents=[
            {"source": source, "row": row, "number": len(own), "text": f"{source} {row}", "label": ""}
            for row, own in enumerate(outcomes, start=first)
        ],
    )
    return made, [Added(namespace, source, first + len(outcomes))]


def queries(count: int = 5) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(9)), dim=-1)


def naive(bank: Bank | Snapshot, asked: Tensor, neighbours: int, namespaces: list[str] | None = None) -> Any:
    """Similarities, ids and outcomes of the nearest entries, by the definition."""
    state = bank.snapshot() if hasattr(bank, "snapshot") else bank
    batches = list(state.entries(namespaces))
    keys = torch.cat([batch.keys for batch in batches]).float()
    ids, outcomes = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("ids", "outcomes"))
    similarity, order = (asked @ keys.T).sort(dim=1, descending=True)
    return similarity[:, :neighbours], ids[order[:, :neighbours]], outcomes[order[:, :neighbours]]


def check_search(bank: Bank | Snapshot, neighbours: int = 4, namespaces: list[str] | None = None) -> None:
    asked = queries()
    similarity, ids, outcomes = naive(bank, asked, neighbours, namespaces)
    for how in ("exact", "balanced", "fast"):
        found = bank.search(asked, neighbours, namespaces, how)  # type: ignore[arg-type]
        torch.testing.assert_close(found.similarity, similarity, atol=1e-5, rtol=0)
        assert torch.equal(found.ids, ids)
        assert torch.equal(found.outcomes, outcomes)
        assert torch.equal(found.counts, torch.ones_like(ids, dtype=torch.int32))


def rows(bank: Bank | Snapshot, namespaces: list[str] | None = None) -> list[tuple[str, str, int, list[int]]]:
    return sorted((item.namespace, item.source, item.row, item.outcomes) for item in bank.documents(namespaces))


def ids_of(documents: Sequence[Document]) -> list[int]:
    return [number for document in documents for number in document.ids]


ROWS = [
    ("ann", "first", 0, [3, 4, 5]),
    ("ann", "first", 1, [6, 7]),
    ("ann", "second", 0, [3, 8]),
    ("bob", "second", 0, [9, 4, 3, 11]),
]


# Reading


def an_empty_bank_finds_nothing(subject: Subject, tmp_path: Path) -> None:
    bank = subject.empty()
    assert (bank.fingerprint, bank.width, bank.vocab_size) == (FINGERPRINT, WIDTH, VOCABULARY)
    assert (len(bank), bank.namespaces, bank.labels) == (0, [], None)
    assert list(bank.documents()) == list(bank.snapshot().entries()) == []
    assert bank.snapshot().live_outcomes().shape == (0,)
    assert bank.name
    found = bank.search(queries(2), 3)
    assert [found.ids.tolist(), found.counts.tolist()] == [[[-1] * 3] * 2, [[0] * 3] * 2]
    assert (found.similarity == 0).all()
    assert bank.search(queries(0), 3).ids.shape == (0, 3)


def a_search_is_that_of_the_definition(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    subject.tidy(bank)
    check_search(bank)
    check_search(bank, 3, ["ann"])
    check_search(bank, 3, ["bob", "ann"])
    found = bank.search(queries(2), 13)
    assert found.ids.shape == found.outcomes.shape == found.similarity.shape == (2, 13)
    assert [sorted(row) for row in found.ids.tolist()] == [[-1, -1, *range(11)]] * 2
    assert (found.similarity[:, 11:] == 0).all()
    assert (found.similarity.diff(dim=1)[:, :10] <= 0).all()
    assert (found.counts == (found.ids >= 0).int()).all()
    asked = queries(2).requires_grad_()
    assert not bank.search(asked, 2).similarity.requires_grad


def merged_entries_keep_their_counts(subject: Subject, tmp_path: Path) -> None:
    bank, (made, added) = subject.empty(), segment([[3, 4, 3]])
    bank.append(
        [(dataclasses.replace(made.without(torch.tensor([False, False, True])), counts=torch.tensor([2, 1]).int(),
        copies=torch.tensor([[0, 3]]), tokens=made.tokens), added)],
        "ann",
    )  # fmt: skip
    found = bank.search(queries(1), 2)
    assert dict(zip(found.ids[0].tolist(), found.counts[0].tolist(), strict=True)) == {0: 2, 1: 1}
    assert bank.forget([0]) == 1
    assert next(iter(bank.documents())).tokens == [2, -1, 4, -1]  # each occurrence is gone


def documents_and_entries_go_together(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    assert rows(bank) == ROWS
    assert rows(bank, ["bob"]) == ROWS[3:]
    assert rows(bank, ["eve"]) == rows(bank, []) == []
    bank.forget([1, 3, 4])
    subject.tidy(bank)
    documents = list(bank.documents())
    assert rows(bank) == [("ann", "first", 0, [3, 5]), *ROWS[2:]]
    first = next(document for document in documents if document.source == "first")
    assert (first.tokens, first.ids) == ([2, 3, -1, 5], [0, 2])
    assert first.columns == {"number": 3, "text": "first 0", "label": ""}
    for namespaces in (None, ["ann"]):
        batches = list(bank.snapshot().entries(namespaces))
        assert [number for batch in batches for number in batch.ids.tolist()] == ids_of(
            list(bank.documents(namespaces))
        )
        kept = {}  # outcomes by ids
        for texts in bank.snapshot().kept_texts(namespaces):
            kept |= dict(zip(texts.ids.tolist(), texts.tokens[texts.positions].tolist(), strict=True))
            assert len(texts.counts) == len(texts)
            assert int(texts.starts[-1]) == len(texts.tokens)
        assert sorted(kept) == sorted(ids_of(list(bank.documents(namespaces))))
        assert [entry.outcome for entry in bank.describe(kept)] == list(kept.values())
        for batch in batches:
            assert batch.keys.shape == (len(batch.ids), WIDTH)
            assert batch.keys.dtype == torch.bfloat16
            assert batch.counts.tolist() == [1] * len(batch.ids)
            assert [entry.outcome for entry in bank.describe(batch.ids.tolist())] == batch.outcomes.tolist()
            assert {entry.namespace for entry in bank.describe(batch.ids.tolist())} == {batch.namespace}


def entries_are_described(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    (entry,) = bank.describe([1])
    assert (entry.id, entry.namespace, entry.source, entry.row) == (1, "ann", "first", 0)
    assert (entry.before, entry.outcome, entry.after) == ([2, 3], 4, [5])
    assert entry.columns == {"number": 3, "text": "first 0", "label": ""}
    (entry,) = bank.describe(torch.tensor([10]), before=2, after=0)
    assert (entry.namespace, entry.before, entry.outcome, entry.after) == ("bob", [4, 3], 11, [])
    assert bank.describe([]) == []
    bank.forget([0])
    assert bank.describe([1])[0].before == [2, -1]
    for number in (0, 11, -1):
        with pytest.raises(BankError, match=f"no entry {number}"):
            bank.describe([number])


def bad_input_is_refused(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    for shape in ((2, WIDTH - 1), (WIDTH,)):
        with pytest.raises(ValueError, match=r"queries must be \(Q, 8\), got"):
            bank.search(torch.zeros(shape), 3)
    with pytest.raises(ValueError, match="at least one neighbour"):
        bank.search(queries(), 0)
    for namespaces in (["eve"], ["ann", "eve"]):
        with pytest.raises(BankError, match="no namespace 'eve'"):
            bank.search(queries(), 1, namespaces)
        with pytest.raises(BankError, match="no namespace 'eve'"):
            bank.check_namespaces(namespaces)
    assert bank.check_namespaces("ann") == ("ann",)
    assert bank.check_namespaces(["bob", "ann", "bob"]) == ("ann", "bob")


def a_snapshot_never_changes(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    state, other = bank.snapshot(), subject.again(bank)
    found, texts, documents = state.search(queries(), 5), state.describe([0]), rows(state)
    bank.append([segment([[3]], "third", seed=5)], "ann")
    bank.forget(source="first")
    if not subject.is_service:
        subject.tidy(bank)
    for view in (state,) if subject.is_service else (state, other):
        assert torch.equal(view.search(queries(), 5).ids, found.ids)
        assert view.describe([0]) == texts
        assert rows(view) == documents
    assert (len(state), len(bank)) == (11, 7)
    with pytest.raises(BankError, match="no entry 0"):
        bank.describe([0])
    assert bank.snapshot() is not state
    assert not bank.refresh()  # nobody else has written


def what_is_derived_from_a_snapshot_is_made_once(subject: Subject, tmp_path: Path) -> None:
    bank, made = subject.filled(), []

    def make() -> int:
        made.append(1)
        return len(made)

    state = bank.snapshot()
    assert [state.once("key", make), state.once("key", make), state.once("other", make)] == [1, 1, 2]
    bank.forget([0])
    assert bank.snapshot().once("key", make) == 3


# Namespaces


def a_namespace_that_is_gone_is_not_searched(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    assert bank.namespaces == ["ann", "bob"]
    assert bank.snapshot().held(["bob", "eve"]) == ("bob",)
    assert bank.snapshot().held(None) is None
    bank.forget(namespace="bob")
    for _ in range(2):
        state = bank.snapshot()
        assert (state.search(queries(), 3, state.held(["bob"])).ids == -1).all()
        check_search(bank)
        assert rows(bank) == ROWS[:3]
        subject.tidy(bank)
    bank.append([segment([[3]], "first", "bob", seed=5)], "bob")
    assert bank.namespaces == ["ann", "bob"]
    check_search(bank, 1, ["bob"])


# Changes


def changes_are_counted(subject: Subject, tmp_path: Path) -> None:
    bank = subject.empty()
    seen = [bank.generation]
    for change in (
        lambda: bank.append([segment([[3]])], "ann"),
        lambda: bank.append([segment([[4]], first=1), segment([[4]], "second")], "ann"),
        lambda: bank.forget([0]),
    ):
        change()
        seen.append(bank.generation)
        assert bank.snapshot().generation == bank.generation
    assert seen == sorted(set(seen))
    bank.forget([0], missing_ok=True)
    assert bank.append([], "ann") == 0
    assert bank.generation == seen[-1]


def ids_are_given_once(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    bank.forget([10])
    subject.tidy(bank)
    assert bank.append([segment([[3, 4]], "third", seed=5), segment([[5]], "third", seed=6)], "ann") == 3
    assert sorted(ids_of(list(bank.documents()))) == [*range(10), 11, 12, 13]


def what_is_forgotten_is_gone_at_once(subject: Subject, tmp_path: Path) -> None:
    ways: list[tuple[dict[str, Any], list[int]]] = [
        ({"ids": [0, 0, torch.tensor(7)]}, [0, 7]),
        ({"source": "second"}, [5, 6, 7, 8, 9, 10]),
        ({"namespace": "bob"}, [7, 8, 9, 10]),
        ({"source": "second", "namespace": "ann"}, [5, 6]),
        ({"where": {"number": 2}}, [3, 4, 5, 6]),
        ({"where": {"number": 2, "row": 1}}, [3, 4]),
        ({"where": lambda columns: columns["number"] > 2, "source": "first"}, [0, 1, 2]),
        ({"ids": range(4), "where": {"text": "first 0"}}, [0, 1, 2]),
    ]
    for given, gone in ways:
        bank = subject.filled()
        assert bank.forget(**given) == len(gone)
        for _ in range(2):
            assert len(bank) == 11 - len(gone)
            assert not set(ids_of(list(bank.documents()))) & set(gone)
            assert not set(bank.search(queries(), 11).ids.flatten().tolist()) & set(gone)
            check_search(bank)
            subject.tidy(bank)
        assert bank.forget(ids=gone, missing_ok=True) == 0


def what_cannot_be_forgotten_is_an_error(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    bank.forget([3])
    before = bank.generation
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ids": [0, 10_000]}, "no entry 10000"),
        ({"ids": [3]}, "no entry 3"),
        ({"source": "frist"}, "no source 'frist'"),
        ({"namespace": "eve"}, "no namespace 'eve'"),
        ({"where": {"number": 77}}, "no entry for which all of this holds"),
        ({"where": lambda columns: False}, "no entry for which all of this holds"),
        ({"ids": [0], "source": "second"}, "no entry for which all of this holds"),
    ]
    for given, message in cases:
        with pytest.raises(BankError, match=message):
            bank.forget(**given)
    for given in ({"source": "frist"}, {"namespace": "eve"}, {"ids": [3, 10_000]}):
        assert bank.forget(**given, missing_ok=True) == 0  # type: ignore[arg-type]
    for nothing in ({}, {"where": {}}):
        with pytest.raises(ValueError, match="nothing to forget"):
            bank.forget(**nothing)  # type: ignore[arg-type]
    assert (bank.generation, len(bank)) == (before, 10)


def entries_are_replaced_in_one_change(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    assert bank.append([segment([[13]], "third", seed=5)], "ann", replaced=[0, 1, 2]) == 1
    assert rows(bank) == [*ROWS[1:3], ("ann", "third", 0, [13]), ROWS[3]]
    check_search(bank)
    with pytest.raises(BankError, match="no entry 0"):
        bank.append([segment([[13]], "third", first=1)], "ann", replaced=[0])
    assert len(bank) == 9


def other_handles_see_changes_when_they_refresh(subject: Subject, tmp_path: Path) -> None:
    writer = subject.filled()
    reader = subject.again(writer)
    expected = reader.search(queries(), 5)
    writer.append([segment([[3]], "third", seed=5)], "ann")
    writer.forget(source="first")
    subject.tidy(writer)
    if not subject.is_service:
        assert torch.equal(reader.search(queries(), 5).ids, expected.ids)
    assert reader.refresh()
    assert not reader.refresh()
    assert (len(reader), rows(reader), reader.generation) == (len(writer), rows(writer), writer.generation)
    assert torch.equal(reader.search(queries(), 5).ids, writer.search(queries(), 5).ids)
    subject.again(reader).forget([5])
    assert reader.append([segment([[4]], "third", seed=6, first=1)], "ann") == 1  # it refreshes by itself
    assert (len(reader), 5 in ids_of(list(reader.documents()))) == (7, False)


def writers_see_the_newest_state(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    other = subject.again(bank)
    bank.append([segment([[3]], "added-1", seed=5)], "ann")
    with other.writing() as state:
        assert len(state) == 12
        assert state.free_source("added") == "added-2"
        assert state.added("ann", "first") == Added("ann", "first", 2)
        assert state.added("bob", "first") == Added("bob", "first", 0)
        with other.writing() as inner:
            assert inner is state
        assert other.append([segment([[4]], "added-2", seed=6)], "ann") == 1
    assert len(other) == 13
    assert other.snapshot().free_source("added") == "added-3"


# Labels


def outcomes_of_labels_are_named(subject: Subject, tmp_path: Path) -> None:
    bank = subject.empty(())
    assert bank.labels == ()

    def teach(names: tuple[str, ...], outcomes: list[int], namespace: str, first: int) -> None:
        bank.append([segment([outcomes], "taught", namespace, len(outcomes), first)], namespace, names)

    def held() -> list[list[str]]:
        assert bank.labels is not None
        return [[bank.labels[outcome] for outcome in item.outcomes] for item in bank.documents()]

    teach(("ant", "bee"), [1, 0], "ann", 0)
    teach(("cow", "ant"), [1, 0, 1], "bob", 0)
    for _ in range(2):
        assert sorted(held()) == [["ant", "cow", "ant"], ["bee", "ant"]]
        state = bank.snapshot()
        assert state.labels is not None
        for namespaces, live in ((None, {"ant", "bee", "cow"}), (["ann"], {"ant", "bee"}), (["bob"], {"ant", "cow"})):
            found = state.live_outcomes(namespaces)
            assert (found.shape, found.dtype) == ((len(state.labels),), torch.bool)
            assert {name for name, is_live in zip(state.labels, found.tolist(), strict=True) if is_live} == live
        subject.tidy(bank)
    bank.forget(namespace="bob")
    assert bank.labels is not None
    named = dict(zip(bank.labels, bank.snapshot().live_outcomes().tolist(), strict=True))
    assert (named["ant"], named["bee"], named.get("cow", False)) == (True, True, False)
    teach(("cow",), [0], "bob", 1)
    assert sorted(held()) == [["bee", "ant"], ["cow"]]
    check_search(bank, 3)
    with pytest.raises(BankError, match="holds labels, and a LLEForCausalLM predicts tokens"):
        bank.check_model(make_language_model())


def another_model_is_refused(subject: Subject, tmp_path: Path) -> None:
    model = make_language_model()
    with pytest.raises(BankError, match="was encoded by another backbone"):
        subject.filled().check_model(model)
    with pytest.raises(ValueError, match="No encoder: pass model= and tokenizer="):
        subject.filled().add(["a b"])
    with pytest.raises(ValueError, match="No tokenizer: pass tokenizer="):
        subject.filled().add(["a b"], model=model)


def a_copy_is_a_folder(subject: Subject, tmp_path: Path) -> None:
    bank = subject.filled()
    bank.forget([1])
    bank.save_pretrained(tmp_path / "copy")
    copy = HistoryBank.open(tmp_path / "copy")
    assert rows(copy) == rows(bank)
    assert (copy.fingerprint, copy.width, copy.vocab_size) == (bank.fingerprint, bank.width, bank.vocab_size)
    assert copy.search(queries(), 4).outcomes.tolist() == bank.search(queries(), 4).outcomes.tolist()
    with pytest.raises(RuntimeError, match="cut short"), bank.saving(tmp_path / "never"):
        raise RuntimeError("cut short")
    assert not (tmp_path / "never" / "manifest.json").exists()


CHECKS: list[Callable[[Subject, Path], None]] = [
    an_empty_bank_finds_nothing,
    a_search_is_that_of_the_definition,
    merged_entries_keep_their_counts,
    documents_and_entries_go_together,
    entries_are_described,
    bad_input_is_refused,
    a_snapshot_never_changes,
    what_is_derived_from_a_snapshot_is_made_once,
    a_namespace_that_is_gone_is_not_searched,
    changes_are_counted,
    ids_are_given_once,
    what_is_forgotten_is_gone_at_once,
    what_cannot_be_forgotten_is_an_error,
    entries_are_replaced_in_one_change,
    other_handles_see_changes_when_they_refresh,
    writers_see_the_newest_state,
    outcomes_of_labels_are_named,
    another_model_is_refused,
    a_copy_is_a_folder,
]
