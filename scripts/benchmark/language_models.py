"""LLE beside language models of transformers of equal size and vocabulary, on one thread.

Each part is kept in the folder as PART.json when it is done, and not measured again; `minutes` is resumed. The rows of
a part are written to peers-PART.json beside the results file, whose rows are a summary, one a model.

    training    tokens a second of a training step of 2,048 tokens, by length of the rows
    budget      floor of a training step of LLE and nn.LSTM, see budget.py
    contexts    prefill and generation against the context, and memory, see contexts.py
    start       processor time and memory from the start of a process to the first token
    minutes     validation loss against minutes of training, each model with the best rate of a short search
"""

import json
import statistics
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import AutoTokenizer

from modeling_lle import LLETokenizer
from modeling_lle.common.temporary import replacing
from modeling_lle.configuration_fields import check_keys
from modeling_lle.data import collect, load_texts, tokenize
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.training.steps import keep_freed_pages

from .budget import measure_budget, spread, training_step
from .contexts import HISTORY, measure_contexts, measure_start
from .minutes import Plan, Texts, Training, history_nats, in_turn, search_rates
from .peers.language_models import FAMILIES, LLE, NAMES, PLAIN, Subject, count, make_model
from .timing import RESULTS, Row, compare

Part = dict[str, Any]  # "rows", and perhaps "metrics"
Say = Callable[[str], None]
STEP = 2048  # tokens of a training step whose speed is measured


class Parts(str, Enum):
    """Parts of the comparison."""

    training = "training"
    budget = "budget"
    contexts = "contexts"
    start = "start"
    minutes = "minutes"


def load_tokens(source: str, folder: Path, vocabulary: int, search: int, validation: int) -> Texts:
    """Token ids of a text by a tokenizer that is trained on it once, and kept in the folder."""
    names = ("train", "validation")
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder / f"{name}.npy").is_file() for name in names):
        texts = {name: load_texts(source, split=name) for name in names}
        tokenizer = LLETokenizer.train((row["text"] for row in texts["train"]), vocabulary, "bpe")
        tokenizer.save_pretrained(folder / "tokenizer")
        for name in names:
            found = collect(tokenize(texts[name], AutoTokenizer.from_pretrained(folder / "tokenizer")), start=0)
            np.save(folder / f"{name}.npy", found.ids)
    train, held_out = (np.load(folder / f"{name}.npy") for name in names)
    if len(held_out) < search + validation:
        raise ValueError(f"the validation text has {len(held_out):,} tokens: give a smaller --validation")
    return Texts(train, held_out[-search:], held_out[: validation + 1])


def measure_minutes(names: list[str], texts: Texts, plan: Plan, folder: Path, say: Say) -> Part:
    """Rows of validation losses against minutes, one a model and check, and of LLE with history at the end."""
    rates = search_rates(names, texts, plan, folder, say)
    trainings = [Training(name, texts, plan, rate, folder / _file_name(name)) for name, rate in rates.items()]
    in_turn(trainings, plan.slice, say)
    rows = []
    for training in trainings:
        own = training.subject
        common = {"model": own.name, "parameters": count(own.model), "learning_rate": training.rate}
        common |= {"steps": training.progress.steps}
        rows += [{**common, "minutes": spent, "loss": nats} for spent, nats in training.progress.losses]
        if own.name == LLE:
            nats = history_nats(own.model, texts.search, texts.validation)
            rows.append({**common, "model": HISTORY, "minutes": rows[-1]["minutes"], "loss": nats})
    return {"rows": rows}


def measure_training(names: list[str], plan: Plan, lengths: list[int], repeats: int) -> Part:
    """Rows of tokens a second, and their spread; the models take a step each in turn."""
    rows: list[Row] = []
    for length in lengths:
        ids = torch.randint(plan.vocabulary, (max(1, STEP // length), length + 1))
        subjects = [Subject(name, make_model(name, plan.vocabulary, plan.width, length).train()) for name in names]
        steps = {subject.name: training_step(subject, ids, torch.float32) for subject in subjects}
        seconds = compare(steps, repeats, warmup=1, clock=time.process_time)
        for name, values in seconds.items():
            speed = (ids.numel() - len(ids)) / statistics.median(values)
            row = {"model": name, "length": length, "rows": len(ids)}
            rows.append({**row, "tokens_per_second": speed, "spread": spread(values)})
    return {"rows": rows}


def summary(found: dict[str, Part]) -> list[Row]:
    """A row for each model, of what has been measured so far."""
    rows: dict[str, Row] = {}
    for row in found.get("minutes", {"rows": []})["rows"]:
        kept = ("model", "parameters", "learning_rate", "steps", "minutes", "loss")
        rows.setdefault(row["model"], {}).update({key: row[key] for key in kept})  # the last one counts
    for row in found.get("training", {"rows": []})["rows"]:
        rows.setdefault(row["model"], {})[f"tokens_per_second_{row['length']}"] = row["tokens_per_second"]
    for row in found.get("contexts", {"rows": []})["rows"]:
        if row["batch"] == 1:
            for key in ("step_ms", "state_mb"):
                rows.setdefault(row["model"], {})[f"{key}_{row['context']}"] = row.get(key)
    for row in found.get("start", {"rows": []})["rows"]:
        rows.setdefault(row["model"], {}).update(row)
    return [{"model": name, **row} for name, row in rows.items()]


def metrics_of(found: dict[str, Part], minutes: float) -> dict[str, float]:
    """Metrics of the parts that have been measured."""
    metrics = dict(found.get("budget", {}).get("metrics", {}))
    last = {row["model"]: row["loss"] for row in found.get("minutes", {"rows": []})["rows"]}
    peer = min((last[name] for name in FAMILIES if name in last), default=None)
    losses = {"": last.get(LLE), "history_": last.get(HISTORY), "best_peer_": peer, "plain_lstm_": last.get(PLAIN)}
    suffix = f"loss_after_{minutes:g}_minutes"
    return metrics | {f"{prefix}{suffix}": loss for prefix, loss in losses.items() if loss is not None}


def _file_name(name: str) -> str:
    return name.lower().replace(".", "-")


def peers(
    source: Annotated[str, typer.Argument(help="Text with train and validation splits.")],
    folder: Annotated[Path, typer.Argument(help="Folder of tokens, checkpoints and finished parts.")],
    part: Annotated[list[Parts] | None, typer.Option(help="Parts to measure; all by default.")] = None,
    model: Annotated[list[str] | None, typer.Option(help=f"Models, of {', '.join(NAMES)}; all by default.")] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training of each model.")] = 10.0,
    slice_seconds: Annotated[float, typer.Option(help="Seconds after which it is the next model's turn.")] = 20.0,
    vocabulary: Annotated[int, typer.Option(help="Types of the tokenizer.")] = 8000,
    width: Annotated[int, typer.Option(help="Width of LLE.")] = 512,
    validation: Annotated[int, typer.Option(help="Tokens that losses are measured on.")] = 32_768,
    length: Annotated[list[int] | None, typer.Option(help="Lengths of rows in training; 64 to 2,048.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Contexts; 512 to 65,536.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows that are generated; 1 and 16.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds after which a context is given up.")] = 60.0,
    gigabytes: Annotated[float, typer.Option(help="Memory of a process that reads a context.")] = 8.0,
    repeats: Annotated[int, typer.Option(help="Repetitions of a training step.")] = 5,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "peers.json",
) -> None:
    """LLE beside GPT-2, Mamba2, RWKV, xLSTM and nn.LSTM of equal size: speed, loss, context, start-up."""
    torch.set_num_threads(1)
    keep_freed_pages()
    names = model or list(NAMES)
    check_keys(names, NAMES, "the models")
    plan = Plan(vocabulary, width, minutes, slice_seconds)
    folder.mkdir(parents=True, exist_ok=True)
    contexts, batches = context or [512, 2048, 8192, 65536], batch or [1, 16]
    measures: dict[Parts, Callable[[], Part]] = {
        Parts.training: lambda: measure_training(names, plan, length or [64, 256, 1024, 2048], repeats),
        Parts.budget: lambda: dict(
            zip(("metrics", "rows"), measure_budget([LLE, PLAIN], vocabulary, width, 8, 256, repeats), strict=True)
        ),
        Parts.contexts: lambda: {
            "rows": measure_contexts(names, plan, batches, contexts, limit, gigabytes, typer.echo)
        },
        Parts.start: lambda: {"rows": measure_start(names, plan, folder)},
        Parts.minutes: lambda: measure_minutes(
            names, load_tokens(source, folder, vocabulary, validation // 2, validation), plan, folder, typer.echo
        ),
    }
    for chosen in part or Parts:
        _kept(folder / f"{chosen.value}.json", measures[chosen])
    found = {each.value: _kept(folder / f"{each.value}.json") for each in Parts}
    found = {name: content for name, content in found.items() if content["rows"]}
    for name, content in found.items():
        write_results(
            output.with_stem(f"{output.stem}-{name}"), this_command(), content.get("metrics", {}), content["rows"]
        )
    rows = summary(found)
    for row in rows:
        typer.echo(row)
    write_results(output, this_command(), metrics_of(found, minutes), rows)


def _kept(file: Path, measure: Callable[[], Part] | None = None) -> Part:
    """What the file holds, or is measured now and kept there; nothing if neither."""
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    found = {"rows": []} if measure is None else measure()
    if measure is not None:
        with replacing(file) as partial:
            partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found
