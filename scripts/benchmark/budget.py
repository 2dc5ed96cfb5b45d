"""The budget of a training step: arithmetic, bytes, the floor that they give on this machine, and where time goes.

    floor = operations / peak of a matrix product,    operations = 6 x weights of the matrices x tokens

The peak is the fastest of a few square products, measured in the same run as the steps, in turn. A row is a model and
a precision:

    gflop, megabytes            operations of a step; bytes that the optimizer and the clipping move, 11 x 4 a weight
    floor_ms, memory_ms         the time of each by itself, at the measured peak and bandwidth
    step_ms, over_floor         median time of a step, and its ratio to `floor_ms`, median over the repetitions
    products ... rest           share of the step's time by kind of operation, from a profile of a few steps

`products` holds the matrix products; `recurrence` those of the LSTM operator, with its gates. Shapes: B batch, T time.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from modeling_lle.common.precision import lack_of_bfloat16
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.training.steps import keep_freed_pages

from .peers.language_models import LLE, PLAIN, Subject, count, make_model
from .timing import RESULTS, Row, compare, ratio

SQUARES = (768, 1024, 2048)  # sizes of the products that the peak is measured with
MOVED = (
    11  # numbers a weight: AdamW reads 4 and writes 3, clipping reads 1 and rewrites 1, zeroing writes 1, backward 1
)
COPIED = 1 << 27  # bytes of the copy that the bandwidth is measured with
PROFILED = 3  # steps
KINDS = {
    "recurrence": ("lstm", "mkldnn_rnn"),
    "products": ("mm", "linear", "matmul", "addmv", "bmm"),
    "optimizer": ("_fused_adamw", "foreach", "vector_norm", "clip", "clamp"),
    "loss": ("softmax", "nll", "cross_entropy", "_LinearCrossEntropy", "exp", "logsumexp"),
    "copies": ("copy", "cat", "clone", "contiguous", "zero", "fill", "empty"),
}


def operations(model: nn.Module, tokens: int) -> float:
    """Floating-point operations of a training step on so many tokens: products, forward and backward."""
    return 6.0 * tokens * sum(weight.numel() for weight in model.parameters() if weight.ndim >= 2)


def training_step(subject: Subject, ids: Tensor, precision: torch.dtype) -> Callable[[], None]:
    """A training step on ids (B, T + 1): forward, backward, clipping and AdamW."""
    optimizer = torch.optim.AdamW(subject.model.parameters(), fused=True)

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = subject.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(subject.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_product(precision: torch.dtype, repeats: int = 5) -> Callable[[], float]:
    """Returns a measurement of the fastest matrix product, in operations per second."""
    squares = [torch.randn(size, size).to(precision) for size in SQUARES]

    def measure() -> float:
        best = 0.0
        for square in squares:
            for _ in range(repeats):
                begin = time.process_time()
                torch.mm(square, square)
                best = max(best, 2.0 * len(square) ** 3 / (time.process_time() - begin))
        return best

    return measure


def bandwidth(repeats: int = 5) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros(COPIED // 4)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        target.copy_(source)
        seconds.append(time.process_time() - begin)
    return 2.0 * COPIED / min(seconds)


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Share of time of each kind of operation, over a few steps."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED):
            step()
    spent = dict.fromkeys([*KINDS, "rest"], 0.0)
    for event in profiled.key_averages():
        spent[_kind(event.key)] += event.self_cpu_time_total
    return {kind: seconds / sum(spent.values()) for kind, seconds in spent.items()}


def _kind(operation: str) -> str:
    for kind, names in KINDS.items():
        if any(name in operation for name in names):
            return kind
    return "rest"


def measure_budget(
    names: list[str], vocabulary: int, width: int, rows: int, length: int, repeats: int
) -> tuple[dict[str, float], list[Row]]:
    """Metrics, and a row for each model and each precision that is fast on this machine."""
    precisions = {"float32": torch.float32}
    if lack_of_bfloat16(torch.device("cpu")) is None:
        precisions["bfloat16"] = torch.bfloat16
    ids = torch.randint(vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    subjects = {name: Subject(name, make_model(name, vocabulary, width, length).train()) for name in names}
    metrics: dict[str, float] = {"bandwidth_gb_per_second": bandwidth() / 1e9}
    measured: list[Row] = []
    for precision, dtype in precisions.items():
        steps = {name: training_step(subject, ids, dtype) for name, subject in subjects.items()}
        peaks: list[float] = []
        peak = peak_product(dtype)
        calls: dict[str, Callable[[], Any]] = {"peak": functools.partial(_append, peaks, peak), **steps}
        seconds = compare(calls, repeats, clock=time.process_time)
        peaks = peaks[-repeats:]
        metrics[f"peak_gflop_per_second_{precision}"] = statistics.median(peaks) / 1e9
        for name, subject in subjects.items():
            work, weights = operations(subject.model, rows * length), count(subject.model)
            floors = [work / each for each in peaks]
            moved = 4.0 * MOVED * weights
            row: Row = {"model": name, "precision": precision, "parameters": weights, "gflop": work / 1e9}
            row |= {"megabytes": moved / 1e6, "floor_ms": 1000 * statistics.median(floors)}
            row["memory_ms"] = moved / metrics["bandwidth_gb_per_second"] / 1e6
            row["step_ms"] = 1000 * statistics.median(seconds[name])
            row["over_floor"] = ratio(seconds[name], floors)
            row["spread"] = spread(seconds[name])
            measured.append({**row, **shares(steps[name])})
        if LLE in subjects and PLAIN in subjects:
            metrics[f"train_ratio_plain_{precision}"] = ratio(seconds[PLAIN], seconds[LLE])
        metrics |= {
            f"train_over_floor_{precision}": row["over_floor"]
            for row in measured
            if (row["model"], row["precision"]) == (LLE, precision)
        }
    return metrics, measured


def _append(values: list[float], measure: Callable[[], float]) -> None:
    values.append(measure())


def spread(values: list[float]) -> float:
    """Half of the range of the middle half of the values, as a share of the median."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return (high - low) / 2 / middle


def budget(
    vocabulary: Annotated[int, typer.Option(help="Types of the vocabulary.")] = 8000,
    width: Annotated[int, typer.Option(help="Width of LLE.")] = 512,
    rows: Annotated[int, typer.Option(help="Rows of a batch.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of a row.")] = 256,
    repeats: Annotated[int, typer.Option(help="Repetitions of each measurement.")] = 9,
) -> None:
    """Floating-point operations, bytes and floor of a training step on one thread, and where its time goes."""
    torch.set_num_threads(1)
    keep_freed_pages()
    metrics, measured = measure_budget([LLE, PLAIN], vocabulary, width, rows, length, repeats)
    write_results(RESULTS / "budget.json", this_command(), metrics, measured)
    for name, value in metrics.items():
        typer.echo(f"{name:36}{value:,.3f}")
    for row in measured:
        typer.echo(row)
