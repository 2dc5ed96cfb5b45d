"""The search index: it proposes, the bank scores; it is a cache that may be absent, damaged, older or in the way."""

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import HistoryBank
from modeling_lle.bank.files import sha256
from modeling_lle.bank.index_files import index_files, index_folder
from scripts.benchmark.damage import corrupt_index_at_random, synthetic_segment

pytest.importorskip("faiss")
from modeling_lle.bank import faiss_index as faiss_index_module

ENTRIES, WIDTH, K = 3000, 16, 8


def points(count: int, seed: int) -> Tensor:
    """Normalised points around few centres, (count, WIDTH)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(9))
    chosen = centres[torch.randint(40, (count,), generator=generator)]
    return torch.nn.functional.normalize(chosen + 0.5 * torch.randn(count, WIDTH, generator=generator), dim=-1)


def add(bank: HistoryBank, count: int, seed: int, source: str) -> None:
    bank.append([synthetic_segment(points(count, seed), source)], "default")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret of indexes belongs to the user who runs the tests, and is none of their business."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HistoryBank:
    monkeypatch.setattr("modeling_lle.bank.state.EXACT_ENTRIES", 500)
    made = HistoryBank.create(tmp_path / "bank", "synthetic", WIDTH, 1)
    add(made, ENTRIES, 1, "first")
    return made


def found(bank: HistoryBank, how: Any = "balanced") -> Tensor:
    return bank.search(points(50, 0), K, how=how).ids


def recall(bank: HistoryBank) -> float:
    true = found(bank, "exact")
    return float((found(bank)[:, :, None] == true[:, None, :]).any(1).float().mean())


def refuse(*args: Any) -> None:
    raise AssertionError("an index is made")


def test_finds_nearly_what_exact_search_finds(bank: HistoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        faiss_index_module.SETTINGS, "balanced", faiss_index_module.Setting(0.25, 4)
    )  # 1/64 of so few cells is one
    assert recall(bank) > 0.9
    queries = points(50, 0)
    exact, balanced = (bank.search(queries, K, how=how) for how in ("exact", "balanced"))
    same = exact.ids == balanced.ids
    assert same.float().mean() > 0.8
    assert torch.equal(exact.similarity[same], balanced.similarity[same])  # scored in full precision


def test_is_kept_and_made_again_where_it_is_absent(bank: HistoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    before = found(bank)
    path = bank.folder.path
    with monkeypatch.context() as patch:
        patch.setattr(faiss_index_module, "_make", refuse)
        assert torch.equal(found(HistoryBank.open(path)), before)
    shutil.rmtree(index_folder(bank.folder))
    assert torch.equal(found(HistoryBank.open(path)), before)
    assert len(list(index_files(bank.folder))) == 1


def test_entries_that_came_later_are_found(bank: HistoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    found(bank)
    with monkeypatch.context() as patch:
        patch.setattr(faiss_index_module, "_make", refuse)
        add(bank, 300, 2, "second")
        queries = points(300, 2)
        nearest = bank.search(queries, 1).ids[:, 0]
        assert (nearest == torch.arange(ENTRIES, ENTRIES + 300)).float().mean() > 0.95
    add(bank, 2000, 3, "third")  # too many: one index of them all takes the place of the first
    found(bank)
    (only,) = index_files(bank.folder)
    assert faiss_index_module.faiss.read_index(str(only.path)).ntotal == ENTRIES + 2300


@pytest.mark.parametrize("share", [0.1, 0.8])
def test_what_is_forgotten_is_not_found_and_leaves_no_gap(bank: HistoryBank, share: float) -> None:
    found(bank)
    gone = set(range(0, int(ENTRIES * share)))
    bank.forget(gone)
    ids = found(bank)
    assert not gone & set(ids.flatten().tolist())
    assert (ids >= 0).float().mean() > 0.95


def test_damage_is_never_read(bank: HistoryBank, caplog: pytest.LogCaptureFixture) -> None:
    before = found(bank)
    path = bank.folder.path
    assert corrupt_index_at_random(path, 60) == 0
    file = next(index_files(bank.folder)).path
    file.write_bytes(file.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(found(HistoryBank.open(path)), before)
    assert f"{file} is damaged, or was not made here: the search index is made again" in caplog.text


def test_an_index_from_elsewhere_is_never_parsed(
    bank: HistoryBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made it had another secret; nor is what a version of before named by its checksum alone."""
    before = found(bank)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "another user"))
    monkeypatch.setattr(faiss_index_module.faiss, "read_index", refuse)
    (made,) = index_files(bank.folder)
    forged = made.path.with_name(f"{made.path.name.partition('-')[0]}-{sha256(made.path)}.faiss")
    shutil.copy(made.path, forged)
    assert torch.equal(found(HistoryBank.open(bank.folder.path)), before)
    (again,) = index_files(bank.folder)
    assert again.path not in (made.path, forged)


def test_an_index_that_cannot_be_kept(bank: HistoryBank, caplog: pytest.LogCaptureFixture) -> None:
    index_folder(bank.folder).write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert (found(bank) >= 0).all()
    assert "the search index is not kept" in caplog.text


def test_without_faiss_the_search_is_exact(
    bank: HistoryBank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "modeling_lle.bank.faiss_index")
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
    with caplog.at_level(logging.WARNING):
        assert torch.equal(found(bank), found(bank, "exact"))
    assert "which is slow for 3000 entries: a search index needs FAISS" in caplog.text


def test_the_number_of_cells_comes_from_the_size() -> None:
    assert [faiss_index_module.cells_for(entries) for entries in (100, 50_000, 1_000_000, 10_000_000)] == [
        16,
        256,
        1024,
        4096,
    ]
