"""Copies of banks between folders and milvus-lite: equal by their digests, and resumed after they were cut short."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank import copying
from modeling_lle.bank.copying import bank_exists, copy_to, digest
from modeling_lle.bank.manifest import BankError
from modeling_lle.bank.parquet import from_parquet, to_parquet
from tests.bank.conformance import FINGERPRINT, VOCABULARY, WIDTH, queries, rows, segment
from tests.factories.milvus_places import in_file


@pytest.fixture(params=["folder", "milvus"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a copy."""
    if request.param == "folder":
        return str(tmp_path / "copy")
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    return in_file(tmp_path).format("copy")


@pytest.fixture
def bank(tmp_path: Path) -> HistoryBank:
    """Three namespaces, of which one has sources without entries, merged duplicates, and forgotten entries."""
    bank = HistoryBank.create(tmp_path / "bank", FINGERPRINT, WIDTH, VOCABULARY)
    for number in range(6):
        namespace = ("ann", "bob", "eve")[number % 3]
        made, added = segment([[3, 4, 3], [5] * (number + 1), [6, 7]], f"source-{number}", namespace, seed=number)
        made = dataclasses.replace(
            made.without(torch.arange(len(made)) == 2),
            counts=torch.tensor([2, *[1] * (len(made) - 2)]).int(),
            copies=torch.tensor([[0, 3]]),
            tokens=made.tokens,
        )
        bank.append([(made, added)], namespace)
    bank.append([(copying._no_entries(WIDTH), segment([[3]], "nothing")[1])], "ann")
    bank.forget([1, 8])
    return bank


def same(one: Any, other: Any) -> bool:
    found = [bank.search(queries(), 9, ["bob", "eve"]) for bank in (one, other)]
    outcomes = [bank.describe(result.ids[0].tolist()) for bank, result in zip((one, other), found, strict=True)]
    texts = [[dataclasses.replace(entry, id=0) for entry in entries] for entries in outcomes]
    return (
        digest(one.snapshot()) == digest(other.snapshot())
        and rows(one) == rows(other)
        and texts[0] == texts[1]
        and torch.allclose(found[0].similarity, found[1].similarity, atol=1e-6)
        and one.snapshot().added("ann", "nothing") == other.snapshot().added("ann", "nothing")
    )


def test_a_copy_there_and_back_is_the_same(bank: HistoryBank, place: str, tmp_path: Path) -> None:
    seen: list[int] = []
    copy = copy_to(bank, place, seen.append)
    assert sum(seen) == len(bank)
    assert same(bank, copy)
    assert same(bank, copy_to(copy, tmp_path / "back"))
    assert copy_to(bank, place).generation == copy.generation  # nothing is left to do
    copy.forget([0])
    assert digest(bank.snapshot()) != digest(copy.snapshot())


def test_a_copy_that_was_cut_short_resumes(bank: HistoryBank, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "AT_ONCE", 3)

    def cut(entries: int) -> None:
        left.append(entries)
        if len(left) == 5:
            raise KeyboardInterrupt

    left: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        copy_to(bank, place, cut)
    assert len(HistoryBank.open(place)) == sum(left) < len(bank)
    further: list[int] = []
    assert same(bank, copy_to(bank, place, further.append))
    assert sum(left) + sum(further) == len(bank)


def test_a_bank_that_holds_something_else_is_no_copy(bank: HistoryBank, place: str) -> None:
    other = HistoryBank.create(place, FINGERPRINT, WIDTH, VOCABULARY)
    other.append([segment([[9, 9]], "other")], "ann")
    with pytest.raises(BankError, match=r"is no copy of .* it held something else before, or was changed meanwhile"):
        copy_to(bank, place)


def test_a_bank_of_another_model_is_refused(bank: HistoryBank, place: str) -> None:
    HistoryBank.create(place, "another", WIDTH, VOCABULARY)
    with pytest.raises(BankError, match="is of another model"):
        copy_to(bank, place)


def test_labels_keep_their_names(place: str, tmp_path: Path) -> None:
    bank = HistoryBank.create(tmp_path / "bank", FINGERPRINT, WIDTH, VOCABULARY, ())
    bank.append([segment([[1, 0, 1]], "one", "bob", seed=1)], "bob", ("ant", "bee"))
    bank.append([segment([[0]], "two", "ann", seed=2)], "ann", ("cow",))
    bank.forget(ids=[0, 2])
    copy = copy_to(bank, place)
    assert copy.labels is not None
    named = {(item.namespace, *(copy.labels[outcome] for outcome in item.outcomes)) for item in copy.documents()}
    assert named == {("bob", "ant"), ("ann", "cow")}
    assert digest(copy.snapshot()) == digest(bank.snapshot())


def test_projected_keys_are_copied_as_they_are(place: str, tmp_path: Path) -> None:
    bank = HistoryBank.create(tmp_path / "bank", FINGERPRINT, 2 * WIDTH, VOCABULARY, key_width=WIDTH)
    made, added = segment([[3, 4]], seed=1)
    made.keys = torch.nn.functional.normalize(torch.randn(2, 2 * WIDTH), dim=-1).bfloat16()
    bank.append([(made, added)], "ann")
    copy = copy_to(bank, place)
    assert (copy.width, copy.state_width) == (WIDTH, 2 * WIDTH)
    assert torch.equal(next(copy.segments())[1].keys, next(bank.segments())[1].keys)


def test_where_a_folder_is_needed_an_address_is_refused(bank: HistoryBank, tmp_path: Path) -> None:
    place = in_file(tmp_path).format("mine")
    to_parquet(bank, tmp_path / "bank.parquet")
    for write in (bank.save_pretrained, lambda place: from_parquet(tmp_path / "bank.parquet", place)):
        with pytest.raises(
            BankError, match="is an address, and a folder is needed here: take one, and `lle bank copy`"
        ):
            write(place)
    assert {path.name for path in tmp_path.iterdir()} == {"bank", "bank.parquet"}


def test_the_parquet_file_of_a_copy_holds_the_same(bank: HistoryBank, place: str, tmp_path: Path) -> None:
    assert to_parquet(copy_to(bank, place), tmp_path / "copy.parquet") == len(bank)
    assert rows(from_parquet(tmp_path / "copy.parquet", tmp_path / "again")) == rows(bank)


def test_a_place_is_asked_for_a_bank(bank: HistoryBank, tmp_path: Path) -> None:
    assert bank_exists(tmp_path / "bank")
    assert not bank_exists(tmp_path / "nothing")
    pytest.importorskip("milvus_lite")
    assert not bank_exists(in_file(tmp_path).format("nothing"))


def test_the_command_copies_and_compares(bank: HistoryBank, place: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from modeling_lle.cli.bank import bank as app

    done = CliRunner().invoke(app, ["copy", str(tmp_path / "bank"), place])
    assert done.exit_code == 0, done.output
    assert f"The copy holds the same, by its digest.\n{place}: {len(bank):,} entries" in done.output
    for command in (["info", place], ["verify", place], ["forget", place, "--source", "source-1", "--compact"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    assert len(HistoryBank.open(place)) < len(bank)
