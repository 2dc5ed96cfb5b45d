"""LLE against other ways to learn from what has been read: perplexity, speed and memory on one backbone, in one run.

Every method is tuned on validation text, and then reads the test split once, as one row. `ppl` is per word;
`tokens_per_second` is wall-clock time of that pass, after a warm-up; `memory_mb` is what the method adds to the model:
the bytes of its entries and their index, of copies of the weights, and of statistics of gradients.
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

from modeling_lle import HistoryBank
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

SPEED_TOKENS, SPEED_REPEATS = 512, 7  # of the comparison of the update's speed with dynamic evaluation's
STATISTICS_TOKENS = 50_000  # of training text, which the update's statistics are collected on
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Sources:
    """A way to use LLE: the values of the config that differ, by their dotted names, and whether there is a bank."""

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
    """What the methods have in common: a model, the texts of a data set, and how a pass is measured.

    Args:
        path: Folder of the model.
        source: The data set.
        tokens: Validation tokens to tune on.
        dynamic_tokens: Those for dynamic evaluation, which is slow.
        test_tokens: Tokens of the test split; None: all.
        gradient_batches: Batches of training text that the gradients' root mean squares are measured on.
        folder: Where a bank is kept.
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
        """The training text (N,) int32."""
        return read_tokens(self.source, "train", self.tokenizer).ids

    @functools.cached_property
    def bank(self) -> HistoryBank:
        """A bank of the training text."""
        texts = load_texts(self.source, split="train")
        return HistoryBank.build(self.model, self.tokenizer, texts, self.folder / "bank")

    def row(self, method: str, log_probs: list[Tensor], seconds: float, size: int, numbers: str) -> Row:
        """What is kept of a pass: log P of the test tokens (T,) of each segment in nats, seconds, and bytes."""
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
    """A way to use LLE, through the model's own interface; `calibrate` fits the numbers of its sources."""
    model, _ = load_model(comparison.path)
    sources = LLE[name]
    model.config.overlay.scope = "none"  # whatever the model was saved with
    for key, value in sources.changes.items():
        *sections, field = key.split(".")
        setattr(functools.reduce(getattr, sections, model.config), field, value)
    if sources.bank:
        model.attach_history(comparison.bank)
    update = model.config.overlay
    if update.scope != "none":
        update.rate, update.every = RATES[update.scope], EVERY[update.scope]  # so that the row says them
        model.collect_update_statistics(segments(comparison.train, STATISTICS_TOKENS, 70))
    if sources.bank or (model.config.use_history and model.config.stream.window):
        calibrate(model, comparison.validation, comparison.tokens)
    ids = torch.from_numpy(comparison.validation[: model.config.stream.window + 2 * SEGMENT].astype(np.int64))[None]
    cache = model.score(ids[:, :-1], ids[:, 1:]).past_key_values  # warms up, and fills the window
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


def _speed_over_dynamic(model: Any, comparison: Comparison) -> float:
    """How many times as fast a model with the update reads as dynamic evaluation (SGD) does, both in turn."""
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
    """The sections of `history` that play a part, as text."""
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
    """Dynamic evaluation, and with RMS also a neural cache on top of it, whose time is added to that of the pass."""
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
    """The items, and the seconds that they took."""
    begin = time.perf_counter()
    items = list(parts)
    return items, time.perf_counter() - begin


def tensor_bytes(value: Any) -> int:
    """The bytes of the tensors in a tree of objects, sequences and mappings, each tensor once, without modules."""
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
    """Numbers by their names, as a short text."""
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
    dataset: Annotated[str | None, typer.Option(help="Its name in the results; else that of its folder.")] = None,
    tokens: Annotated[int, typer.Option(help="Validation tokens that methods are tuned on.")] = 20_000,
    dynamic_tokens: Annotated[int, typer.Option(help="The same of dynamic evaluation, which is slow.")] = 8_000,
    test_tokens: Annotated[int | None, typer.Option(help="Read only the first tokens of the test split.")] = None,
    gradient_batches: Annotated[int, typer.Option(help="Batches of 500 training tokens for the RMS rule.")] = 300,
    method: Annotated[list[str] | None, typer.Option(help="Only this one; can be repeated.")] = None,
    resume: Annotated[bool, typer.Option(help="Keep what an interrupted run of this command finished.")] = False,
    finished: Annotated[
        Path | None, typer.Option(help="JSON lines of what is finished, in runs/ if not given.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Results file; rows of other data sets in it are kept.")] = (
        RESULTS / "history.json"
    ),
) -> None:
    """LLE, neural cache, kNN-LM and dynamic evaluation on one model: perplexity, speed and memory."""
    keep_freed_pages()  # new pages for the gradients of every step would be half of dynamic evaluation's time
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
    """The rows of finished methods, kept in a file, one line a method.

    Args:
        path: JSON lines.
        dataset, command: What was measured and how; `--resume` makes no difference.
        resume: Whether to take up what the file holds of both.
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
        """Keeps the rows of a method."""
        self.rows[method] = rows
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**self.key, "method": method, "rows": rows}) + "\n")


def comparisons(rows: list[Row]) -> dict[str, float]:
    """Ratios of perplexities and speeds for each data set, as far as its rows allow.

    `over_best_peer` is over the lowest perplexity that any peer reaches. The update's share of the gain of dynamic
    evaluation is that of the nats per word which each saves; of SGD and RMS, the better one counts. The speed is over
    that of SGD.
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
