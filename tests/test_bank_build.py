"""`scripts.bank_build` by ranks of torchrun and accelerate, one of which is killed: the bank of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank.files import PARTS
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_texts, make_word_tokenizer

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows for four segments, and the bank that one process makes."""
    folder = tmp_path_factory.mktemp("ranks")
    make_language_model().save_pretrained(folder / "model")
    make_word_tokenizer().save_pretrained(folder / "model")
    rows = [json.dumps({"text": text, "user": number % 7}) for number, text in enumerate(make_texts(45_000, 20))]
    (folder / "train.jsonl").write_text("\n".join(rows))
    run(folder, "alone", [sys.executable])
    return folder


def command(folder: Path, bank: str, launcher: list[str]) -> list[str]:
    names = [str(folder / name) for name in ("model", "train.jsonl", bank)]
    return [*launcher, "-m", "scripts.bank_build", *names, "--source", "texts"]


def run(folder: Path, bank: str, launcher: list[str]) -> None:
    done = subprocess.run(command(folder, bank, launcher), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_whole(folder: Path, name: str) -> None:
    one, other = HistoryBank.open(folder / name), HistoryBank.open(folder / "alone")
    assert one.manifest.added == other.manifest.added
    for (_, segment), (_, expected) in zip(one.segments(), other.segments(), strict=True):
        assert segment.documents == expected.documents
        for column in ("keys", "ids", "positions", "counts", "copies", "tokens", "starts"):
            assert torch.equal(getattr(segment, column), getattr(expected, column)), column
    assert not (folder / name / PARTS).exists()
    assert one.verify() == []


@pytest.mark.parametrize(
    ("name", "launcher"),
    [("two", [*TORCHRUN, "2"]), ("four", [*TORCHRUN, "4"]), ("accelerate", [*ACCELERATE, "2"])],
)
def test_ranks_make_the_bank_of_one_process(folder: Path, name: str, launcher: list[str]) -> None:
    run(folder, name, launcher)
    assert_whole(folder, name)


def test_a_killed_rank_costs_what_it_was_encoding(folder: Path) -> None:
    bank = folder / "killed"
    ranks = [
        subprocess.Popen(
            command(folder, "killed", [sys.executable]),
            cwd=ROOT,
            env={**ENVIRONMENT, "WORLD_SIZE": "2", "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    while not list(bank.glob(f"{PARTS}/*/part-*.json")):
        time.sleep(0.01)
        assert ranks[0].poll() is None
    ranks[1].send_signal(signal.SIGKILL)
    ranks[1].wait()
    assert ranks[0].wait(120) == 0
    begun = HistoryBank.open(bank)
    assert len(begun) > 0
    begun.verify()
    run(folder, "killed", [*TORCHRUN, "2"])
    assert_whole(folder, "killed")
