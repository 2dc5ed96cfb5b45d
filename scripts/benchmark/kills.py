"""Kills of processes that build and save banks: the state before or after remains, and the next run cleans up.

`kill_at_random` of damage.py kills writers of an existing bank. Tests use both.
"""

import functools
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modeling_lle import HistoryBank, LLEForCausalLM
from modeling_lle.bank.files import FILE_NAME, LOCK, MANIFEST, BankError
from modeling_lle.bank.manifest import HISTORY_FOLDER
from modeling_lle.common.temporary import sweep

from .damage import TEXTS, make_writer

Drill = Callable[[Path, int, int], int]


def kill(work: Callable[[], None], seconds: float) -> None:
    """Runs a function in a separate process, and kills it after the given seconds if it still runs."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()


def _duration(work: Callable[[], None]) -> float:
    work()  # compiles kernels
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _is_tidy(path: Path) -> bool:
    """Whether a folder holds only a bank and its lock."""
    names = {file.name for file in HistoryBank.open(path).manifest.files} | {MANIFEST, LOCK}
    return {file.name for file in path.iterdir()} == names


def kill_builds(folder: Path, kills: int, seed: int = 0) -> int:
    """Kills a process that builds a bank; returns how often repeating the command did not complete it."""
    model, tokenizer = make_writer()
    choose, lost = random.Random(seed), 0

    def build(path: Path) -> None:
        if (path / MANIFEST).exists():
            HistoryBank.open(path).add(TEXTS, model=model, tokenizer=tokenizer, source="texts", resume=True)
        else:
            HistoryBank.build(model, tokenizer, TEXTS, path, source="texts")

    longest = _duration(lambda: build(folder / f"whole-{choose.random()}"))
    build(folder / "whole")
    for number in range(kills):
        path = folder / str(number)
        kill(functools.partial(build, path), choose.uniform(0, 1.5 * longest))
        try:
            build(path)
            bank = HistoryBank.open(path)
            lost += len(bank) != len(HistoryBank.open(folder / "whole")) or bool(bank.verify()) or not _is_tidy(path)
        except (BankError, OSError, ValueError):
            lost += 1
    return lost


def kill_saves(folder: Path, kills: int, seed: int = 0) -> int:
    """Kills a process that overwrites a model with its bank; returns how often neither version was complete.

    The bias of the output layer counts versions of the model, entries those of the bank, which is saved last.
    """
    model, tokenizer = make_writer()
    path, choose, lost = folder / "model", random.Random(seed), 0
    model.attach_history(HistoryBank.build(model, tokenizer, TEXTS[:1]), tokenizer=tokenizer)
    bank: Any = model.history_bank
    first = len(bank)

    def save() -> None:
        model.save_pretrained(path, save_history=True)

    longest = _duration(save)
    for version in range(1, kills + 1):
        bank.add(["h"])  # two entries, the last one of <eos>
        with torch.no_grad():
            model.lm_head.bias.fill_(version)
        kill(save, choose.uniform(0, 1.5 * longest))
        try:
            loaded = LLEForCausalLM.from_pretrained(path)
            kept = HistoryBank.from_pretrained(path)
            loaded.attach_history(kept)
            versions = float(loaded.lm_head.bias.detach()[0]), (len(kept) - first) / 2
            lost += not versions[0] - 1 <= versions[1] <= versions[0] <= version
            save()
            names = {file.name for file in (path / HISTORY_FOLDER).iterdir()} - {MANIFEST, LOCK}
            lost += len(names) != len(bank.manifest.files) or not all(map(FILE_NAME.fullmatch, names))
            lost += any(file.name.startswith(".") for file in path.iterdir())
        except (BankError, OSError, ValueError):
            lost += 1
    return lost


def kill_temporary(folder: Path, kills: int, seed: int = 0) -> int:
    """Kills a process with a temporary bank; returns how often its texts outlived the next process."""
    model, tokenizer = make_writer()
    choose, lost, before = random.Random(seed), 0, tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:

        def build() -> None:
            bank = HistoryBank.build(model, tokenizer, TEXTS)
            bank.save_pretrained(folder / "kept" / str(choose.random()))

        longest = _duration(build)
        for _ in range(kills):
            kill(build, choose.uniform(0, longest))
            sweep("lle-bank-")
            lost += any(path.is_dir() for path in folder.glob("lle-bank-*/*"))
    finally:
        tempfile.tempdir = before
    return lost


DRILLS: dict[str, Drill] = {"builds": kill_builds, "saves": kill_saves, "temporary banks": kill_temporary}
