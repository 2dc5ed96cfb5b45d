"""What all numba kernels share: bfloat16 in 16 integer bits, exp and sigmoid, rows over threads."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba")
import numpy as np

from modeling_lle.kernels import numba_tools as tools

VALUES = torch.cat([torch.linspace(-30, 30, 301), torch.tensor([0.0, -0.0, 1e-30, 200.0, -200.0])])


@tools.jit()
def _functions(
    given: np.ndarray, narrow: np.ndarray, wide: np.ndarray, exps: np.ndarray, sigmoids: np.ndarray
) -> None:
    for i in range(len(given)):
        narrow[i] = tools.store(given[i], narrow[i])
        wide[i] = tools.load(narrow[i])
        exps[i] = tools.exp(given[i])
        sigmoids[i] = tools.sigmoid(given[i])


def _double(rows: np.ndarray) -> None:
    rows *= 2


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def computed() -> dict[str, Tensor]:
    """What a kernel computes from `VALUES`; one kernel, since compiling takes longest."""
    names = {"narrow": torch.bfloat16, "wide": torch.float32, "exps": torch.float32, "sigmoids": torch.float32}
    made = {name: torch.zeros(len(VALUES), dtype=dtype) for name, dtype in names.items()}
    _functions(*map(tools.as_array, (VALUES, *made.values())))
    return made


def test_bfloat16_is_rounded_as_torch_rounds_it(computed: dict[str, Tensor]) -> None:
    assert torch.equal(computed["narrow"], VALUES.bfloat16())
    assert torch.equal(computed["wide"], VALUES.bfloat16().float())


def test_exp_and_sigmoid_are_those_of_torch(computed: dict[str, Tensor]) -> None:
    torch.testing.assert_close(computed["exps"], VALUES.clamp(-87, 87).exp(), rtol=1e-6, atol=0)
    torch.testing.assert_close(computed["sigmoids"], VALUES.sigmoid(), rtol=1e-6, atol=1e-30)


def test_rows_are_split_over_threads(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "MIN_PARALLEL", 1)
    rows: Tensor = torch.ones(5, 3)
    tools.run(_double, rows)
    assert torch.equal(rows, torch.full((5, 3), 2.0))


def test_tensors_of_other_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the same number of rows, got \(2, 1\), \(3, 1\)"):
        tools.run(_double, torch.zeros(2, 1), torch.zeros(3, 1))
