"""The index of an exported bank: its candidates hold the nearest entries, in lists and without."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_lle.export import index
from modeling_lle.export.bank_files import _write_keys
from modeling_lle.export.runner.core import Bank, from_bfloat16, to_bfloat16


def make_keys(number: int) -> torch.Tensor:
    """Normalised keys (N, 24) in bfloat16, most of whose length is along a few directions, as in a model."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(1, 0.05, 24)
    return torch.nn.functional.normalize(torch.randn(number, 24, generator=generator) * spread, dim=-1).bfloat16()


def make_bank(folder: Path, keys: torch.Tensor, **options: Any) -> Bank:
    arrays, order = index.make_index(keys, **options)
    _write_keys(keys, order, folder / "keys.npy")
    for name, value in arrays.items():
        np.save(folder / f"{name}.npy", value)
    files = {name: f"{name}.npy" for name in ("keys", *arrays)}
    (folder / "bank.json").write_text(json.dumps({"generation": 1, "probes": index.PROBES, "files": files}))
    bank = Bank.read(folder)
    assert bank is not None
    return bank


@pytest.mark.parametrize(("listed", "least"), [(True, 0.95), (False, 0.97)])
def test_searches_find_nearly_all_of_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool, least: float
) -> None:
    monkeypatch.setattr(index, "AXES", 8)
    monkeypatch.setattr(index, "CODED", 1000)
    monkeypatch.setattr(index, "LISTED", 2000)
    keys = make_keys(6000)
    bank = make_bank(tmp_path, keys, listed=listed)
    assert ("starts" in bank.arrays) is listed
    queries = make_keys(6040)[6000:].float().numpy()
    similarity, found = bank.search(queries, 10)
    stored = from_bfloat16(np.asarray(bank.arrays["keys"]))
    np.testing.assert_allclose(similarity, (queries[:, None] * stored[found]).sum(-1), atol=1e-6)
    due = np.sort(queries @ stored.T)[:, :-11:-1]
    assert np.mean(similarity > due[:, -1:] - 1e-6) > least


def test_a_small_bank_is_searched_as_it_is(tmp_path: Path) -> None:
    keys = make_keys(50)
    bank = make_bank(tmp_path, keys)
    assert set(bank.arrays) == {"keys"}
    similarity, _ = bank.search(keys[:3].float().numpy(), 60)
    due = (keys[:3].float() @ keys.float().T).sort(descending=True).values
    np.testing.assert_allclose(similarity, due, atol=1e-6)


def test_numbers_are_rounded_to_bfloat16_as_by_torch() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert to_bfloat16(values.numpy()).tolist() == values.bfloat16().view(torch.uint16).tolist()
    assert from_bfloat16(to_bfloat16(values.numpy())).tolist() == values.bfloat16().float().tolist()
