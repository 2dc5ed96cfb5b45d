"""Servers with tiny models for the tests of this folder, which need the extra `serve`."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

    from tests.factories.running import Running


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # hidden, as by `make test-bare`
        return False


if not all(map(_is_installed, ("fastapi", "uvicorn", "prometheus_client"))):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def make(tmp_path: Path) -> "Iterator[Callable[..., TestClient]]":
    """Makes clients of servers, as `make_client`, whose models end with the test."""
    from tests.factories.served import close, make_client

    made: list[TestClient] = []

    def one(*names: str, **options: Any) -> "TestClient":
        client = make_client(options.pop("folder", tmp_path), *names, **options)
        made.append(client)
        return client

    yield one
    for client in made:
        close(client)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[TestClient]":
    """A client that speaks for ann; the tests of a module share it."""
    from tests.factories.served import ANN, KEYS, bearer, close, make_client

    client = make_client(tmp_path_factory.mktemp("histories"), "text", "label", "pair", keys=KEYS)
    client.headers.update(bearer(ANN))
    yield client
    close(client)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and the keys of servers."""
    from tests.factories.running import make_folders

    return make_folders(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> "Iterator[Running]":
    """A server with three models; the tests of a module share it."""
    from tests.factories.running import Running

    running = Running(folder, models=("text", "label", "pair"))
    yield running
    running.stop()
