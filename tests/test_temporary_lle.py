"""Temporary folders: gone with their process, however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_lle.temporary_lle import ALIVE, TemporaryFolder, sweep

CODE = """
import sys, time
from modeling_lle.temporary_lle import TemporaryFolder
folder = TemporaryFolder("lle-test-", sys.argv[1])
(folder.path / "texts").write_text("of a user")
print(folder.path, flush=True)
time.sleep(60 if sys.argv[2] == "waits" else 0)
"""


@contextmanager
def process(parent: Path, how: str) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A process that makes a folder, and the folder."""
    command = [sys.executable, "-c", CODE.replace("modeling_lle.temporary_lle", "temporary_lle"), str(parent), how]
    place = Path(__file__).parent.parent / "modeling_lle"  # alone it starts at once
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
