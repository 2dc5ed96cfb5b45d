"""What all tests share."""

import gc

import pytest
import torch


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
