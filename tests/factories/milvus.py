"""Banks in milvus-lite: in this process, and behind a server that can be killed and started again."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from modeling_lle.bank.milvus.bank import MilvusBank
from tests.bank.conformance import Subject
from tests.factories.milvus_places import in_file

__all__ = ["MilvusBank", "Server", "address_of", "in_file", "make_bank", "make_subject", "normalised"]

_numbers = itertools.count()


def make_bank(place: str, *args: Any) -> MilvusBank:
    """An empty bank in a new collection; `place` holds `{}` where its name goes."""
    return MilvusBank.create(place.format(f"bank_{next(_numbers)}"), *args)


def make_subject(place: str, compacted: bool = False) -> Subject:
    """Banks at an address, for tests/bank/conformance.py."""

    def tidy(bank: MilvusBank) -> None:
        if compacted:
            bank.compact()

    return Subject(
        lambda *args: make_bank(place, *args), lambda bank: MilvusBank.open(address_of(bank)), tidy, is_service=True
    )


def address_of(bank: MilvusBank) -> str:
    """The address of a bank, with its timeout."""
    address = bank.engine.address
    return str(address) if address.is_file else f"{address}?timeout={address.timeout}"


class Server:
    """`milvus-lite server` in a process of its own.

    Args:
        folder: Where it keeps its data.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        """Address of collections on it."""
        return f"milvus://127.0.0.1:{self.port}/{{}}?timeout=20"

    def start(self) -> "Server":
        """Starts it, and waits until it answers."""
        run = "from milvus_lite.cmdline import main; main()"
        options = ["server", "--data-dir", str(self.folder), "--host", "127.0.0.1", "--port", str(self.port)]
        with open(self.folder.parent / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", run, *options],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended; see {log.name}")
            time.sleep(0.1)
        raise RuntimeError("the server does not answer")

    def kill(self) -> None:
        """Kills it without a word, as a crash does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def normalised(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """(count, width) float32 random states."""
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)
