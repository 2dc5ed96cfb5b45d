"""A view: segments of all sizes searched as one, from memory or from their files, with an index of some of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import HistoryBank
from modeling_lle.bank.files import BankError
from modeling_lle.bank.nearest import nearest
from modeling_lle.bank.view import View
from scripts.benchmark.damage import synthetic_segment

WIDTH, K = 16, 8


def points(count: int, seed: int) -> Tensor:
    """Normalised points, (count, WIDTH)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=generator), dim=-1)


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HistoryBank:
    """Segments of 300, 40, 5, 80 and 7 entries, which are not joined; two of them are large."""
    monkeypatch.setattr("modeling_lle.bank.bank.to_join", lambda *given: [])
    monkeypatch.setattr("modeling_lle.bank.view.LARGE", 50)
    made = HistoryBank.create(tmp_path / "bank", "synthetic", WIDTH, 1)
    for seed, size in enumerate((300, 40, 5, 80, 7)):
        made.append([synthetic_segment(points(size, seed), f"source {seed}")], "default")
    return made


def all_keys(bank: HistoryBank) -> Tensor:
    return torch.cat([batch.keys for batch in bank.snapshot().entries()])


def test_small_segments_are_searched_together(bank: HistoryBank) -> None:
    view, keys = bank.snapshot().view(None, "exact"), all_keys(bank)
    assert [(first, len(part)) for first, part in view.parts] == [(0, 300), (300, 45), (345, 80), (425, 7)]
    chosen = torch.tensor([431, 0, 344, 299, 345, 300])
    assert torch.equal(view.keys_of(chosen), keys[chosen])
    usable = torch.ones(len(keys), dtype=torch.bool)
    similarity, index = view.search(points(20, 9), K)
    expected = nearest(points(20, 9), [(0, keys)], usable, K)
    assert torch.equal(index, expected[1])
    torch.testing.assert_close(similarity, expected[0])


class Known:
    """An index that proposes all that it covers."""

    def __init__(self, entries: int) -> None:
        self.entries = entries

    def candidates(self, queries: Tensor, neighbours: int, usable: float) -> Tensor:
        return torch.arange(self.entries).expand(len(queries), -1)


def make_view(bank: HistoryBank) -> View:
    state, infos = bank.snapshot(), list(bank.manifest.segments)
    return View(state.folder, infos, [state.files[info.file] for info in infos], state.forgotten)


@pytest.mark.parametrize("covered", [[0, 1], [3, 0], [2, "gone", 4]])
def test_an_index_of_some_segments_is_complemented(bank: HistoryBank, covered: list[Any]) -> None:
    bank.forget([2, 310, 431])
    view, infos = make_view(bank), bank.manifest.segments
    expected = view.search(points(20, 9), K)
    sizes = [(info.file.name, info.entries) for info in infos]
    known = dict(("gone", 11) if number == "gone" else sizes[number] for number in covered)
    view.use_index(Known(sum(known.values())), known)
    assert sum(len(keys) for _, keys in view.rest) == sum(size for name, size in sizes if name not in known)
    found = view.search(points(20, 9), K)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0])


@pytest.fixture
def in_files(bank: HistoryBank, monkeypatch: pytest.MonkeyPatch) -> View:
    """A view whose index proposes all entries, and whose keys are too large for the memory."""
    pytest.importorskip("numba")
    monkeypatch.setattr("modeling_lle.bank.view.IN_MEMORY", 0)
    view = make_view(bank)
    view.use_index(Known(len(view)), {info.file.name: info.entries for info in bank.manifest.segments})
    return view


def test_keys_that_stay_in_their_files(in_files: View) -> None:
    assert len(in_files.files) == 5
    similarity, index = in_files.search(points(50, 0), K)
    expected = in_files.exact(points(50, 0), K)
    assert torch.equal(index, expected[1])
    assert torch.equal(similarity, expected[0])


def test_a_file_that_was_truncated_while_the_bank_was_open(in_files: View) -> None:
    in_files.search(points(1, 0), K)
    in_files.files = [(file, 1 << 40) for file, _ in in_files.files]  # the keys would begin after the end
    with pytest.raises(BankError, match=r"cannot read a segment: .*truncated or replaced .*: open the bank again"):
        in_files.search(points(1, 1), K)
