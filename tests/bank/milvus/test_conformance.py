"""A bank in milvus-lite, in this process and behind a server, run through what every bank must do."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from tests.bank.conformance import CHECKS, Subject, check_search, rows
from tests.factories.milvus import MilvusBank, Server, address_of, in_file, make_subject


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    return in_file(tmp_path_factory.mktemp("lite"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "data").start()
    yield server
    server.kill()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_bank_in_a_file_does_what_every_bank_must_do(
    check: Callable[[Subject, Path], None], place: str, tmp_path: Path
) -> None:
    check(make_subject(place), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_compacted_bank_in_a_file_does_too(
    check: Callable[[Subject, Path], None], place: str, tmp_path: Path
) -> None:
    check(make_subject(place, compacted=True), tmp_path)


@pytest.mark.server
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_bank_on_a_server_does_too(check: Callable[[Subject, Path], None], server: Server, tmp_path: Path) -> None:
    check(make_subject(server.place), tmp_path)


@pytest.mark.server
def test_a_server_that_was_killed_has_everything_when_it_is_started_again(server: Server) -> None:
    bank = make_subject(server.place).filled()
    bank.forget([1, 3])
    expected, address = rows(bank), address_of(bank)
    server.kill()
    server.start()
    again = MilvusBank.open(address)
    assert rows(again) == expected
    assert rows(bank) == expected  # the handle from before has connected again
    for one in (bank, again):
        check_search(one)
    assert again.forget([0]) == 1
    assert len(bank) == len(again) == 8
