"""The files of a bank: whatever happens to them, it is noticed, and a change is whole or has not happened."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from modeling_lle import HistoryBank
from modeling_lle.bank.files import MANIFEST, BankError, Folder
from scripts.benchmark.damage import corrupt_at_random, kill_at_random, make_bank
from scripts.benchmark.kills import DRILLS, Drill

KINDS = ("manifest", "segment", "forgotten")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_bank(tmp_path / "bank")


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if not file.name.startswith("."))


def test_three_kinds_of_files(path: Path) -> None:
    names = [file.name.split("-")[0] for file in files(path)]
    assert names == ["forgotten", "manifest.json", "segment", "segment"]


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


def test_a_full_disk_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = HistoryBank.open(path)
    before = {file.name: file.read_bytes() for file in files(path)}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("modeling_lle.bank.files._flush", full)
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
    names = [".partial-0123456789abcdef", ".tmpaB3dE9", "segment-0123456789abcdef.safetensors"]
    for name in names:
        (path / name).write_bytes(b"half")
    bank = HistoryBank.open(path)
    assert bank.verify() == names
    bank.forget(source="two")
    assert bank.verify() == []
    assert not any((path / name).exists() for name in names)


FOREIGN = ("segment-01.wav", "forgotten-songs.txt", ".partial-take", "segment-0123.safetensors", "index/songs.txt")


def put(path: Path, names: Iterable[str] = FOREIGN) -> dict[str, bytes]:
    """Writes files of a user into a folder; what is there afterwards."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("a user's")
    return contents(path)


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_files_of_others_are_never_removed(path: Path) -> None:
    put(path)
    bank = HistoryBank.open(path)
    (path / "index" / f"{'0' * 16}-{'0' * 64}.faiss").write_bytes(b"codes of keys")
    bank.forget(source="two")
    bank.compact()
    assert bank.verify() == []
    bank.folder.remove()
    assert set(contents(path)) == set(FOREIGN)


def test_a_bank_is_removed_with_its_folder(path: Path) -> None:
    Folder(path).remove()
    assert not path.exists()
    Folder(path).remove()  # nothing is there


@pytest.mark.parametrize("name", FOREIGN)
def test_no_bank_is_made_among_files_of_others(tmp_path: Path, name: str) -> None:
    before = put(tmp_path / "music", [name])
    bank = make_bank(tmp_path / "bank")
    first = name.partition("/")[0]
    for make in (
        lambda path: HistoryBank.create(path, "synthetic", 6, 11),
        lambda path: HistoryBank.open(bank).save_pretrained(path),
    ):
        with pytest.raises(FileExistsError, match=rf"music holds other files \({first}\): choose an empty folder"):
            make(tmp_path / "music")
    assert contents(tmp_path / "music") == before


def test_segments_without_a_manifest_are_the_users(path: Path) -> None:
    """Whoever has lost a manifest may have a copy of it: only a bank in the making may lose its segments."""
    (path / MANIFEST).rename(path.parent / "away")
    before = contents(path)
    with pytest.raises(FileExistsError, match=r"holds other files \(forgotten-"):
        HistoryBank.create(path, "synthetic", 6, 11)
    assert contents(path) == before
    (path / ".partial-0123456789abcdef").mkdir()
    bank = HistoryBank.create(path, "synthetic", 6, 11)
    assert set(contents(path)) == {MANIFEST, ".lock"}
    assert bank.verify() == []


@pytest.mark.slow
@pytest.mark.parametrize("drill", DRILLS.values(), ids=DRILLS.keys())
def test_kills_while_banks_are_made_and_saved(tmp_path: Path, drill: Drill) -> None:
    assert drill(tmp_path, 60, 0) == 0


def test_a_killed_writer_loses_nothing(path: Path) -> None:
    lost, _ = kill_at_random(path, 10)
    assert lost == 0
