"""Speed: a training step against nn.LSTM, the stream's cost in reading, and generating a long text."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import psutil
import torch
import typer
from torch import Tensor, nn

from modeling_lle import LLECache, LLEConfig, LLEForCausalLM
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command

from .timing import RESULTS, compare, ratio

VOCABULARY, WIDTH, LAYERS, ROWS, SEGMENT = 10_000, 512, 2, 20, 35  # the size of configs/lm/ptb.yaml
WINDOW = 2000


class PlainLSTM(nn.Module):
    """The peer: the same language model as most people write it, nn.LSTM and a plain cross entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, LAYERS, batch_first=True, dropout=0.3)
        self.dropout = nn.Dropout(0.45)
        self.output = nn.Linear(WIDTH, VOCABULARY)
        self.output.weight = self.embedding.weight
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The mean cross entropy of `targets` (B, T) after `ids` (B, T)."""
        states, (h, c) = self.lstm(self.dropout(self.embedding(ids)), self.state)
        self.state = (h.detach(), c.detach())
        logits = self.output(self.dropout(states))
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def lle_model(**changes: Any) -> LLEForCausalLM:
    """An untrained model of the PTB recipe's size."""
    dropouts = {"input_dropout": 0.35, "hidden_dropout": 0.3, "output_dropout": 0.45, "embedding_dropout": 0.1}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    values = {"stack": "plain", **sizes, **dropouts, **changes}
    return LLEForCausalLM(LLEConfig(**values))


def training_step(model: nn.Module, bf16: bool) -> Callable[[], None]:
    """A step as a training loop takes it: forward, backward, clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(VOCABULARY, (ROWS, SEGMENT + 1))
    cache = LLECache()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
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
    """A training step against nn.LSTM, the stream's cost in reading, and generating a long text."""
    metrics = {**_train_ratios(repeats), **_stream_cost(repeats), **_generation()}
    write_results(RESULTS / "speed.json", this_command(), metrics)
    for name, value in metrics.items():
        typer.echo(f"{name:36}{value:,.3f}")


def _train_ratios(repeats: int) -> dict[str, float]:
    seconds = compare(
        {
            "lle": training_step(lle_model().train(), bf16=True),
            "float32": training_step(PlainLSTM(), bf16=False),
            "bf16": training_step(PlainLSTM(), bf16=True),
        },
        repeats,
    )
    ratios = {name: ratio(seconds[name], seconds["lle"]) for name in ("float32", "bf16")}
    return {
        "train_step_ms": 1000 * statistics.median(seconds["lle"]),
        "train_ratio_plain_float32": ratios["float32"],
        "train_ratio_plain_bf16": ratios["bf16"],
        "train_ratio_fastest_peer": min(ratios.values()),
    }


def _stream_cost(repeats: int, segment: int = 256) -> dict[str, float]:
    """What reading with a full window of 2,000 entries costs over reading without history."""
    costs = {}
    for rows in (1, 8):
        model = lle_model(history={"stream": {"window": WINDOW}}).eval()
        ids = torch.randint(VOCABULARY, (rows, segment + 1))
        full, empty = LLECache(WINDOW), LLECache()
        for _ in range(WINDOW // segment + 1):
            model.score(ids[:, :-1], ids[:, 1:], past_key_values=full)
        read = functools.partial(model.score, ids[:, :-1], ids[:, 1:])
        seconds = compare(
            {
                "stream": functools.partial(read, past_key_values=full),
                "base": functools.partial(read, past_key_values=empty, use_history=False),
            },
            repeats,
        )
        costs["stream_cost" if rows == 1 else f"stream_cost_{rows}_rows"] = (
            ratio(seconds["stream"], seconds["base"]) - 1
        )
    return costs


def _generation(tokens: int = 20_000, parts: int = 10) -> dict[str, float]:
    """Whether speed and memory stay flat while 20,000 tokens are sampled with the stream on."""
    model = lle_model(history={"stream": {"window": WINDOW}}).eval()
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
<<<<<<< HEAD:scripts/benchmark/speed.py
=======


VARIANTS: list[dict[str, Any]] = [
    {"recurrence": "lstm", "stack": "plain", "num_hidden_layers": 2},
    {"recurrence": "gru", "stack": "plain", "num_hidden_layers": 2},
    {"recurrence": "qrnn", "stack": "plain", "num_hidden_layers": 3},
    {"recurrence": "lstm", "stack": "residual", "num_hidden_layers": 2},
    {"recurrence": "qrnn", "stack": "residual", "num_hidden_layers": 3},
]
RATES = (3e-3, 8e-3)  # learning rates; the table shows the better one of each


@app.command()
def recurrences(
    source: Annotated[str, typer.Argument(help="Text with train and validation splits, PTB for the published table.")],
    minutes: Annotated[float, typer.Option(help="Training time of each model and learning rate.")] = 1.0,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "recurrences.json",
) -> None:
    """Validation perplexity per word of every recurrence and stack after the same training time."""
    texts = {split: load_texts(source, split=split) for split in ("train", "validation")}
    rows = []
    for kind, vocab_size in (("word", None), ("bpe", 8000)):
        with tempfile.TemporaryDirectory() as folder:
            for variant in VARIANTS:
                row = _train_for(minutes, texts, {"kind": kind, "vocab_size": vocab_size}, variant, folder)
                rows.append({"tokens": "words" if kind == "word" else "subwords", **variant, **row})
                typer.echo(rows[-1])
    best = min(rows, key=lambda row: row["validation_ppl"])
    write_results(output, this_command(), {"minutes": minutes, "best_validation_ppl": best["validation_ppl"]}, rows)


def _train_for(
    minutes: float, texts: dict[str, Any], tokenizer: dict[str, Any], variant: dict[str, Any], folder: str
) -> dict[str, float]:
    """Trains a model for so many minutes with each learning rate: first a hundred steps to learn their duration."""
    dropouts = {"input_dropout": 0.2, "hidden_dropout": 0.1, "output_dropout": 0.2}
    recipe = {"tokenizer": tokenizer, "model": {"hidden_size": WIDTH, **dropouts, **variant}}

    def train(steps: int, rate: float) -> dict[str, Any]:
        training = {
            "max_steps": steps,
            "learning_rate": rate,
            "per_device_train_batch_size": ROWS,
            "per_device_eval_batch_size": 10,
            "segment_length": SEGMENT,
            "adam_beta2": 0.99,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "max_grad_norm": 0.5,
            "bf16": True,
            "save_strategy": "no",
            "calibration_tokens": 0,
            "disable_tqdm": True,
            "output_dir": folder,
        }
        return run(make_recipe({**recipe, "training": training}), texts)

    train(10, RATES[0])  # what is loaded and compiled once is nobody's training time
    steps = 100
    measured = train(steps, RATES[0])
    while not 0.9 < measured["train_minutes"] / minutes < 1.1:
        steps = max(1, round(steps * minutes / measured["train_minutes"]))
        measured = train(steps, RATES[0])
    results = {RATES[0]: measured, **{rate: train(steps, rate) for rate in RATES[1:]}}
    rate = min(results, key=lambda rate: results[rate]["eval_word_perplexity"])
    return {
        "parameters": results[rate]["parameters"],
        "learning_rate": rate,
        "steps": steps,
        "minutes": results[rate]["train_minutes"],
        "validation_ppl": results[rate]["eval_word_perplexity"],
    }


if __name__ == "__main__":
    app()
>>>>>>> main:scripts/benchmark.py
