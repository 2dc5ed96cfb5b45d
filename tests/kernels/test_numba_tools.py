"""The frame that all numba kernels share."""

import pytest
import torch

pytest.importorskip("numba")
from modeling_lle.kernels.numba_tools import run


def test_rows_of_a_kernel_go_together() -> None:
    with pytest.raises(ValueError, match=r"the same number of rows, got \(3, 2\), \(2,\)"):
        run(lambda *arrays: None, torch.zeros(3, 2), torch.zeros(2))
