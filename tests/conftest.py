"""What all tests share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on many threads, and pytest-xdist already uses every core."""
    torch.set_num_threads(1)
