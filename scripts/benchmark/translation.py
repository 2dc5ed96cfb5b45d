"""LLE and a Transformer of equal size on sentence pairs: quality, speed, parameters and minutes.

LLE is trained by a recipe, the Transformer with LLE's tokenizer on the same pairs, in batches of equal size, for equal
minutes; existing models are reused. Nothing is chosen by the test pairs. A row has

    bleu, chrf, ter          on the test pairs, by sacrebleu, with `signature` for BLEU
    sentences_per_second_1   greedy, one sentence at a time, with both caches, in float32, both in turn in one run
    sentences_per_second_32  the same with 32 sentences in a batch
    speed_ratio_1, _32       LLE's speed over that of the row, median over repetitions
    parameters, train_minutes, train_steps
"""

import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modeling_lle.data import load_pairs
from modeling_lle.evaluation import TranslationMetric, translate, write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.saved import load_translator
from modeling_lle.tasks import TRANSLATION
from modeling_lle.training import Recipe, load_recipe, run
from modeling_lle.training.translation import training_pairs

from .peers.transformer_translator import load_transformer, train_transformer
from .timing import RESULTS, Row, compare, ratio

LLE, TRANSFORMER = "LLE", "Transformer"
BATCHES = (1, 32)  # batch sizes for measuring speed
SEED = 0  # of the sentences for measuring speed
MEASURES = ("parameters", "train_minutes", "train_steps", "bleu", "chrf", "ter")


class Translator(NamedTuple):
    """Trained model, tokenizer, and metrics.json of its folder."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    trained: dict[str, float]


def load(folder: Path, method: str) -> Translator:
    """Loads a translator from its folder."""
    model, tokenizer = (load_translator if method == LLE else load_transformer)(folder)
    return Translator(model.eval(), tokenizer, json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


def train_both(recipe: Recipe, folder: Path, minutes: float | None, learning_rate: float) -> None:
    """Trains missing models.

    Args:
        recipe: Recipe of LLE.
        folder: Folder of the Transformer.
        minutes: Minutes of the Transformer; None: those of LLE.
        learning_rate: Peak learning rate of the Transformer.
    """
    own = Path(str(recipe.training.output_dir))
    if not (own / "metrics.json").is_file():
        typer.echo(f"training {own}")
        run(recipe)
    if (folder / "metrics.json").is_file():
        return
    lle = load(own, LLE)
    minutes = lle.trained.get("train_minutes") if minutes is None else minutes
    if minutes is None:
        raise ValueError(f"{own} does not state its training time: give --minutes")
    typer.echo(f"training {folder}, {minutes:.1f} minutes")
    pairs = training_pairs(recipe, lle.tokenizer)
    train_transformer(
        folder,
        lle.tokenizer,
        pairs["train"],
        pairs["validation"],
        lle.model.num_parameters(),
        minutes,
        learning_rate=learning_rate,
        batch_size=recipe.training.per_device_train_batch_size,
        label_smoothing=recipe.training.label_smoothing_factor,
        dropout=lle.model.config.output_dropout,
        precision=recipe.training.precision,
        seed=recipe.training.seed,
    )


def quality(translator: Translator, pairs: Dataset, beams: int, lowercase: bool, language: str | None = None) -> Row:
    """BLEU, chrF and TER on the test pairs, and the signature of BLEU."""
    metric = TranslationMetric(keep_in_memory=True)
    found = translate(translator.model, translator.tokenizer, pairs["source"][:], beams)
    values = metric.compute(predictions=found, references=pairs["target"][:], lowercase=lowercase, language=language)
    return {**values, "signature": metric.signatures["bleu"]}


def speeds(translators: dict[str, Translator], texts: list[str], repetitions: int) -> dict[str, Row]:
    """Sentences per second of greedy search by batch size, in turn, and LLE's speed over that of each."""
    longest = max(len(ids) for ids in translators[LLE].tokenizer(texts, verbose=False)["input_ids"])
    rows: dict[str, Row] = {name: {} for name in translators}
    for size in BATCHES:
        calls: dict[str, Callable[[], Any]] = {
            name: functools.partial(
                translate, own.model, own.tokenizer, texts, beams=1, batch_size=size, max_new_tokens=2 * longest
            )
            for name, own in translators.items()
        }
        seconds = compare(calls, repetitions, warmup=1)
        for name, values in seconds.items():
            rows[name][f"sentences_per_second_{size}"] = len(texts) / statistics.median(values)
            rows[name][f"speed_ratio_{size}"] = ratio(values, seconds[LLE])
    return rows


def chosen(texts: list[str], number: int) -> list[str]:
    """A fixed random sample of the texts."""
    return [texts[place] for place in np.random.default_rng(SEED).permutation(len(texts))[:number]]


def translation(
    source: Annotated[str, typer.Argument(metavar="DATA", help="Sentence pairs to train on, such as Multi30k.")],
    test: Annotated[str, typer.Argument(metavar="TEST", help="Sentence pairs to evaluate on.")],
    recipe: Annotated[Path, typer.Option(help="Recipe of LLE; a model in its output folder is reused.")],
    minutes: Annotated[
        float | None, typer.Option(help="Minutes of training the Transformer; by default those of LLE.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the Transformer.")] = 1e-3,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value of the recipe.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the results; else that of LLE's folder.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beam size for measuring quality.")] = 5,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Ignore case.")] = False,
    sentences: Annotated[int, typer.Option(min=1, help="Test sentences for measuring speed.")] = 128,
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions of the speed measurement.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Results file; else model_cards/results/DATASET.json.")] = None,
) -> None:
    """LLE and a Transformer of equal parameters and training time on sentence pairs."""
    loaded = load_recipe(recipe, [f"data.source={source}", *(set_ or [])])
    if loaded.task != TRANSLATION.name:
        raise ValueError(f"{recipe} is a recipe for {loaded.task}: give one for {TRANSLATION.name}")
    folder = Path(str(loaded.training.output_dir))
    peer = folder.with_name(f"{folder.name}-transformer")
    pairs = load_pairs(
        test,
        split="test",
        source_language=str(loaded.data.source_language),
        target_language=str(loaded.data.target_language),
        source_column=loaded.data.source_column,
        target_column=loaded.data.target_column,
    )
    train_both(loaded, peer, minutes, learning_rate)
    translators = {LLE: load(folder, LLE), TRANSFORMER: load(peer, TRANSFORMER)}
    rows: list[Row] = []
    language = loaded.data.target_language
    for name, translator in translators.items():
        typer.echo(f"{test}: {name}")
        rows.append({"method": name, **translator.trained, **quality(translator, pairs, beams, lowercase, language)})
    measured = speeds(translators, chosen(pairs["source"][:], sentences), repetitions)
    metrics: dict[str, float] = {}
    for place, row in enumerate(rows):
        name, speed = row["method"], measured[row["method"]]
        rows[place] = {"method": name, **{key: row.get(key) for key in (*MEASURES, "signature")}, **speed}
        typer.echo(rows[place])
        prefix = "" if name == LLE else f"{name.lower()}_"
        values = {**{key: row[key] for key in MEASURES if key in row}, **speed}
        metrics |= {prefix + key: value for key, value in values.items() if not key.startswith("speed_ratio")}
    metrics |= {key: value for key, value in measured[TRANSFORMER].items() if key.startswith("speed_ratio")}
    write_results(output or RESULTS / f"{dataset or folder.name}.json", this_command(), metrics, rows)
