"""What a bank of 10^6 to 10^10 entries takes: bytes, seconds and money, from what is measured and a stated model.

Measured: encoding, opening, and the bytes of an entry, on a text; the index and search, on random points as wide as
the model's states, at several sizes. The model: bytes, encoding and memory grow as the number of entries N; the index
is made in time N^1.5, as there are about N^0.5 cells and each key is compared with all of them; a search reads a fixed
share of the entries, and so takes time N; both beside a constant. Prices are assumptions of whoever runs it, given as
options, and no offer of anybody. Only processor time is counted, which other programs change less than that of a
clock.
"""

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from modeling_lle import HistoryBank
from modeling_lle.bank.protocol import Search
from modeling_lle.data import load_texts
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command

from .bank import _centres, _index_bytes, _segments, _synthetic
from .bank_ranks import count_rows
from .inputs import OwnModel, OwnSource, given_or_made, load_model
from .timing import RESULTS, Row

SIZES = (60_000, 250_000, 1_000_000)
PLANNED = tuple(10**power for power in range(6, 11))
NEIGHBOURS = 64
SHORT = 128  # width of shorter keys
ASKED = 256  # queries that search is timed with, one at a time
COLUMNS = 17  # bytes of an entry in the memory of a reader: id, outcome, count, and whether it was forgotten
GIGABYTE, HOUR = 1e9, 3600
METHODS: dict[str, Search] = {"folder, exact": "exact", "folder, index": "balanced", "folder, index, fast": "fast"}


def bank_scale(
    model: OwnModel = None,
    source: OwnSource = None,
    tokens: Annotated[int, typer.Option(help="Training tokens that encoding is measured on, about.")] = 200_000,
    entries: Annotated[list[int] | None, typer.Option(help="Sizes to search, repeatable.")] = None,
    key_width: Annotated[list[int] | None, typer.Option(help="Widths of shorter keys, repeatable.")] = None,
    disk_price: Annotated[float, typer.Option(help="Assumed price of a GB of disk for a month.")] = 0.1,
    memory_price: Annotated[float, typer.Option(help="Assumed price of a GB of memory for a month.")] = 3.0,
    core_price: Annotated[float, typer.Option(help="Assumed price of a core for an hour.")] = 0.04,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "bank-scale.json",
) -> None:
    """What an entry costs, measured, and what banks of 10^6 to 10^10 entries cost by a model."""
    with given_or_made(model, source) as (name, text), tempfile.TemporaryDirectory() as folder:
        encoded = _encoding(name, text, count_rows(name, text, tokens), Path(folder))
        typer.echo(encoded)
        width, measured = int(encoded.pop("width")), []
        for own in [width, *(key_width or [SHORT])]:
            for size in sorted(entries or SIZES):
                measured.append(_searched(Path(folder) / f"{own}-{size}", size, own))
                typer.echo(measured[-1])
    planned = [
        _plan(encoded, [row for row in measured if row["width"] == own], count, method, width)
        for own in dict.fromkeys(row["width"] for row in measured)
        for count in PLANNED
        for method in ("folder, exact", "folder, index")
    ]
    prices = {"disk": disk_price, "memory": memory_price, "core": core_price}
    for row in planned:
        row["price_to_build"] = (row["encoding_core_hours"] + row["index_core_hours"]) * core_price
        row["price_a_month"] = row["disk_gb"] * disk_price + row["memory_gb"] * memory_price
    metrics = {"width": width, **encoded, **{f"assumed_{name}_price": price for name, price in prices.items()}}
    rows = [{"table": name, **row} for name, part in (("measured", measured), ("planned", planned)) for row in part]
    write_results(output, this_command(), metrics, rows)


def _encoding(model: str, source: str, rows: int, folder: Path) -> dict[str, float]:
    """Processor time and bytes of an entry of real text, and what a reader needs to open such a bank."""
    loaded, tokenizer = load_model(model)
    text = load_texts(source, split="train").select(range(rows))
    HistoryBank.build(loaded, tokenizer, text.select(range(min(8, rows))))  # compiles kernels
    begin = time.process_time()
    bank = HistoryBank.build(loaded, tokenizer, text, folder / "text")
    seconds, count = time.process_time() - begin, len(bank)
    size, keys = bank.info()["bytes"], 2 * loaded.key_size * count
    opened, memory = _in_process(_open, folder / "text")
    return {
        "width": loaded.key_size,
        "text_entries": count,
        "encoding_microseconds": 1e6 * seconds / count,
        "key_bytes": keys / count,
        "other_bytes": (size - keys) / count,
        "open_microseconds": 1e6 * opened / count,
        "text_memory_bytes": max(0, memory) / count,
    }


def _open(path: Path, results: Any) -> None:
    """Processor time of opening a bank without reading its keys, and the memory that its documents take."""
    HistoryBank.open(path, verify=False)  # loads what the first opening needs
    memory, begin = _own_memory(), time.process_time()
    bank = HistoryBank.open(path, verify=False)
    results.put((time.process_time() - begin, _own_memory() - memory, len(bank)))


def _own_memory() -> int:
    """Bytes of this process, without mapped files."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def _in_process(function: Any, *arguments: Any) -> tuple[float, float]:
    """The first two numbers that a function gives in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=function, args=(*arguments, results))
    process.start()
    found = results.get()
    process.join()
    return found[0], found[1]


def _searched(path: Path, entries: int, width: int) -> Row:
    """The index and search of random points: bytes, seconds and milliseconds of processor time."""
    bank = HistoryBank.create(path, "synthetic", width, 1)
    bank.append(_segments(entries, width), "default")
    queries = _synthetic(ASKED, width, _centres(width), -1)
    begin = time.process_time()
    bank.search(queries[:1], NEIGHBOURS, how="balanced")
    row: Row = {
        "entries": entries,
        "width": width,
        "disk_bytes": bank.info()["bytes"] / entries,
        "index_seconds": time.process_time() - begin,
        "index_bytes": _index_bytes(bank) / entries,
    }
    for name, how in METHODS.items():
        asked = queries[: 16 if how == "exact" else ASKED]
        bank.search(asked[:1], NEIGHBOURS, how=how)
        begin = time.process_time()
        for query in asked:
            bank.search(query[None], NEIGHBOURS, how=how)
        row[_milliseconds(name)] = 1e3 * (time.process_time() - begin) / len(asked)
    return row


def _milliseconds(method: str) -> str:
    return f"{METHODS[method]}_milliseconds"


def _plan(encoded: dict[str, float], measured: list[Row], entries: int, method: str, width: int) -> Row:
    """What a bank of this many entries takes, by the model of this module."""
    largest, has_index = measured[-1], method != "folder, exact"
    index_bytes, key_bytes = largest["index_bytes"] if has_index else 0.0, 2 * largest["width"]
    index_seconds = _continued(measured, "index_seconds", entries, 1.5) if has_index else 0.0
    in_memory = COLUMNS + encoded["text_memory_bytes"] + (index_bytes if has_index else key_bytes)
    return {
        "entries": entries,
        "width": largest["width"],
        "keys": "states" if largest["width"] == width else "projected",
        "method": method,
        "disk_gb": entries * (key_bytes + encoded["other_bytes"] + index_bytes) / GIGABYTE,
        "memory_gb": entries * in_memory / GIGABYTE,
        "encoding_core_hours": entries * encoded["encoding_microseconds"] / 1e6 / HOUR,
        "index_core_hours": index_seconds / HOUR,
        "open_seconds": entries * encoded["open_microseconds"] / 1e6,
        "search_milliseconds": _continued(measured, _milliseconds(method), entries),
    }


def _continued(measured: list[Row], name: str, entries: int, power: float = 1.0) -> float:
    """A value that grows in line with a power of the number of entries, as between the two largest measured sizes."""
    largest, before = measured[-1], (measured[-2] if len(measured) > 1 else {"entries": 0, name: 0.0})
    steps = largest["entries"] ** power - before["entries"] ** power
    slope = max(0.0, (largest[name] - before[name]) / steps)
    return max(0.0, float(largest[name] + slope * (entries**power - largest["entries"] ** power)))
