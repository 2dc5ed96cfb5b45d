"""Speed: a training step against nn.LSTM and with history, reading with the stream, a long generation."""

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import psutil
import torch
import typer
from torch import Tensor, nn

from modeling_lle import LLECache, LLEConfig, LLEForCausalLM
from modeling_lle.common.precision import resolve_precision
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command

from .inputs import begin_anew
from .peers.plain_lstm import PlainLSTM
from .timing import RESULTS, compare, ratio

VOCABULARY, WIDTH, LAYERS, ROWS, SEGMENT = 10_000, 512, 2, 20, 35  # as in configs/lm/ptb.yaml
WINDOW = 2000
TRAINING_WINDOW = 500


def plain_lstm() -> PlainLSTM:
    """Peer: nn.LSTM of the PTB recipe's size."""
    return PlainLSTM(VOCABULARY, WIDTH, LAYERS, between=0.3, dropout=0.45)


def lle_model(**changes: Any) -> LLEForCausalLM:
    """An untrained model of the PTB recipe's size."""
    dropouts = {"input_dropout": 0.35, "hidden_dropout": 0.3, "output_dropout": 0.45, "embedding_dropout": 0.1}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    values = {"stack": "plain", **sizes, **dropouts, **changes}
    return LLEForCausalLM(LLEConfig(**values))


def own_precision() -> torch.dtype:
    """Precision of LLE on this machine; a bfloat16 peer is measured only where bfloat16 is fast."""
    return resolve_precision("auto", torch.device("cpu"))


def training_step(model: nn.Module, precision: torch.dtype) -> Callable[[], None]:
    """A training step: forward, backward, clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(VOCABULARY, (ROWS, SEGMENT + 1))
    cache = LLECache(model.config.training.window if isinstance(model, LLEForCausalLM) else 0)

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            if isinstance(model, LLEForCausalLM):
                loss = model(ids[:, :-1], shift_labels=ids[:, 1:], past_key_values=cache.detach(), use_cache=True).loss
            else:
                loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()

    return step


def speed(repeats: Annotated[int, typer.Option(help="Repetitions of each measurement.")] = 15) -> None:
    """Training step against nn.LSTM and with history, reading with the stream, and a long generation."""
    metrics = {**_train_ratios(repeats), **_history_ratio(repeats), **_stream_cost(repeats), **_generation()}
    write_results(RESULTS / "speed.json", this_command(), metrics)
    for name, value in metrics.items():
        typer.echo(f"{name:36}{value:,.3f}")


def _train_ratios(repeats: int) -> dict[str, float]:
    """Time of a peer's step over LLE's: in equal precision, and fastest peer over LLE's own precision."""
    own = own_precision()
    names = {torch.float32: "float32", torch.bfloat16: "bf16"}
    steps = {}
    for precision in {torch.float32, own}:
        steps[f"lle_{names[precision]}"] = training_step(lle_model().train(), precision)
        steps[names[precision]] = training_step(plain_lstm(), precision)
    seconds = compare(steps, repeats)
    plain = [name for name in seconds if not name.startswith("lle")]
    chosen = seconds[f"lle_{names[own]}"]
    return {
        "train_step_ms": 1000 * statistics.median(chosen),
        **{f"train_ratio_plain_{name}": ratio(seconds[name], seconds[f"lle_{name}"]) for name in plain},
        "train_ratio_fastest_peer": min(ratio(seconds[name], chosen) for name in plain),
    }


def _history_ratio(repeats: int) -> dict[str, float]:
    """Time of a training step with history of 500 entries and other rows, over one without."""
    history = {"training": {"window": TRAINING_WINDOW}}
    steps = {
        "history": training_step(lle_model(history=history).train(), own_precision()),
        "base": training_step(lle_model().train(), own_precision()),
    }
    seconds = compare(steps, repeats, warmup=TRAINING_WINDOW // SEGMENT + 1)  # until the window is full
    return {"train_history_ratio": ratio(seconds["history"], seconds["base"])}


def _stream_cost(repeats: int, segment: int = 256) -> dict[str, float]:
    """Time of reading with a full window of 2,000 entries over reading without history."""
    costs = {}
    for rows in (1, 8):
        model = lle_model(history={"stream": {"window": WINDOW}}).eval()
        seconds = read_twice(model, torch.randint(VOCABULARY, (rows, segment + 1)), repeats)
        costs["stream_cost" if rows == 1 else f"stream_cost_{rows}_rows"] = (
            ratio(seconds["stream"], seconds["base"]) - 1
        )
    return costs


def read_twice(
    model: LLEForCausalLM,
    ids: Tensor,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    earlier: Tensor | None = None,
) -> dict[str, list[float]]:
    """Seconds of reading a segment (B, T + 1) int64 with a full "stream" and with the "base" alone, in turn.

    Exact matches are found too, if the configuration has a window of them, among the segment and the tokens that were
    read `earlier`, (B, N) int64.
    """
    window, segment = model.config.stream.window, ids.shape[1] - 1
    full, empty = LLECache.of(model.config.history), LLECache()
    if full.matches is not None and earlier is not None:
        full.matches.read(earlier, torch.ones_like(earlier, dtype=torch.bool), None, 1)

    def read(cache: LLECache, **options: Any) -> None:
        begin_anew(cache)  # what attends to all that was read would become slower
        model.score(ids[:, :-1], ids[:, 1:], past_key_values=cache, **options)

    for _ in range(window // segment + 1):
        read(full)
    calls = {"stream": lambda: read(full), "base": lambda: read(empty, use_history=False)}
    return compare(calls, repeats, clock=clock)


def _generation(tokens: int = 20_000, parts: int = 10) -> dict[str, float]:
    """Growth of time and memory while sampling 20,000 tokens, which fill the stream."""
    model = lle_model(history={"stream": {"window": WINDOW, "generated": True}}).eval()
    text, cache = torch.zeros(1, 1, dtype=torch.long), None
    seconds, memory = [], []
    for _ in range(parts):
        begin = time.perf_counter()
        output: Any = model.generate(
            text, max_new_tokens=tokens // parts, do_sample=True, past_key_values=cache, return_dict_in_generate=True
        )
        seconds.append(time.perf_counter() - begin)
        memory.append(psutil.Process().memory_info().rss / 2**20)
        text, cache = output.sequences, output.past_key_values
    filled = WINDOW * parts // tokens  # parts until the window is full
    full = seconds[filled:]
    return {
        "generate_tokens_per_second": tokens / sum(seconds),
        "generate_seconds_last_over_first": statistics.median(full[-3:]) / statistics.median(full[:3]),
        "generate_memory_growth_mb": memory[-1] - memory[filled],
    }
