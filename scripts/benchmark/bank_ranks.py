"""Building a bank by one process and by several ranks that share the cores: seconds, and whether the banks are alike.

Every process loads the model and waits for the others; the time is from then until the last one has ended. As torchrun
does it, each of several ranks has one thread; a single process is measured with one thread, and with all cores.
"""

import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from modeling_lle import HistoryBank
from modeling_lle.bank.files import PARTS
from modeling_lle.common.machine import cores
from modeling_lle.data import collect, load_texts, tokenize
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command

from .inputs import OwnModel, OwnSource, given_or_made, load_model
from .timing import RESULTS, Row


def bank_ranks(
    model: OwnModel = None,
    source: OwnSource = None,
    tokens: Annotated[int, typer.Option(help="Training tokens of the bank, about: whole rows.")] = 1_500_000,
    ranks: Annotated[list[int] | None, typer.Option(help="Ranks, repeatable; by default 2 and 4.")] = None,
    repeats: Annotated[int, typer.Option(help="Times that each is measured, in turn.")] = 3,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "bank-ranks.json",
) -> None:
    """A bank that ranks build together, beside one process: seconds, ratio, entries that differ."""
    kinds = [(1, 1), *([(1, cores())] if cores() > 1 else []), *((number, 1) for number in ranks or [2, 4])]
    seconds: dict[tuple[int, int], list[float]] = {kind: [] for kind in kinds}
    processor: dict[tuple[int, int], list[float]] = {kind: [] for kind in kinds}
    with given_or_made(model, source) as (name, text), tempfile.TemporaryDirectory() as folder:
        rows = count_rows(name, text, tokens)
        for repeat, kind in itertools.product(range(repeats), kinds):
            wall, used = _build(_path(folder, kind, repeat), name, text, rows, *kind)
            seconds[kind].append(wall)
            processor[kind].append(used)
            typer.echo({"ranks": kind[0], "threads": kind[1], "seconds": wall, "processor_seconds": used})
        alone = HistoryBank.open(_path(folder, (1, 1), 0))
        differ = {kind: _different(HistoryBank.open(_path(folder, kind, 0)), alone) for kind in kinds}
        entries = len(alone)
    median = {kind: statistics.median(values) for kind, values in seconds.items()}
    busy = {kind: statistics.median(values) for kind, values in processor.items()}
    table: list[Row] = [
        {
            "ranks": number,
            "threads_of_each": threads,
            "seconds": median[number, threads],
            "entries_per_second": entries / median[number, threads],
            "processor_seconds": busy[number, threads],
            "processor_ratio_of_a_rank": busy[number, threads] / number / busy[1, 1],
            "time_ratio_to_one": median[number, threads] / median[1, 1],
            "entries_that_differ": differ[number, threads],
        }
        for number, threads in kinds
    ]
    metrics: dict[str, float] = {"entries": entries, "cores": cores()}
    metrics |= {f"build_ratio_{number}_ranks": median[number, 1] / median[1, 1] for number, _ in kinds if number != 1}
    if (1, cores()) in median and (2, 1) in median:
        metrics["build_ratio_2_ranks_to_all_threads"] = median[2, 1] / median[1, cores()]
    for row in table:
        typer.echo(row)
    write_results(output, this_command(), metrics, table)


def _path(folder: str, kind: tuple[int, int], repeat: int) -> Path:
    return Path(folder) / f"bank-{kind[0]}-{kind[1]}-{repeat}"


def count_rows(model: str, source: str, tokens: int) -> int:
    """How many rows of the training text have about this number of tokens."""
    _, tokenizer = load_model(model)
    text = load_texts(source, split="train")
    sample = text.select(range(min(1000, len(text))))
    return min(len(text), max(1, round(tokens / len(collect(tokenize(sample, tokenizer)).ids) * len(sample))))


def _build(path: Path, model: str, source: str, rows: int, ranks: int, threads: int) -> tuple[float, float]:
    """Seconds in which processes build a bank, and those of the processors, of all processes together."""
    context = multiprocessing.get_context("spawn")
    ready, ended = context.Barrier(ranks + 1), context.SimpleQueue()
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(threads)
    processes = [
        context.Process(target=_rank, args=(path, model, source, rows, ranks, threads, ready, ended))
        for _ in range(ranks)
    ]
    for process in processes:
        process.start()
    ready.wait()
    begin = time.perf_counter()
    processor = sum(ended.get() for _ in processes)
    seconds = time.perf_counter() - begin
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a rank ended with the exit code {process.exitcode}")
    return seconds, processor


def _rank(path: Path, model: str, source: str, rows: int, ranks: int, threads: int, ready: Any, ended: Any) -> None:
    torch.set_num_threads(threads)
    loaded, tokenizer = load_model(model)
    text = load_texts(source, split="train").select(range(rows))
    HistoryBank.build(loaded, tokenizer, text.select(range(min(8, rows))))  # compiles kernels
    ready.wait()
    begin = time.process_time()
    try:
        parts = path / PARTS if ranks > 1 else None
        HistoryBank.build(loaded, tokenizer, text, path, source="texts", parts=parts)
    finally:
        ended.put(time.process_time() - begin)


def _different(bank: HistoryBank, other: HistoryBank) -> int:
    """Number of entries that are not alike to the last bit, with their texts; all if the segments differ."""
    pairs = list(itertools.zip_longest(bank.segments(), other.segments()))
    if any(one is None or two is None or len(one[1]) != len(two[1]) for one, two in pairs):
        return max(len(bank), len(other))
    different = 0
    for (_, one), (_, two) in pairs:
        same = (one.keys == two.keys).all(1) & (one.ids == two.ids) & (one.outcomes == two.outcomes)
        different += len(one) if one.documents != two.documents else int((~same).sum())
    return different
