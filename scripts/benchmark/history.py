"""LLE against other methods that learn from text read: perplexity, speed and memory on one backbone, in one run.

Each method is tuned on validation text, then reads the test split once, as one row. `ppl` is per word;
`tokens_per_second` is by wall clock after a warm-up; `memory_mb` is memory in addition to the model: entries, index,
copies of weights, and statistics of gradients.
"""

import dataclasses
import functools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import typer
from torch import Tensor
from tqdm import tqdm

from modeling_lle import HistoryBank, LLEForCausalLM
from modeling_lle.configuration_fields import check_keys
from modeling_lle.data import load_texts
from modeling_lle.evaluation import LanguageModelMetric, evaluate_stream
from modeling_lle.evaluation.results import format_value, this_command
from modeling_lle.history.overlay import EVERY, RATES
from modeling_lle.training import calibrate, segments
from modeling_lle.training.steps import keep_freed_pages

from .inputs import SEGMENT, Model, Source, load_model, read_tokens
from .peers import Datastore, DynamicEvaluation, NearestNeighbours, NeuralCache, read, root_mean_squares
from .peers.mixture import joined
from .timing import RESULTS, Row, compare, ratio, write_rows

SPEED_TOKENS, SPEED_REPEATS = 512, 7  # for comparing the speeds of update and dynamic evaluation
STATISTICS_TOKENS = 50_000  # training tokens for the statistics of the update
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Sources:
    """A variant of LLE: changed values of the config by dotted names, and whether to use a bank."""

    changes: dict[str, Any]
    bank: bool = False


UPDATE = "LLE update"
LLE: dict[str, Sources] = {
    "base": Sources({"use_history": False}),
    "LLE stream": Sources({}),
    "LLE stream + bank": Sources({}, bank=True),
    UPDATE: Sources({"history.stream.window": 0, "history.update.scope": "head"}),
    "LLE update of all weights": Sources({"history.stream.window": 0, "history.update.scope": "all"}),
    "LLE all": Sources({"history.update.scope": "all"}, bank=True),
}


class Comparison:
    """Setting shared by all methods: model, texts, and measurement of a pass.

    Args:
        path: Folder of the model.
        source: Data set.
        tokens: Validation tokens for tuning.
        dynamic_tokens: The same for dynamic evaluation, which is slow.
        test_tokens: Tokens of the test split; None: all.
        gradient_batches: Training batches for the root mean squares of gradients.
        folder: Folder for a bank.
    """

    def __init__(
        self,
        path: str,
        source: str,
        tokens: int,
        dynamic_tokens: int,
        test_tokens: int | None,
        gradient_batches: int,
        folder: Path,
    ) -> None:
        self.path, self.source, self.folder = path, source, folder
        self.tokens, self.dynamic_tokens, self.gradient_batches = tokens, dynamic_tokens, gradient_batches
        self.model, self.tokenizer = load_model(path)
        self.validation = read_tokens(source, "validation", self.tokenizer).ids
        self.test = read_tokens(source, "test", self.tokenizer, None if test_tokens is None else test_tokens + 1)

    @functools.cached_property
    def train(self) -> np.ndarray:
        """Token ids of the training text, one-dimensional, int32."""
        return read_tokens(self.source, "train", self.tokenizer).ids

    @functools.cached_property
    def bank(self) -> HistoryBank:
        """A bank of the training text."""
        texts = load_texts(self.source, split="train")
        return HistoryBank.build(self.model, self.tokenizer, texts, self.folder / "bank")

    def row(self, method: str, log_probs: list[Tensor], seconds: float, size: int, numbers: str) -> Row:
        """Row of a pass, from log P of the test tokens (T,) of each segment in nats, seconds, and bytes."""
        nats = -torch.cat(log_probs).numpy()
        measured: Any = LanguageModelMetric(keep_in_memory=True).compute(nats=nats, words=self.test.words)
        return {
            "method": method,
            "ppl": measured["word_ppl"],
            "tokens_per_second": len(nats) / seconds,
            "memory_mb": size / 2**20,
            "numbers": numbers,
        }


def lle(name: str, comparison: Comparison) -> list[Row]:
    """Measures a variant of LLE by the model's own interface; `calibrate` fits its sources."""
    model, _ = load_model(comparison.path)
    sources = LLE[name]
    model.config.overlay.scope = "none"  # overrides the saved value
    for key, value in sources.changes.items():
        *sections, field = key.split(".")
        setattr(functools.reduce(getattr, sections, model.config), field, value)
    if sources.bank:
        model.attach_history(comparison.bank)
    update = model.config.overlay
    if update.scope != "none":
        update.rate, update.every = RATES[update.scope], EVERY[update.scope]  # recorded in the row
        model.collect_update_statistics(segments(comparison.train, STATISTICS_TOKENS, 70))
    if sources.bank or (model.config.use_history and model.config.stream.window):
        calibrate(model, comparison.validation, comparison.tokens)
    ids = torch.from_numpy(comparison.validation[: model.config.stream.window + 2 * SEGMENT].astype(np.int64))[None]
    cache = model.score(ids[:, :-1], ids[:, 1:]).past_key_values  # warms up and fills the window
    size = tensor_bytes(cache) - tensor_bytes(cache.state)
    if sources.bank:
        index = (comparison.bank.folder.path / "index").glob("*.faiss")
        size += comparison.bank.info()["bytes"] + sum(file.stat().st_size for file in index)
    result = evaluate_stream(model, comparison.test)
    log_probs = torch.from_numpy(-result.nats["history"])
    row = comparison.row(name, [log_probs], result.seconds, size, _numbers_of(model.config, sources))
    if name == UPDATE:
        row["speed_over_dynamic"] = _speed_over_dynamic(model, comparison)
    return [row]


def _speed_over_dynamic(model: LLEForCausalLM, comparison: Comparison) -> float:
    """Speed of reading with the update relative to dynamic evaluation (SGD), both in turn."""
    text = comparison.validation[: SPEED_TOKENS + 1]
    ids, peer = torch.from_numpy(text.astype(np.int64))[None], DynamicEvaluation(comparison.model, 1e-3, 1e-3)

    def update() -> None:
        cache = None
        for begin in range(0, len(text) - 1, SEGMENT):
            part = ids[:, begin : begin + SEGMENT + 1]
            cache = model.score(part[:, :-1], part[:, 1:], past_key_values=cache).past_key_values

    seconds = compare({"update": update, "dynamic": lambda: list(peer.read(text))}, SPEED_REPEATS, warmup=1)
    return ratio(seconds["dynamic"], seconds["update"])


def _numbers_of(config: Any, sources: Sources) -> str:
    """Active sections of `history` as text."""
    used = {key.split(".")[1] for key in sources.changes if "." in key}
    used |= {"stream"} if config.use_history and config.stream.window else set()
    used |= {"bank"} if sources.bank else set()
    sections = dataclasses.asdict(config.history)
    return "; ".join(f"{name}: {describe(sections[name])}" for name in sections if name in used)


def neural_cache(name: str, comparison: Comparison) -> list[Row]:
    """The neural cache."""
    cache = NeuralCache.tuned(read(comparison.model, comparison.validation[: comparison.tokens + 1]))
    log_probs, seconds = timed(cache.read(read(comparison.model, comparison.test.ids)))
    return [comparison.row(name, log_probs, seconds, cache.bytes, describe(_numbers_of_cache(cache)))]


def _numbers_of_cache(cache: NeuralCache) -> dict[str, Any]:
    return {"theta": cache.theta, "lambda": cache.share, "window": cache.window}


def nearest_neighbours(name: str, comparison: Comparison) -> list[Row]:
    """kNN-LM."""
    datastore = Datastore(comparison.model, comparison.train)
    validation = read(comparison.model, comparison.validation[: comparison.tokens + 1])
    peer = NearestNeighbours.tuned(datastore, validation)
    log_probs, seconds = timed(peer.read(read(comparison.model, comparison.test.ids)))
    numbers = {"temperature": peer.temperature, "lambda": peer.share, "neighbours": datastore.neighbours}
    return [comparison.row(name, log_probs, seconds, datastore.bytes, describe(numbers))]


def dynamic_evaluation(name: str, comparison: Comparison, rms: bool) -> list[Row]:
    """Dynamic evaluation; with RMS also followed by a neural cache, whose time is added."""
    model, validation = comparison.model, comparison.validation[: comparison.dynamic_tokens + 1]
    squares = root_mean_squares(model, comparison.train, comparison.gradient_batches) if rms else None
    peer, tuned_on = DynamicEvaluation.tuned(model, validation, squares)
    segments, seconds = timed(tqdm(peer.read(comparison.test.ids), name, unit="segments", mininterval=10))
    numbers = {"rate": peer.rate, "decay": peer.decay}
    log_probs = [segment.base for segment in segments]
    rows = [comparison.row(name, log_probs, seconds, peer.bytes, describe(numbers))]
    if rms:
        cache = NeuralCache.tuned(joined(tuned_on, SEGMENT))
        log_probs, more = timed(cache.read(joined(segments, SEGMENT)))
        size, numbers = peer.bytes + cache.bytes, numbers | _numbers_of_cache(cache)
        rows.append(comparison.row(f"{name} + cache", log_probs, seconds + more, size, describe(numbers)))
    return rows


def timed(parts: Iterable[Item]) -> tuple[list[Item], float]:
    """Items, and the seconds that they took."""
    begin = time.perf_counter()
    items = list(parts)
    return items, time.perf_counter() - begin


def tensor_bytes(value: Any) -> int:
    """Bytes of distinct tensors in a tree of objects, sequences and mappings, without modules."""
    found: dict[int, Tensor] = {}
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            found[id(item)] = item
        elif id(item) not in seen and not isinstance(item, torch.nn.Module):
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else []
            waiting += vars(item).values() if hasattr(item, "__dict__") else []
    return sum(tensor.nbytes for tensor in found.values())


def describe(numbers: dict[str, Any]) -> str:
    """Parameters by name, as a short text."""
    parts = {
        name: " ".join(map(format_value, value)) if isinstance(value, list) else format_value(value)
        for name, value in numbers.items()
    }
    return ", ".join(f"{name} {text}" for name, text in parts.items())


METHODS: dict[str, Callable[[str, Comparison], list[Row]]] = {
    **dict.fromkeys(LLE, lle),
    "neural cache": neural_cache,
    "kNN-LM": nearest_neighbours,
    "dynamic evaluation (SGD)": functools.partial(dynamic_evaluation, rms=False),
    "dynamic evaluation (RMS)": functools.partial(dynamic_evaluation, rms=True),
}


def history(
    model: Model,
    source: Source,
    dataset: Annotated[str | None, typer.Option(help="Name in the results; by default the folder's.")] = None,
    tokens: Annotated[int, typer.Option(help="Validation tokens for tuning.")] = 20_000,
    dynamic_tokens: Annotated[int, typer.Option(help="The same for dynamic evaluation, which is slow.")] = 8_000,
    test_tokens: Annotated[int | None, typer.Option(help="Read only the first tokens of the test split.")] = None,
    gradient_batches: Annotated[int, typer.Option(help="Batches of 500 training tokens for the RMS rule.")] = 300,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; repeatable.")] = None,
    resume: Annotated[bool, typer.Option(help="Keep finished rows of an interrupted run of this command.")] = False,
    finished: Annotated[Path | None, typer.Option(help="JSON lines of finished rows; by default in runs/.")] = None,
    output: Annotated[Path, typer.Option(help="Results file; rows of other data sets in it are kept.")] = (
        RESULTS / "history.json"
    ),
) -> None:
    """LLE, neural cache, kNN-LM and dynamic evaluation on one model: perplexity, speed and memory."""
    keep_freed_pages()  # else new pages for gradients take half of dynamic evaluation's time
    chosen = method or list(METHODS)
    check_keys(chosen, METHODS, "--method")
    dataset = dataset or Path(source).name
    command = this_command()
    log = Finished(finished or Path("runs") / f"history-{dataset}.jsonl", dataset, command, resume)
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(model, source, tokens, dynamic_tokens, test_tokens, gradient_batches, Path(folder))
        for name in chosen:
            if name not in log.rows:
                typer.echo(f"{dataset}: {name}")
                log.add(name, METHODS[name](name, comparison))
            for row in log.rows[name]:
                typer.echo(row)
    rows = [{"dataset": dataset, **row} for name in chosen for row in log.rows[name]]
    write_rows(output, command, source, rows, comparisons)


class Finished:
    """Rows of finished methods, kept in a file, one line per method.

    Args:
        path: JSON lines.
        dataset, command: Identify the rows; `--resume` is ignored.
        resume: Whether to reuse matching rows of the file.
    """

    def __init__(self, path: Path, dataset: str, command: str, resume: bool) -> None:
        self.path = path
        self.key = {"dataset": dataset, "command": command.replace(" --resume", "")}
        self.rows: dict[str, list[Row]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if resume and path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
        for entry in map(json.loads, lines):
            if {name: entry[name] for name in self.key} == self.key:
                self.add(entry["method"], entry["rows"])

    def add(self, method: str, rows: list[Row]) -> None:
        """Saves the rows of a method."""
        self.rows[method] = rows
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**self.key, "method": method, "rows": rows}) + "\n")


def comparisons(rows: list[Row]) -> dict[str, float]:
    """Ratios of perplexities and speeds for each data set, as far as its rows allow.

    `over_best_peer` is relative to the lowest perplexity of a peer. The update's share of the gain of dynamic
    evaluation compares nats per word saved, with the better of SGD and RMS. Speeds are relative to SGD.
    """
    metrics: dict[str, float] = {}
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = {row["method"]: row for row in rows if row["dataset"] == dataset}
        prefix = dataset.replace("-", "_")
        peers = [row["ppl"] for name, row in own.items() if not name.startswith(("base", "LLE "))]
        base, update = own.get("base"), own.get(UPDATE)
        for name, row in own.items():
            if not name.startswith("LLE "):
                continue
            short = name.removeprefix("LLE ").replace(" + ", "_").replace(" ", "_")
            if base:
                metrics[f"{prefix}_{short}_over_base"] = row["ppl"] / base["ppl"]
            if peers:
                metrics[f"{prefix}_{short}_over_best_peer"] = row["ppl"] / min(peers)
        dynamic = [
            row for name, row in own.items() if name in ("dynamic evaluation (SGD)", "dynamic evaluation (RMS)")
        ]
        if base and update and dynamic:
            best = min(dynamic, key=lambda row: row["ppl"])
            gain, of_dynamic = (math.log(base["ppl"] / row["ppl"]) for row in (update, best))
            metrics[f"{prefix}_update_share_of_dynamic_gain"] = gain / of_dynamic
        if update and "speed_over_dynamic" in update:
            metrics[f"{prefix}_update_speed_over_dynamic"] = update["speed_over_dynamic"]
    return metrics
