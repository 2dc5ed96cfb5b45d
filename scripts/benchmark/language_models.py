"""LLE beside language models of transformers of equal size and vocabulary, on one thread.

Each part is kept in the folder as PART.json when it is done, and not measured again; `minutes` is resumed.

    minutes     validation loss against minutes of training, each model with the best rate of a short search
"""

import functools
import json
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
from modeling_lle.training.steps import keep_freed_pages

from .minutes import Plan, Texts, Training, history_nats, in_turn, search_rates
from .peers.language_models import LLE, NAMES, count
from .timing import RESULTS

Part = dict[str, Any]
Say = Callable[[str], None]


class Parts(str, Enum):
    """Parts of the comparison."""

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
            rows.append({**common, "model": f"{LLE}, history", "minutes": rows[-1]["minutes"], "loss": nats})
    return {"rows": rows}


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
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "peers.json",
) -> None:
    """LLE beside GPT-2, Mamba2, RWKV, xLSTM and nn.LSTM of equal size: speed, loss, context, start-up."""
    torch.set_num_threads(1)
    keep_freed_pages()
    names = model or list(NAMES)
    check_keys(names, NAMES, "the models")
    plan = Plan(vocabulary, width, minutes, slice_seconds)
    texts = load_tokens(source, folder, vocabulary, validation // 2, validation)

    measures: dict[Parts, Callable[[], Part]] = {
        Parts.minutes: functools.partial(measure_minutes, names, texts, plan, folder, typer.echo),
    }
    found = {chosen: _kept(folder / f"{chosen.value}.json", measures[chosen]) for chosen in part or Parts}
    for measured in found.values():
        for row in measured["rows"]:
            typer.echo(row)


def _kept(file: Path, measure: Callable[[], Part]) -> Part:
    """What the file holds, or is measured now and kept there."""
    if not file.is_file():
        found = measure()
        with replacing(file) as partial:
            partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))
