"""Banks: speed and recall of search, size against perplexity, ten million entries, a change of domain."""

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from torch import Tensor

from modeling_lle import HistoryBank, LLECache, LLEForCausalLM
from modeling_lle.bank.files import Added, Segment
from modeling_lle.bank.protocol import Search
from modeling_lle.data import StreamDataset, TextTokens, collect, load_texts, tokenize
from modeling_lle.evaluation import evaluate_stream, read_results, write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.history.prediction import BLOCK
from modeling_lle.training import calibrate

from .damage import synthetic_segment
from .inputs import Model, Source, load_model, read_states, read_tokens
from .timing import RESULTS, compare, ratio

TOKENS = "Validation tokens for perplexity; calibration uses as many before them."
SETTINGS: tuple[Search, ...] = ("exact", "balanced", "fast")
CALIBRATION_TOKENS = 30_000
PARTS = ("search", "synthetic", "domain", "damage")  # files with the metrics gathered by `bank`
GATHERED = (
    "qps_1m",
    "ppl_ratio_to_exact_1m",
    "build_ratio_to_forward",
    "qps_10m",
    "recall_10m",
    "rss_gb_10m",
    "kills",
    "kills_lost",
    "corruptions",
    "corruptions_accepted",
    "base_test_ppl",
    "stream_test_ppl",
    "bank_test_ppl",
)


def _queries(model: LLEForCausalLM, tokens: TextTokens) -> Tensor:
    """Normalised states of a text, (N, D)."""
    states = torch.cat([states for states, _ in read_states(model, tokens.ids)])
    return torch.nn.functional.normalize(states, dim=-1)


def _queries_per_second(bank: HistoryBank, queries: Tensor, neighbours: int, how: Any, repeats: int = 3) -> float:
    batches = queries.split(BLOCK)  # batch size of a model
    bank.search(batches[0], neighbours, how=how)
    speeds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for batch in batches:
            bank.search(batch, neighbours, how=how)
        speeds.append(len(queries) / (time.perf_counter() - begin))
    return statistics.median(speeds)


def _recall(found: Tensor, true: Tensor) -> float:
    """Share of the true neighbours (Q, K) among those found (Q, K)."""
    return float((found[:, :, None] == true[:, None, :]).any(1)[true >= 0].float().mean())


def search(
    model: Model,
    source: Source,
    exact_queries: Annotated[int, typer.Option(help="Queries for exact search.")] = 2000,
    tokens: Annotated[int, typer.Option(help=TOKENS)] = 20_000,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "bank-search.json",
) -> None:
    """Exact and approximate search in a bank of the training text: queries per second, recall and perplexity."""
    loaded, tokenizer = load_model(model)
    text = load_texts(source, split="train")
    neighbours = loaded.config.bank.neighbours
    with tempfile.TemporaryDirectory() as folder:
        cost = _build_cost(loaded, tokenizer, text, Path(folder))
        bank = HistoryBank.build(loaded, tokenizer, text, Path(folder) / "bank")
        queries = _queries(loaded, read_tokens(source, "validation", tokenizer, 20 * exact_queries))
        true = bank.search(queries[:exact_queries], neighbours, how="exact").ids
        loaded.attach_history(bank)
        fit, read = _halves(source, tokenizer, tokens)
        calibrate(loaded, fit, tokens)
        rows = []
        for how in SETTINGS:
            begin = time.perf_counter()
            found = bank.search(queries[:exact_queries], neighbours, how=how).ids
            seconds = time.perf_counter() - begin
            loaded.config.bank.search = how
            speed = _queries_per_second(bank, queries[: exact_queries if how == "exact" else None], neighbours, how)
            size = bank.info()["bytes"] + (0 if how == "exact" else _index_bytes(bank))
            perplexities = evaluate_stream(loaded, read).metrics()
            rows.append(
                {
                    "search": how,
                    "queries_per_second": speed,
                    "recall": _recall(found, true),
                    "bank_ppl": perplexities["bank_word_ppl"],
                    "stream_and_bank_ppl": perplexities["history_word_ppl"],
                    "first_search_seconds": seconds,
                    "bytes_per_entry": size / len(bank),
                }
            )
            typer.echo(rows[-1])
        exact, balanced, _ = rows
        metrics = {
            "entries": len(bank),
            "neighbours": neighbours,
            "qps_1m": balanced["queries_per_second"],
            "ppl_ratio_to_exact_1m": balanced["bank_ppl"] / exact["bank_ppl"],
            "build_ratio_to_forward": cost,
        }
    write_results(output, this_command(), metrics, rows)


def _index_bytes(bank: HistoryBank) -> int:
    return sum(path.stat().st_size for path in (bank.folder.path / "index").glob("*.faiss"))


def _build_cost(
    model: LLEForCausalLM, tokenizer: Any, text: Any, folder: Path, rows: int = 12_000, repeats: int = 5
) -> float:
    """Speed of building a bank relative to a bare forward pass over the same texts in equal batches."""
    some = text.select(range(min(rows, len(text))))
    ids = collect(tokenize(some, tokenizer), start=tokenizer.eos_token_id).ids
    stream = StreamDataset(ids, 64, 256, evaluation=True)
    counter = itertools.count()

    @torch.no_grad()
    def forward() -> None:
        cache = LLECache()
        for index in range(len(stream) // stream.rows):
            batch = torch.stack([stream[index * stream.rows + row]["input_ids"] for row in range(stream.rows)])
            model.model(batch, past_key_values=cache, use_cache=False)

    def build() -> None:
        HistoryBank.build(model, tokenizer, some, folder / f"cost-{next(counter)}")

    seconds = compare({"forward": forward, "build": build}, repeats, warmup=1)
    return ratio(seconds["forward"], seconds["build"])


def selection(
    model: Model,
    source: Source,
    tokens: Annotated[int, typer.Option(help=TOKENS)] = 20_000,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "bank-selection.json",
) -> None:
    """Size of a bank against perplexity by selection of entries, and the cost of searching less often."""
    loaded, tokenizer = load_model(model)
    text, (fit, read) = load_texts(source, split="train"), _halves(source, tokenizer, tokens)
    rows: list[dict[str, Any]] = []
    kept: dict[str, dict[str, Any]] = {
        "everything": {},
        "duplicates merged": {"merge": True},
        **{f"probability below {limit}": {"keep_below": limit} for limit in (0.5, 0.2, 0.05, 0.01)},
    }
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, options) in enumerate(kept.items()):
            bank = HistoryBank.build(loaded, tokenizer, text, Path(folder) / str(number), **options)
            loaded.attach_history(bank)
            rows.append({"bank": name, **_measure(loaded, bank, fit, read)})
            typer.echo(rows[-1])
        bank = HistoryBank.open(Path(folder) / "0")
        loaded.attach_history(bank)
        for limit in (0.9, 0.7, 0.5, 0.3):
            loaded.config.bank.skip_above = limit
            rows.append({"bank": f"everything, asked below {limit}", **_measure(loaded, bank, fit, read)})
            typer.echo(rows[-1])
    write_results(output, this_command(), {"tokens": len(read.ids) - 1}, rows)


def _halves(source: str, tokenizer: Any, tokens: int) -> tuple[np.ndarray, TextTokens]:
    """Validation tokens for calibration, and as many after them for measurement."""
    held_out = read_tokens(source, "validation", tokenizer, 2 * tokens)
    middle = len(held_out.ids) // 2
    rest = TextTokens(held_out.ids[middle:], held_out.words // 2, held_out.bytes // 2)
    return held_out.ids[:middle], rest


def _measure(model: LLEForCausalLM, bank: HistoryBank, fit: np.ndarray, tokens: TextTokens) -> dict[str, float]:
    """Size of a bank, and perplexity and speed with it after calibration."""
    calibrate(model, fit, len(fit))  # builds the index, if any
    metrics = evaluate_stream(model, tokens).metrics()
    return {
        "entries": len(bank),
        "mebibytes": bank.info()["bytes"] / 2**20,
        "bank_ppl": metrics["bank_word_ppl"],
        "stream_and_bank_ppl": metrics["history_word_ppl"],
        "tokens_per_second": metrics["tokens_per_second"],
    }


def domain(
    model: Annotated[str, typer.Argument(help="A folder that `lle train` wrote, of subwords.")],
    source: Annotated[str, typer.Argument(help="Text of another domain, with train, validation and test splits.")],
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "bank-domain.json",
) -> None:
    """Reads a test split of another domain without history, with the stream, and with a bank of its training text."""
    loaded, tokenizer = load_model(model)
    held_out = read_tokens(source, "validation", tokenizer, CALIBRATION_TOKENS)
    test = read_tokens(source, "test", tokenizer)
    calibrate(loaded, held_out.ids, CALIBRATION_TOKENS)
    alone = evaluate_stream(loaded, test).metrics()
    with tempfile.TemporaryDirectory() as folder:
        text = load_texts(source, split="train")
        begin = time.perf_counter()
        bank = HistoryBank.build(loaded, tokenizer, text, Path(folder) / "bank")
        minutes = (time.perf_counter() - begin) / 60
        loaded.attach_history(bank)
        calibrate(loaded, held_out.ids, CALIBRATION_TOKENS)
        both = evaluate_stream(loaded, test).metrics()
        metrics = {"entries": len(bank), "build_minutes": minutes}
    sides = {"nothing": (alone, "base"), "stream": (alone, "history"), "stream and bank": (both, "history")}
    rows: list[dict[str, Any]] = [
        {"history": name, "test_ppl": measured[f"{side}_word_ppl"], "tokens_per_second": measured["tokens_per_second"]}
        for name, (measured, side) in sides.items()
    ]
    del rows[0]["tokens_per_second"]  # measured together with the stream
    metrics |= {
        f"{name}_test_ppl": row["test_ppl"] for name, row in zip(("base", "stream", "bank"), rows, strict=True)
    }
    for row in rows:
        typer.echo(row)
    write_results(output, this_command(), metrics, rows)


SEGMENT_ENTRIES = 262_144
CENTRES = 20_000


def _synthetic(entries: int, width: int, centres: Tensor, seed: int) -> Tensor:
    """Normalised points around centres, (entries, width)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(centres), (entries,), generator=generator)
    points = centres[chosen] + 0.7 * torch.randn(entries, width, generator=generator) / width**0.5
    return torch.nn.functional.normalize(points, dim=-1)


def _centres(width: int) -> Tensor:
    return torch.nn.functional.normalize(
        torch.randn(CENTRES, width, generator=torch.Generator().manual_seed(0)), dim=-1
    )


def _segments(entries: int, width: int) -> Iterator[tuple[Segment, list[Added]]]:
    centres = _centres(width)
    for number, start in enumerate(range(0, entries, SEGMENT_ENTRIES)):
        keys = _synthetic(min(SEGMENT_ENTRIES, entries - start), width, centres, number + 1)
        yield synthetic_segment(keys, f"synthetic-{number}")


def _search_synthetic(path: Path, neighbours: int, queries: int, results: Any) -> None:
    """Searches in a separate process, to measure the memory of a reader."""
    bank = HistoryBank.open(path, verify=False)
    width = bank.manifest.width
    asked = _synthetic(queries, width, _centres(width), -1)
    begin = time.perf_counter()
    bank.search(asked[:1], neighbours)
    opened = time.perf_counter() - begin
    rows = []
    for how in ("balanced", "fast"):
        speed = _queries_per_second(bank, asked, neighbours, how)
        found = bank.search(asked[:500], neighbours, how=how).ids
        rows.append({"search": how, "queries_per_second": speed, "found": found})
    memory = psutil.Process().memory_info().rss / 1e9
    results.put((opened, memory, rows))


def synthetic(
    entries: Annotated[int, typer.Option(help="Entries.")] = 10_000_000,
    width: Annotated[int, typer.Option(help="Width of the keys.")] = 128,
    neighbours: Annotated[int, typer.Option(help="Neighbours of each query.")] = 64,
    queries: Annotated[int, typer.Option(help="Queries.")] = 10_000,
    folder: Annotated[Path | None, typer.Option(help="Folder of the bank; by default temporary.")] = None,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "bank-synthetic.json",
) -> None:
    """Memory, speed and recall of search in many entries, random points around random centres."""
    with tempfile.TemporaryDirectory() as temporary:
        path = (folder or Path(temporary)) / "bank"
        if not path.exists():
            HistoryBank.create(path, "synthetic", width, 1).append(_segments(entries, width), "default")
        context = multiprocessing.get_context("spawn")
        results = context.SimpleQueue()
        # The first process builds the index, the second one reuses it.
        for _ in range(2):
            process = context.Process(target=_search_synthetic, args=(path, neighbours, queries, results))
            process.start()
            seconds, memory, rows = results.get()
            process.join()
        bank = HistoryBank.open(path, verify=False)
        true = _true_neighbours(bank, _synthetic(queries, width, _centres(width), -1)[:500], neighbours)
        for row in rows:
            row["recall"] = _recall(row.pop("found"), true)
            typer.echo(row)
        metrics = {
            "entries": len(bank),
            "width": width,
            "neighbours": neighbours,
            "qps_10m": rows[0]["queries_per_second"],
            "recall_10m": rows[0]["recall"],
            "rss_gb_10m": memory,
            "open_seconds": seconds,
            "bytes_per_entry": (bank.info()["bytes"] + _index_bytes(bank)) / len(bank),
        }
    typer.echo(metrics)
    write_results(output, this_command(), metrics, rows)


def _true_neighbours(bank: HistoryBank, queries: Tensor, neighbours: int) -> Tensor:
    """Ids of the nearest entries (Q, K), segment by segment."""
    best, ids = torch.full((len(queries), 0), 0.0), torch.zeros(len(queries), 0, dtype=torch.long)
    for _, segment in bank.segments():
        scores = torch.cat([best, queries @ segment.keys.float().T], dim=1)
        number = torch.cat([ids, segment.ids.expand(len(queries), -1)], dim=1)
        best, order = scores.topk(min(neighbours, scores.shape[1]), dim=1)
        ids = number.gather(1, order)
    return ids


def bank(output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "bank.json") -> None:
    """Gathers the results of search, synthetic, domain and damage in one file (a second)."""
    parts = [read_results(RESULTS / f"bank-{part}.json") for part in PARTS]
    metrics = {name: value for part in parts for name, value in part["metrics"].items() if name in GATHERED}
    write_results(output, " && ".join(part["command"] for part in parts), metrics)
