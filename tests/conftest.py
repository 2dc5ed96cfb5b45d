"""What all tests share.

`LLE_HIDE=numba,faiss make test` hides packages, as if they were not installed: the tests that need them are skipped by
`pytest.importorskip` of the package itself, and everything else must work without them.
"""

import gc
import os
import sys

import pytest
import torch

for _package in filter(None, os.environ.get("LLE_HIDE", "").split(",")):
    sys.modules[_package] = None  # type: ignore[assignment]  # then find_spec gives None, and an import fails


def pytest_collection_finish() -> None:
    """Takes what has been imported out of the garbage collector's sight.

    Every training ends with a full collection, which would look at a million objects of the libraries each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on many threads, and pytest-xdist already uses every core."""
    torch.set_num_threads(1)
