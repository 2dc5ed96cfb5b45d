"""Effect of history on the gap between training and test loss."""

import itertools
import math
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from datasets import Dataset

from modeling_lle.data import load_texts
from modeling_lle.evaluation import evaluate_stream, write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.training import make_recipe, run

from .inputs import SHORT_TRAINING, load_model, read_tokens
from .timing import RESULTS, Row

SHARES = (1 / 16, 1 / 4, 1.0)  # of the training text
DROPOUTS = (0.0, 0.2, 0.4)  # for embeddings, between layers, and for states
MODEL = {"hidden_size": 256, "num_hidden_layers": 2, "recurrence": "lstm", "stack": "plain"}
TRAINING = {
    **SHORT_TRAINING,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 32,
    "segment_length": 64,
    "calibration_tokens": 20000,
}


def overfitting(
    source: Annotated[str, typer.Argument(help="Text with train, validation and test splits.")],
    steps: Annotated[int, typer.Option(help="Training steps per model.")] = 1500,
    tokens: Annotated[int, typer.Option(help="Tokens to read of training and test text.")] = 40_000,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "overfitting.json",
) -> None:
    """Gap between training and test loss, with and without the stream, by training size and dropout."""
    texts = {split: load_texts(source, split=split) for split in ("train", "validation")}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for share, dropout in itertools.product(SHARES, DROPOUTS):
            lines = texts["train"]
            assert isinstance(lines, Dataset)
            part = {**texts, "train": lines.select(range(max(1, round(share * len(lines)))))}
            rows.append({"share": share, "dropout": dropout, **_measure(source, part, dropout, steps, tokens, folder)})
            typer.echo(rows[-1])
    narrower = sum(row["stream_gap"] < row["base_gap"] for row in rows)
    write_results(output, this_command(), {"runs": len(rows), "stream_gap_narrower": narrower}, rows)


def _measure(source: str, texts: dict[str, Any], dropout: float, steps: int, tokens: int, folder: str) -> Row:
    """Trains a model, and evaluates the beginnings of training text and test split."""
    dropouts = dict.fromkeys(("input_dropout", "hidden_dropout", "output_dropout"), dropout)
    recipe = {"tokenizer": {"kind": "word"}, "model": {**MODEL, **dropouts}}
    run(make_recipe({**recipe, "training": {**TRAINING, "max_steps": steps, "output_dir": folder}}), texts)
    model, tokenizer = load_model(folder)
    row: Row = {}
    for split in ("train", "test"):
        nats = evaluate_stream(model, read_tokens(source, split, tokenizer, tokens + 1)).nats
        for side, name in (("base", "base"), ("history", "stream")):
            row[f"{name}_{split}_ppl"] = math.exp(float(nats[side].mean()))
    for name in ("base", "stream"):
        row[f"{name}_gap"] = math.log(row[f"{name}_test_ppl"] / row[f"{name}_train_ppl"])
    return row
