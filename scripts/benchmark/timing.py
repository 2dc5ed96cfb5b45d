"""Ratios of times within one run, queries per second, and merging of results files."""

import functools
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_lle.evaluation import read_results, write_results

Row = dict[str, Any]
RESULTS = Path(__file__).resolve().parents[2] / "model_cards" / "results"


def compare(
    measured: Mapping[str, Callable[[], Any]],
    repeats: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of callables by a clock, called in turn, so that a slowing machine affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for repeat in range(warmup + repeats):
        for name, call in measured.items():
            begin = clock()
            call()
            if repeat >= warmup:
                seconds[name].append(clock() - begin)
    return seconds


def ratio(one: list[float], other: list[float]) -> float:
    """Median of the pairwise ratios one / other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def queries_per_second(
    predict: dict[str, Callable[[str], Any]], texts: Sequence[str], repetitions: int
) -> dict[str, list[float]]:
    """Queries per second of each callable in each repetition, one text at a time.

    Callables take turns, each with all texts, so that `ratio` compares neighbouring runs.
    """

    def ask(call: Callable[[str], Any]) -> None:
        for text in texts:
            call(text)

    seconds = compare({name: functools.partial(ask, call) for name, call in predict.items()}, repetitions, warmup=1)
    return {name: [len(texts) / each for each in values] for name, values in seconds.items()}


def write_rows(
    output: Path,
    command: str,
    source: str,
    rows: list[Row],
    metrics: Callable[[list[Row]], dict[str, float]],
    keys: Sequence[str] = ("dataset",),
) -> None:
    """Writes the rows of a data set after those of others in the file.

    Args:
        output: Results file.
        command: Command that made the rows; replaces earlier ones with the same source.
        source: Source of the data set.
        rows: At least one row, all with the same values of `keys`.
        metrics: Computes metrics from the rows of all data sets.
        keys: Columns that name a data set.

    Raises:
        ValueError: The file has rows without these columns.
    """
    commands = [command]
    if output.exists():
        before = read_results(output)
        if not all(key in row for row in before["rows"] for key in keys):
            raise ValueError(f"{output} has rows without {' or '.join(keys)}: remove it, or give another --output")
        rows = [row for row in before["rows"] if any(row[key] != rows[0][key] for key in keys)] + rows
        commands = [old for old in before["command"].split(" && ") if source not in shlex.split(old)] + commands
    write_results(output, " && ".join(commands), metrics(rows), rows)
