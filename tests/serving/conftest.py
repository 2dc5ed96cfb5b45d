"""A server with a model of each task and two tenants, one for each test module that asks for it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from tests.factories.served import ANN, KEYS, bearer, close, make_client


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of servers, as `make_client`, whose models end with the test."""
    made: list[TestClient] = []

    def one(*names: str, **options: Any) -> TestClient:
        client = make_client(options.pop("folder", tmp_path), *names, **options)
        made.append(client)
        return client

    yield one
    for client in made:
        close(client)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client that speaks for ann; the tests of a module share it."""
    client = make_client(tmp_path_factory.mktemp("histories"), "text", "label", "pair", keys=KEYS)
    client.headers.update(bearer(ANN))
    yield client
    close(client)
