"""Writers in turn."""

import threading
import time

import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from modeling_lle.bank.manifest import BankError
from modeling_lle.bank.milvus.lease import Lease
from tests.bank.conformance import FINGERPRINT, VOCABULARY, WIDTH
from tests.factories.milvus import MilvusBank, in_file, make_bank


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> MilvusBank:
    return make_bank(in_file(tmp_path_factory.mktemp("lite")), FINGERPRINT, WIDTH, VOCABULARY, None)


def lease(bank: MilvusBank, seconds: float = 5.0, wait: float = 60.0) -> Lease:
    return Lease(bank.engine, bank.names.tickets, seconds, wait)


def tickets(bank: MilvusBank) -> int:
    return len(bank.engine.query(bank.names.tickets, "number >= 0", ["id"]))


def test_one_at_a_time_in_their_order(bank: MilvusBank) -> None:
    inside, most, done = [], [], []

    def work(number: int) -> None:
        for _ in range(3):
            with lease(bank).held() as dead:
                assert dead == []
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.005)
                inside.remove(number)
            done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(done), tickets(bank)) == (1, 15, 0)


def test_a_ticket_that_does_not_move_is_passed_over(bank: MilvusBank) -> None:
    row = {"id": "dead", "number": 1, "beat": 7, "blank": [0.0, 0.0]}
    bank.engine.write(bank.names.tickets, [row], 64)
    with pytest.raises(TimeoutError), lease(bank, seconds=60, wait=0.1).held():
        pass
    one = lease(bank, seconds=0.3)
    with one.held() as dead:
        assert dead == ["dead"]
        one.bury(dead)
    assert tickets(bank) == 0


def test_a_ticket_that_moves_is_waited_for(bank: MilvusBank) -> None:
    with lease(bank, seconds=0.6).held():
        with pytest.raises(TimeoutError), lease(bank, seconds=0.6, wait=1.5).held():
            pass
        assert tickets(bank) == 1


def test_who_lost_the_ticket_is_told(bank: MilvusBank) -> None:
    one = lease(bank)
    with one.held():
        one.check()
        one.bury([one._own])
        with pytest.raises(BankError, match="others may write now: repeat the change"):
            one.check()
    one = lease(bank)
    with one.held():
        one.abandon()
    assert tickets(bank) == 1
    bank.engine.delete(
        bank.names.tickets, [row["id"] for row in bank.engine.query(bank.names.tickets, "number >= 0", ["id"])]
    )
