"""The banks that there are, run through what every bank must do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_lle import HistoryBank
from tests.bank.conformance import CHECKS, Subject
from tests.bank.memory_bank import MemoryBank

SUBJECTS = {
    "folder": Subject(HistoryBank.temporary, lambda bank: HistoryBank.open(bank.folder.path)),
    "compacted": Subject(
        HistoryBank.temporary, lambda bank: HistoryBank.open(bank.folder.path), lambda bank: bank.compact()
    ),
    "memory": Subject(MemoryBank.create, lambda bank: MemoryBank(bank.store)),
}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS.keys())
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_bank_does_what_every_bank_must_do(
    check: Callable[[Subject, Path], None], subject: Subject, tmp_path: Path
) -> None:
    check(subject, tmp_path)
