"""Eight processes that write and eight that read one bank on a server: nothing is lost, and nobody sees half a change.

Each writer adds documents of two rows, as one change, and forgets some of its own; it notes what the bank has
acknowledged. A reader that sees one row of a change must see the other, and must not find what was forgotten before
its search began.
`LLE_MILVUS_SECONDS=300` runs it for five minutes.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from tests.bank.conformance import FINGERPRINT, VOCABULARY, WIDTH, queries, segment
from tests.factories.milvus import MilvusBank, Server, address_of, make_bank

SECONDS = float(os.environ.get("LLE_MILVUS_SECONDS", "5"))
CLIENTS, LEAST = 8, 3


def note(path: Path, what: list[Any]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(what) + "\n")


def notes(path: Path) -> list[list[Any]]:
    lines = path.read_text().split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]


def write(address: str, number: int, folder: Path, ready: Any) -> None:
    bank, namespace, row = MilvusBank.open(address), f"writer-{number}", 0
    ready.wait()
    end = time.time() + SECONDS
    while row < LEAST or time.time() < end:
        outcomes, seed = [[number, row % 40], [row % 40, number]], 1000 * number + row
        bank.append([segment(outcomes, f"change-{row}", namespace, seed, 2 * row)], namespace)
        note(folder / f"added-{number}", [row])
        if row % 3 == 2:
            bank.forget(source=f"change-{row - 1}", namespace=namespace)
            note(folder / f"forgotten-{number}", [row - 1, time.time()])
        row += 1


def read(address: str, number: int, folder: Path, ready: Any) -> None:
    bank, namespace = MilvusBank.open(address), f"writer-{number}"
    ready.wait()
    end, times = time.time() + SECONDS, 0
    while times < LEAST or time.time() < end:
        times += 1
        gone = {f"change-{row}" for row, _ in notes(folder / f"forgotten-{number}")}
        state = bank.snapshot()
        found = state.search(queries(2), 50, state.held([namespace]))
        texts = state.describe(found.ids[found.ids >= 0].unique().tolist())
        if bad := gone & {text.source for text in texts}:
            note(folder / "wrong", ["found what was forgotten", sorted(bad)])
        sizes: dict[str, int] = {}
        for document in state.documents([namespace]):
            sizes[document.source] = sizes.get(document.source, 0) + len(document.ids)
        if any(size != 4 for size in sizes.values()):
            note(folder / "wrong", ["saw half a change", sizes])
        if bad := gone & sizes.keys():
            note(folder / "wrong", ["listed what was forgotten", sorted(bad)])
        note(folder / f"read-{number}", [len(sizes)])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "data").start()
    yield server
    server.kill()


@pytest.mark.server
def test_eight_writers_and_eight_readers_lose_nothing(server: Server, tmp_path: Path) -> None:
    bank = make_bank(server.place, FINGERPRINT, WIDTH, VOCABULARY, None)
    address, own = address_of(bank), multiprocessing.get_context("forkserver")
    own.set_forkserver_preload(["pymilvus", __name__])  # else each process imports everything
    ready = own.Barrier(2 * CLIENTS, timeout=300)
    clients = [
        own.Process(target=work, args=(address, number, tmp_path, ready))
        for work in (write, read)
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(SECONDS + 420)
    assert [client.exitcode for client in clients] == [0] * (2 * CLIENTS)
    assert notes(tmp_path / "wrong") == []
    bank = MilvusBank.open(address)
    held = {(document.namespace, document.source) for document in bank.documents()}
    due = set()
    for number in range(CLIENTS):
        added = {row for (row,) in notes(tmp_path / f"added-{number}")}
        gone = {row for row, _ in notes(tmp_path / f"forgotten-{number}")}
        due |= {(f"writer-{number}", f"change-{row}") for row in added - gone}
        assert added, f"writer {number} did nothing"
    assert held == due
    assert bank.verify() == []
    changes = sum(len(notes(tmp_path / f"added-{number}")) for number in range(CLIENTS))
    readings = sum(len(notes(tmp_path / f"read-{number}")) for number in range(CLIENTS))
    print(f"{changes} changes, {readings} readings in {SECONDS:g} seconds")
    server.kill()
    server.start()
    assert {(document.namespace, document.source) for document in MilvusBank.open(address).documents()} == due
