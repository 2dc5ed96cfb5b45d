"""Perplexity of recurrences and stacks for equal training time."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_lle.data import load_texts
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.training import make_recipe, run

from .inputs import SHORT_TRAINING
from .speed import ROWS, SEGMENT, WIDTH
from .timing import RESULTS

VARIANTS: list[dict[str, Any]] = [
    {"recurrence": "lstm", "stack": "plain", "num_hidden_layers": 2},
    {"recurrence": "gru", "stack": "plain", "num_hidden_layers": 2},
    {"recurrence": "qrnn", "stack": "plain", "num_hidden_layers": 3},
    {"recurrence": "lstm", "stack": "residual", "num_hidden_layers": 2},
    {"recurrence": "qrnn", "stack": "residual", "num_hidden_layers": 3},
]
RATES = (3e-3, 8e-3)  # learning rates; the table shows the better one


def recurrences(
    source: Annotated[str, typer.Argument(help="Text with train and validation splits, PTB for the published table.")],
    minutes: Annotated[float, typer.Option(help="Training time of each model and learning rate.")] = 1.0,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "recurrences.json",
) -> None:
    """Validation perplexity per word of each recurrence and stack after equal training time."""
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
    """Trains a model for the given minutes with each learning rate, after a hundred steps for timing."""
    dropouts = {"input_dropout": 0.2, "hidden_dropout": 0.1, "output_dropout": 0.2}
    recipe = {"tokenizer": tokenizer, "model": {"hidden_size": WIDTH, **dropouts, **variant}}

    def train(steps: int, rate: float) -> dict[str, Any]:
        training = {
            **SHORT_TRAINING,
            "max_steps": steps,
            "learning_rate": rate,
            "per_device_train_batch_size": ROWS,
            "segment_length": SEGMENT,
            "calibration_tokens": 0,
            "output_dir": folder,
        }
        return run(make_recipe({**recipe, "training": training}), texts)

    train(10, RATES[0])  # loads and compiles off the clock
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
