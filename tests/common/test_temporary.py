"""Temporary folders: gone with their process, however it ends."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modeling_lle.common.temporary import ALIVE, TemporaryFolder, replacing, sweep

CODE = """
import sys, time
from modeling_lle.common.temporary import TemporaryFolder
folder = TemporaryFolder("lle-test-", sys.argv[1])
(folder.path / "texts").write_text("of a user")
print(folder.path, flush=True)
time.sleep(60 if sys.argv[2] == "waits" else 0)
"""


@contextmanager
def process(parent: Path, how: str) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A process that makes a folder, and the folder."""
    command = [sys.executable, "-c", CODE.replace("modeling_lle.common.temporary", "temporary"), str(parent), how]
    place = Path(__file__).parents[2] / "modeling_lle" / "common"  # alone it starts at once
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(place)}
    )
    assert started.stdout is not None
    try:
        yield started, Path(started.stdout.readline().strip())
    finally:
        started.kill()
        started.wait()


def test_ends_with_its_process(tmp_path: Path) -> None:
    with process(tmp_path, "ends") as (started, path):
        started.wait()
        assert not path.exists()


def test_the_next_one_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / "lle-test-of_user").mkdir()
    (tmp_path / "lle-test-of_user" / "texts").write_text("no lock: nobody knows whose")
    with process(tmp_path, "waits") as (started, path):
        own = TemporaryFolder("lle-test-", tmp_path)
        assert (path / "texts").exists()  # it lives
        started.send_signal(signal.SIGKILL)
        started.wait()
        assert (path / "texts").exists()
        with TemporaryFolder("lle-test-", tmp_path) as another:
            assert not path.exists()
            assert sorted(tmp_path.iterdir()) == sorted([own.path, another, tmp_path / "lle-test-of_user"])
    own.remove()
    assert [folder.name for folder in tmp_path.iterdir()] == ["lle-test-of_user"]


def test_a_folder_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    made = tmp_path / "lle-test-abcdefgh"
    made.mkdir()
    (made / ALIVE).touch()
    sweep("lle-test-", tmp_path)
    assert made.exists()


def test_a_process_that_is_killed_while_it_removes_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock goes last, so that the next process still knows that what is left belongs to a dead one."""
    folder = TemporaryFolder("lle-test-", tmp_path)
    removed = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **options: (removed.append(path.name), unlink(path, **options)))
    for name in ("first", "second"):
        (folder.path / name).touch()
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: removed.append(sorted(os.listdir(path))))
    folder.remove()
    assert sorted(removed[:2]) == ["first", "second"]
    assert removed[2] == [ALIVE]


def test_an_empty_folder_is_removed_when_it_is_old(tmp_path: Path) -> None:
    for name, age in (("lle-test-aaaaaaaa", 0), ("lle-test-bbbbbbbb", 90)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ALIVE).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    sweep("lle-test-", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lle-test-aaaaaaaa"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path, link = tmp_path / "file.txt", tmp_path / "link.txt"
    path.write_text("before")
    path.chmod(0o640)
    link.symlink_to(path)

    def fill_the_disk() -> None:
        with replacing(link) as made:
            made.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"cannot be written: No space left on device: .*link\.txt"):
        fill_the_disk()
    assert path.read_text() == "before"
    with replacing(link) as made:
        assert made.suffix == ".txt"
        made.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(tmp_path.iterdir()) == [path, link]
    with (
        pytest.raises(FileNotFoundError, match=r"cannot be written: .*none/file\.txt"),
        replacing(tmp_path / "none" / "file.txt"),
    ):
        pass


def test_a_pipe_is_written_itself(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with replacing(tmp_path / "pipe") as made:
        assert made == tmp_path / "pipe"
