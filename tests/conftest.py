"""What all tests share.

`LLE_HIDE=numba,faiss make test` hides packages, as if they were not installed. Then a test whose subject needs one is
skipped (by `pytest.importorskip`, or by an ImportError that names the extra to install); every other must pass.
"""

import gc
import os
import re
import sys
from collections.abc import Generator

import pytest

gc.disable()  # until all is collected: passes over what is being imported take a fifth of the imports' time

HIDDEN = list(filter(None, os.environ.get("LLE_HIDE", "").split(",")))
for _package in HIDDEN:
    sys.modules[_package] = None  # type: ignore[assignment]  # then find_spec gives None, and an import fails


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from _skip_what_names_an_extra())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from _skip_what_names_an_extra())


def _skip_what_names_an_extra() -> Generator[None, object, object]:
    try:
        return (yield)
    except ImportError as error:
        if HIDDEN and re.search(r"pip install \"?modeling_lle\[", str(error)):
            pytest.skip(str(error))
        raise


def pytest_collection_finish() -> None:
    """Enables the garbage collector, and exempts everything that was imported from it.

    Every training ends with a full collection, which would visit a million objects of the libraries each time.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on many threads, and pytest-xdist already uses every core."""
    import torch  # not above: the process that starts the workers does without it

    torch.set_num_threads(1)
