"""Exact recall: copying, pairs of key and value, and a phone book, with the stream and what reaches further.

Models of several families, of equal size, are trained on the text of a folder (families.py), unless folders of models
are given. The parameters of the rule are fitted on its validation text, natural text, for each set of sources; then
the tasks are read, and the test text once. A model with attention begins anew after its context, as in backbones.py,
while the sources go on. Two sources are compared beside the stream: the exact matches
(history/matches.py), and joined keys, of the last states of several positions, which are tried here only: a cosine of
joined keys is the mean of the cosines of their states, weighted by powers of `DECAY`.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from modeling_lle import LLECache, LLEForCausalLM
from modeling_lle.configuration_sections import MatchesConfig, StreamConfig
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.pictures import BASE, HISTORY, SIDE_COLOURS, make_figure, style
from modeling_lle.evaluation.results import format_value, this_command
from modeling_lle.history.calibration import Calibration
from modeling_lle.history.loss import IGNORED
from modeling_lle.history.matches import Matches
from modeling_lle.history.prediction import Prediction, block_size, even_blocks, predict
from modeling_lle.history.source import MatchSource, Source, StreamSource
from modeling_lle.history.stream import Stream
from modeling_lle.kernels.linear import apply_linear

from .families import MINUTES, Minutes, train_families
from .inputs import SEGMENT, context_of, load_model, parts_of, read_tokens
from .recall_tasks import RecallTask, make_tasks
from .timing import RESULTS, Row

STREAM, JOINED, MATCHES = "stream", "joined keys", "matches"
SETS: dict[str, tuple[str, ...]] = {  # of sources
    "base": (),
    "stream": (STREAM,),
    "joined keys": (JOINED,),
    "matches": (MATCHES,),
    "stream + joined keys": (STREAM, JOINED),
    "stream + matches": (STREAM, MATCHES),
    "stream + joined keys + matches": (STREAM, JOINED, MATCHES),
}
JOINED_STATES, DECAY = 4, 0.5
WINDOW, REACH = 2000, 65536  # entries of stream and joined keys, tokens of the matches
COPIES, PAIRS, DISTANCES = (16, 64, 256, 1024), (4, 16, 64, 128), (0, 1024, 4096)
FAR = {"copy": 1024, "pairs, 0 between": 64, "pairs, 1 between": 64}  # the sizes of the metrics
SHOWN = ("copy", "pairs, 0 between", "pairs, 1 between", "pairs, 3 between", "phone book")


@dataclass
class Numbers:
    """The parameters of the rule for each source."""

    stream: StreamConfig
    joined: StreamConfig
    matches: MatchesConfig

    @classmethod
    def initial(cls) -> "Numbers":
        """Those that a new configuration has."""
        return cls(StreamConfig(window=WINDOW), StreamConfig(window=WINDOW), MatchesConfig(window=REACH))

    def of(self, names: Sequence[str]) -> dict[str, Any]:
        """The sections of some sources, by their names."""
        sections = {STREAM: self.stream, JOINED: self.joined, MATCHES: self.matches}
        return {name: sections[name] for name in names}


@dataclass
class Encoded:
    """Rows of text with the states of a model, which all sets of sources share.

    Attributes:
        ids: (R, T) int64.
        states: (R, T, D) floating, after each token.
        seconds: Processor time that they took.
    """

    ids: Tensor
    states: Tensor
    seconds: float


@torch.no_grad()
def encode(model: LLEForCausalLM, ids: Tensor) -> Encoded:
    """Reads rows of text (R, T) int64."""
    cache, states, begin = LLECache(), [], time.process_time()
    for part in parts_of(ids.shape[1], cache, context_of(model)):
        states.append(model.model(ids[:, part], past_key_values=cache, use_cache=False).last_hidden_state)
    return Encoded(ids, torch.cat(states, dim=1), time.process_time() - begin)


class Text:
    """Rows of text that are predicted with some sources of history.

    Args:
        model: The language model.
        names: The sources.
        numbers: Their parameters.
    """

    def __init__(self, model: LLEForCausalLM, names: Sequence[str], numbers: Numbers) -> None:
        self.model, self.names, self.numbers = model, names, numbers
        self.stream, self.joined = Stream(numbers.stream.window), Stream(numbers.joined.window)
        self.matches = Matches(numbers.matches.window, numbers.matches.longest)
        self.before: Tensor | None = None  # (B, JOINED_STATES - 1, D), the states before the next segment

    @torch.no_grad()
    def read(self, text: Encoded) -> Iterator[Prediction]:
        """Predictions after each token of a text, segment by segment; each must be used before the next one."""
        for begin in range(0, text.ids.shape[1], SEGMENT):
            part = slice(begin, begin + SEGMENT)
            for prediction in self._read_segment(text.ids[:, part], text.states[:, part]):
                start, stop = prediction.positions.start, prediction.positions.stop
                prediction.positions = slice(begin + start, begin + stop)
                yield prediction

    def _read_segment(self, ids: Tensor, states: Tensor) -> Iterator[Prediction]:
        rows, length = ids.shape
        widest = max(self.model.config.vocab_size, WINDOW if STREAM in self.names or JOINED in self.names else 0)
        size = block_size(rows, widest)
        sources: list[Source] = []
        blocks = even_blocks(rows, length, widest)
        if STREAM in self.names:
            near = StreamSource(self.stream, self.numbers.stream)
            blocks = near.blocks(states, ids, None, size)
            sources.append(near)
        if JOINED in self.names:
            far = StreamSource(self.joined, self.numbers.joined)
            others = far.blocks(self._joined(states), ids, None, size)
            blocks = _side_by_side(blocks, others) if STREAM in self.names else others
            sources.append(far)
        if MATCHES in self.names:
            exact = MatchSource(self.matches, self.numbers.matches)
            blocks = exact.blocks(ids, None, states, blocks)
            sources.append(exact)
        yield from predict(states, lambda block: apply_linear(self.model.lm_head, block), sources, blocks)

    def _joined(self, states: Tensor) -> Tensor:
        """The states (B, T, D) of each position and of those before it, side by side, (B, T, JOINED_STATES * D)."""
        unit = torch.nn.functional.normalize(states.float(), dim=-1)
        if self.before is None:
            self.before = unit.new_zeros(len(unit), JOINED_STATES - 1, unit.shape[-1])
        whole = torch.cat([self.before, unit], dim=1)
        self.before = whole[:, len(whole[0]) - JOINED_STATES + 1 :]
        parts = [
            whole[:, JOINED_STATES - 1 - back : whole.shape[1] - back] * DECAY ** (back / 2)
            for back in range(JOINED_STATES)
        ]
        return torch.cat(parts, dim=-1)


def _side_by_side(blocks: Iterator[slice], others: Iterator[slice]) -> Iterator[slice]:
    """The blocks, with the others taken in step, to the end of both."""
    for positions, _ in zip(blocks, others, strict=True):
        yield positions


def fit(model: LLEForCausalLM, text: Encoded, names: Sequence[str]) -> Numbers:
    """Parameters of the rule for some sources, fitted on one row of text by the descent of `calibrate`."""
    numbers = Numbers.initial()
    if not names:
        return numbers
    calibration, targets = Calibration(numbers.of(names)), following(text.ids)
    for prediction in Text(model, names, numbers).read(text):
        calibration.take(prediction, targets)
    calibration.fit(40)
    return numbers


def following(ids: Tensor) -> Tensor:
    """The token after each one, (R, T) int64; -100 after the last one."""
    return torch.nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORED)


def natural_text(model: LLEForCausalLM, text: Encoded, names: Sequence[str], numbers: Numbers) -> Row:
    """Perplexity per token of one row of text, and tokens per second of processor time."""
    targets, nats, begin = following(text.ids), [], time.process_time()
    for prediction in Text(model, names, numbers).read(text):
        nats.append(-prediction.log_probs(targets[:, prediction.positions]).sum())
    seconds, tokens = text.seconds + time.process_time() - begin, text.ids.shape[1] - 1
    return {"ppl": math.exp(float(torch.stack(nats).sum()) / tokens), "tokens_per_second": tokens / seconds}


def accuracy(model: LLEForCausalLM, task: RecallTask, text: Encoded, names: Sequence[str], numbers: Numbers) -> float:
    """Share of the tokens asked for that are the most probable ones."""
    right, targets, asked = 0, following(text.ids), torch.nn.functional.pad(task.asked[:, 1:], (0, 1))
    for prediction in Text(model, names, numbers).read(text):
        of_block = asked[:, prediction.positions]
        if of_block.any():
            best = prediction.distribution().argmax(-1)
            right += int((best == targets[:, prediction.positions])[of_block].sum())
    return right / int(asked.sum())


def measure(name: str, folder: Path, source: str, tokens: int, seed: int) -> list[Row]:
    """The rows of a model: for each set of sources its perplexity, and a row for each task."""
    model, tokenizer = load_model(str(folder))
    splits = (read_tokens(source, split, tokenizer, tokens + 1).ids for split in ("validation", "test"))
    validation, test = (encode(model, torch.from_numpy(ids.astype(np.int64))[None]) for ids in splits)
    types = torch.tensor(sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)))
    distances = [size for size in DISTANCES if size <= test.ids.shape[1]]
    tasks = make_tasks(types, test.ids[0], COPIES, PAIRS, distances, seed)
    texts = [encode(model, task.tokens) for task in tasks]
    rows: list[Row] = []
    for sources, names in SETS.items():
        numbers = fit(model, validation, names)
        row: Row = {"model": name, "sources": sources, "task": "natural text", "size": test.ids.shape[1] - 1}
        row |= natural_text(model, test, names, numbers)
        row["numbers"] = "; ".join(f"{own}: {_described(section)}" for own, section in numbers.of(names).items())
        rows.append(row)
        typer.echo(row)
        for task, text in zip(tasks, texts, strict=True):
            own = accuracy(model, task, text, names, numbers)
            rows.append({"model": name, "sources": sources, "task": task.name, "size": task.size, "accuracy": own})
        typer.echo({f"{row['task']} {row['size']}": round(row["accuracy"], 3) for row in rows[-len(tasks) :]})
    return rows


def _described(section: Any) -> str:
    gate = " ".join(map(format_value, section.gate))
    numbers = f"sharpness {format_value(section.sharpness)}, recency {format_value(section.recency)}"
    return f"window {section.window}, {numbers}, gate {gate}"


def metrics(rows: list[Row]) -> dict[str, float]:
    """Accuracies at the far sizes, the lowest of all models; and natural text, relative to the stream, the highest."""
    found: dict[str, float] = {}
    models = list(dict.fromkeys(row["model"] for row in rows))
    for sources in dict.fromkeys(row["sources"] for row in rows):
        own, prefix = [row for row in rows if row["sources"] == sources], _flat(sources)
        for task, size in FAR.items():
            at = [row["accuracy"] for row in own if (row["task"], row["size"]) == (task, size)]
            found |= {f"{prefix}_accuracy_{_flat(task)}_{size}": min(at)} if at else {}
        for what in ("ppl", "tokens_per_second"):
            ratios = [_natural(rows, model, sources)[what] / _natural(rows, model, "stream")[what] for model in models]
            found[f"{prefix}_{what}_over_stream"] = max(ratios) if what == "ppl" else min(ratios)
    return found


def _flat(name: str) -> str:
    return name.replace(",", "").replace(" + ", "_").replace(" ", "_")


def _natural(rows: list[Row], model: str, sources: str) -> Row:
    return next(row for row in rows if (row["model"], row["sources"], row["task"]) == (model, sources, "natural text"))


def draw_recall(results: dict[str, Any]) -> Figure:
    """Accuracy against size, a panel for each task and a row of panels for each model."""
    rows = [row for row in results["rows"] if "accuracy" in row]
    models = list(dict.fromkeys(row["model"] for row in rows))
    colours = {"base": BASE, "stream": SIDE_COLOURS["stream"], "stream + matches": HISTORY}
    figure = make_figure(3.2 * len(SHOWN), 3.1 * len(models))
    panels = figure.subplots(len(models), len(SHOWN), sharey=True, squeeze=False)
    for model, line in zip(models, panels, strict=True):
        for task, axes in zip(SHOWN, line, strict=True):
            style(axes, f"{model}: {task}", "tokens between" if task == "phone book" else "size", "")
            for sources, colour in colours.items():
                own = [r for r in rows if (r["model"], r["task"], r["sources"]) == (model, task, sources)]
                axes.plot(
                    [str(r["size"]) for r in own], [r["accuracy"] for r in own], "o-", color=colour, label=sources
                )
            axes.set_ylim(-0.03, 1.03)
        line[0].set_ylabel("accuracy")
    panels[0][0].legend(frameon=False, loc="center left")
    return figure


def recall(
    source: Annotated[str, typer.Argument(help="Text with train, validation and test splits.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Folder of a model in place of the families; repeatable.")
    ] = None,
    train: Annotated[Path, typer.Option(help="Folder of models of the families; those that it lacks are trained.")] = (
        Path("runs/families")
    ),
    minutes: Minutes = MINUTES,
    tokens: Annotated[int, typer.Option(help="Tokens to read of validation and of test text.")] = 12_000,
    seed: Annotated[int, typer.Option(help="Of the random tokens.")] = 0,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "recall.json",
) -> None:
    """Exact recall over growing distance, with the stream and with sources that reach further (an hour or so)."""
    folders = {Path(path).name: Path(path) for path in model or []}
    folders = folders or train_families(source, train, typer.echo, minutes)
    rows = [row for name, folder in folders.items() for row in measure(name, folder, source, tokens, seed)]
    write_results(output, this_command(), metrics(rows), rows)
