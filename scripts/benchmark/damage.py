"""Damage to banks: writers killed at random, files corrupted at random. Tests use it, too."""

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from modeling_lle import HistoryBank, LLEConfig, LLEForCausalLM, LLETokenizer
from modeling_lle.bank.files import MANIFEST, Added, BankError, Segment
from modeling_lle.bank.index_files import index_folder
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command

from .timing import RESULTS

TEXTS = ["a b c d", "e f", "g h a b", "c c d", "h", "a c e g", "b d f h", "f e d"]
INDEXED = 60_000  # entries searched with an index
WIDTH = 16


def make_writer() -> tuple[LLEForCausalLM, Any]:
    """A small model and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = LLETokenizer.train(TEXTS, kind="word")
    return LLEForCausalLM(LLEConfig(vocab_size=len(tokenizer), hidden_size=6)).eval(), tokenizer


def make_bank(path: Path) -> Path:
    """A bank of two sources, one of them partly forgotten."""
    bank = HistoryBank.build(*make_writer(), TEXTS[:5], path, source="one")
    bank.add(TEXTS[5:], source="two")
    bank.forget([1, 2])
    return path


def synthetic_segment(keys: Tensor, source: str = "synthetic") -> tuple[Segment, list[Added]]:
    """Entries of one document with these keys (N, D), as `HistoryBank.append` takes them."""
    size = len(keys)
    segment = Segment(
        keys=keys.bfloat16(),
        ids=torch.arange(size),
        positions=torch.arange(1, size + 1),
        counts=torch.ones(size, dtype=torch.int32),
        copies=torch.zeros(0, 2, dtype=torch.long),
        tokens=torch.zeros(size + 1, dtype=torch.int32),
        starts=torch.tensor([0, size + 1]),
        documents=[{"source": source, "row": 0}],
    )
    return segment, [Added("default", source, 1)]


def make_indexed_bank(path: Path, entries: int = INDEXED) -> Path:
    """A bank large enough for a search index, with its index."""
    bank = HistoryBank.create(path, "synthetic", WIDTH, 1)
    keys = torch.randn(entries, WIDTH, generator=torch.Generator().manual_seed(0))
    bank.append([synthetic_segment(torch.nn.functional.normalize(keys, dim=-1))], "default")
    bank.search(keys[:1].float(), 1)
    return path


def damaged(whole: bytes, choose: random.Random) -> bytes:
    """Bytes with one changed, inserted, appended or removed, or truncated."""
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
    return bytes(data)


def corrupt_at_random(path: Path, kind: str, corruptions: int, seed: int = 0) -> int:
    """Repeatedly damages a file of a bank by its prefix `kind`; returns how often the error did not name it."""

    def is_accepted(file: Path) -> bool:
        try:
            HistoryBank.open(path)
        except BankError as error:
            return file.name not in str(error)
        return True

    accepted = _corrupt(next(path.glob(f"{kind}*")), corruptions, seed, is_accepted)
    HistoryBank.open(path).verify()
    return accepted


def corrupt_index_at_random(path: Path, corruptions: int, seed: int = 0) -> int:
    """Repeatedly damages the search index of a bank; returns how often it was read nevertheless."""
    from modeling_lle.bank import faiss_index as faiss_index_module

    bank = HistoryBank.open(path)

    def is_accepted(file: Path) -> bool:
        return faiss_index_module.load(bank.folder, bank.manifest.segments) is not None

    file = next(index_folder(bank.folder).glob("*.faiss"))
    assert is_accepted(file)
    return _corrupt(file, corruptions, seed, is_accepted)


def corrupt_parquet_at_random(path: Path, corruptions: int, seed: int = 0) -> int:
    """Repeatedly damages an exported Parquet file; returns how often a different bank was imported."""
    from modeling_lle.bank.parquet import from_parquet, to_parquet

    target, file = path.with_name("imported"), path.with_suffix(".parquet")
    to_parquet(HistoryBank.open(path), file)
    keys = _keys(HistoryBank.open(path))

    def is_accepted(file: Path) -> bool:
        shutil.rmtree(target, ignore_errors=True)
        try:
            made = from_parquet(file, target)
        except BankError as error:
            return file.name not in str(error) or (target / MANIFEST).exists()
        return not torch.equal(_keys(made), keys)  # meaningless bytes may differ

    return _corrupt(file, corruptions, seed, is_accepted)


def _keys(bank: HistoryBank) -> Tensor:
    return torch.cat([segment.keys for _, segment in bank.segments()])


def _corrupt(file: Path, corruptions: int, seed: int, is_accepted: Callable[[Path], bool]) -> int:
    whole, choose, accepted = file.read_bytes(), random.Random(seed), 0
    for _ in range(corruptions):
        data = damaged(whole, choose)
        if data != whole:
            file.write_bytes(data)
            accepted += is_accepted(file)
    file.write_bytes(whole)
    return accepted


def _change(path: Path) -> None:
    torch.set_num_threads(1)
    bank = HistoryBank.open(path)
    model, tokenizer = make_writer()
    for number in range(1000):
        bank.add(TEXTS[:3], source=f"more-{number}", model=model, tokenizer=tokenizer)
        bank.forget(source=f"more-{number}")
        if number % 3 == 0:
            bank.compact()


def kill_at_random(path: Path, kills: int, seed: int = 0, longest: float = 0.2) -> tuple[int, int]:
    """Repeatedly kills a process that adds, forgets and compacts, after up to `longest` seconds of work.

    Returns:
        How often the bank was neither in the state before nor after the change, and how often a change was under way.
    """
    context, choose = multiprocessing.get_context("fork"), random.Random(seed)
    before, lost, under_way = len(HistoryBank.open(path)), 0, 0
    more = sum(len(text.split()) + 1 for text in TEXTS[:3])
    for _ in range(kills):
        generation = HistoryBank.open(path).manifest.generation
        process = context.Process(target=_change, args=(path,))
        process.start()
        while process.is_alive() and HistoryBank.open(path).manifest.generation == generation:
            time.sleep(0.001)  # the first change is done
        time.sleep(choose.uniform(0, longest))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        try:
            bank = HistoryBank.open(path)
            under_way += bool(bank.verify())
            right = len(bank) in (before, before + more)
            for source in {item["source"] for item in bank.info()["sources"]} - {"one", "two"}:
                bank.forget(source=source)
            lost += not (right and len(bank) == before)
        except (BankError, OSError):
            lost += 1
    return lost, under_way


def damage(
    kills: Annotated[int, typer.Option(help="Number of kills.")] = 200,
    corruptions: Annotated[int, typer.Option(help="Corruptions per kind of file.")] = 500,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "bank-damage.json",
) -> None:
    """Kills writers and corrupts files at random; counts lost banks and unnoticed damage."""
    with tempfile.TemporaryDirectory() as folder:
        lost, under_way = kill_at_random(make_bank(Path(folder) / "killed"), kills)
        path = make_bank(Path(folder) / "corrupted")
        kinds = ("manifest", "segment", "forgotten")
        accepted = {kind: corrupt_at_random(path, kind, corruptions) for kind in kinds}
        accepted["parquet"] = corrupt_parquet_at_random(path, corruptions)
        indexed = make_indexed_bank(Path(folder) / "indexed")
        accepted["index"] = corrupt_index_at_random(indexed, corruptions)
        shutil.rmtree(indexed)
    metrics = {
        "kills": kills,
        "kills_under_way": under_way,
        "kills_lost": lost,
        "corruptions": corruptions * len(accepted),
        "corruptions_accepted": sum(accepted.values()),
    }
    rows = [{"file": kind, "corruptions": corruptions, "accepted": count} for kind, count in accepted.items()]
    typer.echo(metrics)
    for row in rows:
        typer.echo(row)
    write_results(output, this_command(), metrics, rows)
