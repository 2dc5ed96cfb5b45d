"""The files of a bank: whatever happens to them, it is noticed, and a change is whole or has not happened."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny import make_model, make_texts, make_tokenizer

from modeling_lle import HistoryBank
from modeling_lle.bank_files_lle import MANIFEST, BankError, Folder, Manifest

TEXTS = make_texts(8, 6)


KINDS = ("manifest", "segment", "forgotten")


def make_bank(path: Path) -> Path:
    """A bank of two sources, one of them forgotten in part."""
    bank = HistoryBank.build(make_model(), make_tokenizer(), TEXTS[:5], path, source="one")
    bank.add(TEXTS[5:], source="two")
    bank.forget([1, 2])
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_bank(tmp_path / "bank")


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if not file.name.startswith("."))


def test_three_kinds_of_files(path: Path) -> None:
    names = [file.name.split("-")[0] for file in files(path)]
    assert names == ["forgotten", "manifest.json", "segment", "segment"]


def corrupt_at_random(path: Path, kind: str, corruptions: int, seed: int = 0) -> int:
    """Changes, cuts off, puts in or appends bytes of a file, again and again; how often none was named."""
    file = next(file for file in files(path) if file.name.startswith(kind))
    whole, choose, accepted = file.read_bytes(), random.Random(seed), 0
    for _ in range(corruptions):
        data = bytearray(whole)
        at = choose.randrange(len(data))
        match choose.randrange(5):
            case 0:
                data[at] ^= 1 << choose.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = choose.randbytes(3)
            case 3:
                data += choose.randbytes(5)
            case 4:
                del data[at]
        file.write_bytes(data)
        if data == whole:
            continue
        try:
            HistoryBank.open(path)
        except BankError as error:
            accepted += file.name not in str(error)
        else:
            accepted += 1
    file.write_bytes(whole)
    HistoryBank.open(path).verify()
    return accepted


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_noticed(path: Path, kind: str) -> None:
    assert corrupt_at_random(path, kind, 120) == 0


def test_missing_and_swapped_files(path: Path) -> None:
    one, two = (file for file in files(path) if file.name.startswith("segment"))
    shutil.move(one, path.parent / "away")
    with pytest.raises(BankError, match=f"{one.name} is missing: restore it"):
        HistoryBank.open(path)
    shutil.copy(two, one)
    with pytest.raises(BankError, match=f"{one.name} is damaged"):
        HistoryBank.open(path)
    with pytest.raises(BankError, match=f"{one.name} is damaged"):
        Folder(path).check(next(file for file in Folder(path).read_manifest().files if file.name == one.name))
    (path / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no manifest.json; make one with HistoryBank.build"):
        HistoryBank.open(path)


def test_a_newer_version(path: Path) -> None:
    data = (path / MANIFEST).read_bytes().replace(b'"version": 1', b'"version": 2')
    (path / MANIFEST).write_bytes(data)
    with pytest.raises(BankError, match="has version 2, the installed modeling_lle reads up to 1: upgrade"):
        HistoryBank.open(path)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": 1, "version": "x"}']
)
def test_a_manifest_that_is_none(path: Path, data: bytes) -> None:
    (path / MANIFEST).write_bytes(data)
    with pytest.raises(BankError, match=r"manifest.json is damaged"):
        HistoryBank.open(path)


def test_a_manifest_cannot_name_other_files(path: Path) -> None:
    manifest = Folder(path).read_manifest()
    info = manifest.segments[0]
    outside = Manifest("x", 6, 11, segments=(info.__class__(info.file.__class__("../a", 1, "0"), "n", 1, 1, 1),))
    (path / MANIFEST).write_bytes(outside.to_bytes())
    with pytest.raises(BankError, match=r"names '../a', which is no file of a bank"):
        HistoryBank.open(path)


def test_a_full_disk_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = HistoryBank.open(path)
    before = {file.name: file.read_bytes() for file in files(path)}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("modeling_lle.bank_files_lle._flush", full)
        for change in (lambda: bank.forget(source="two"), bank.compact):
            with pytest.raises(OSError, match="No space left on device; the bank is as it was before"):
                change()
    assert {file.name: file.read_bytes() for file in files(path)} == before
    assert len(HistoryBank.open(path)) == len(bank)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(path: Path) -> None:
    path.chmod(0o500)
    bank = HistoryBank.open(path)
    with pytest.raises(PermissionError, match="cannot write to the bank"):
        bank.forget(source="two")
    path.chmod(0o700)


def test_one_writer_at_a_time(path: Path) -> None:
    bank = HistoryBank.open(path)
    with (
        Folder(path).writing(),
        pytest.raises(TimeoutError, match="another process is writing"),
        Folder(path).writing(0.1),
    ):
        pass
    assert bank.forget(source="two") > 0


def test_two_writers_lose_nothing(path: Path) -> None:
    one, two = HistoryBank.open(path), HistoryBank.open(path)
    total = len(one)
    gone = one.forget([0])
    gone += two.forget([3])
    assert len(two) == total - gone
    assert one.refresh()
    assert len(one) == len(two)


def test_leftovers_are_reported_and_removed(path: Path) -> None:
    (path / "segment-00.safetensors").write_bytes(b"half")
    (path / ".partial-00").write_bytes(b"half")
    bank = HistoryBank.open(path)
    assert bank.verify() == [".partial-00", "segment-00.safetensors"]
    bank.forget(source="two")
    assert bank.verify() == []


def _change(path: Path) -> None:
    torch.set_num_threads(1)
    bank = HistoryBank.open(path)
    model, tokenizer = make_model(), make_tokenizer()
    for number in range(1000):
        bank.add(TEXTS[:3], source=f"more-{number}", model=model, tokenizer=tokenizer)
        bank.forget(source=f"more-{number}")
        if number % 3 == 0:
            bank.compact()


def kill_at_random(path: Path, kills: int, seed: int = 0) -> int:
    """Kills a process that adds, forgets and compacts, again and again; returns how often a bank was lost."""
    context, choose, lost = multiprocessing.get_context("fork"), random.Random(seed), 0
    expected = len(HistoryBank.open(path))
    more = sum(len(text.split()) + 1 for text in TEXTS[:3])
    for _ in range(kills):
        process = context.Process(target=_change, args=(path,))
        process.start()
        time.sleep(choose.uniform(0.005, 0.12))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        try:
            bank = HistoryBank.open(path)
            bank.verify()
            lost += len(bank) not in (expected, expected + more)
            for source in {item["source"] for item in bank.info()["sources"]} - {"one", "two"}:
                bank.forget(source=source)
            lost += len(bank) != expected
        except (BankError, OSError):
            lost += 1
    return lost


def test_a_killed_writer_loses_nothing(path: Path) -> None:
    assert kill_at_random(path, 10) == 0
