"""Planning of a training: a recipe for given files and minutes, without any setting.

Notable: the amount of text decides on vocabulary, dropout and passes, the measured time of a step on the model's size
and on how much is read (`sizes` has the tables). The recipe is complete: run again, it gives the same model.
"""

import dataclasses
import glob
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..configuration import LLEConfig
from ..data import load_labelled, load_pairs
from ..data.gather import TABLES, Files, Survey, Taken, survey
from ..models.causal import LLEForCausalLM
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION
from ..tokenization import LLETokenizer
from .guess import PAIR_KINDS, Guess, guess_task
from .held_out import at_most
from .measure import seconds_of_a_step, seconds_with_labels, seconds_with_pairs
from .reading import read_some, training_files
from .recipe import ARGUMENTS, Recipe, make_recipe
from .sizes import (
    CLASSIFICATION_SETTINGS,
    LABELLED,
    LEAST_EPOCHS_OF_LABELS,
    LEAST_EPOCHS_OF_PAIRS,
    PAIRS,
    TRANSLATION_SETTINGS,
    TRANSLATOR_WIDTHS,
    Amount,
    amount_of,
    language_settings,
    rows_of,
)

LEAST_BYTES = 1_000  # of text to train a language model on
LEAST_PAIRS = 20
SAMPLE = 1_000_000  # bytes on which the tokenizer of the estimate is trained
SAMPLE_TEXTS, CHARACTERS = 100, 20_000  # texts, and their beginnings, on which tokens are counted
SAMPLE_ROWS = 2_000  # rows on which a step is measured
HELD_OUT = 0.1  # share to validate on, and again to measure on; at most:
HELD_OUT_BYTES = 200_000
HELD_OUT_ROWS = 1_000
TRAINING_SHARE = 0.8  # of the time; the rest is for validation, fitting the history and the final measurement
PATIENCE = 0.02  # share of the time for measuring one size
SAVE_SECONDS = 120  # between checkpoints, at most
LEAST_CHECKPOINTS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe and what to expect of it.

    Attributes:
        recipe: The recipe, complete.
        found: The files.
        guess: The task and why, if it was guessed.
        documents: Documents, labelled texts or sentence pairs of the files, or of what is read of them.
        unit: What these are called: "documents", "labelled texts" or "sentence pairs".
        read: Share of the text that is read; 1.0: all.
        tokens: Tokens to train on, estimated; 0 where they are not counted.
        parameters: Of the model; 0 where they depend on the tokenizer.
        epochs: Passes.
        steps: Steps of training, pretraining included, estimated.
        seconds_of_a_step: Measured.
        minutes: Of training, estimated.
        tests: Split of the final measurement that the files have; None: it is held out, or there is none.
    """

    recipe: Recipe
    found: Survey
    guess: Guess | None
    documents: int
    unit: str
    read: float
    tokens: int
    parameters: int
    epochs: float
    steps: int
    seconds_of_a_step: float
    minutes: float
    tests: str | None


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What was asked for, and the sections of the recipe that follow from it."""

    files: Files
    found: Survey
    data: dict[str, Any]
    training: dict[str, Any]
    seconds: float

    @property
    def seed(self) -> int:
        return int(self.training["seed"])

    def recipe(self, task: str, values: dict[str, dict[str, Any]]) -> Recipe:
        sections = {
            **values,
            "data": {**self.data, **values.get("data", {})},
            "training": {**values.get("training", {}), **self.training},
        }
        return make_recipe({"task": task, **sections}, "the plan")


def plan(
    files: Files,
    task: str | None = None,
    minutes: float = 10.0,
    output: str | Path | None = None,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    source_language: str | None = None,
    target_language: str | None = None,
    precision: str = "auto",
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Chooses tokenizer, model and duration of a training; `run` follows its recipe.

    Args:
        files: Files, folders or globs of this machine.
        task: "text-generation", "text-classification" or "translation"; None: as the files suggest.
        minutes: Time for training on this machine, whose speed is measured, and for what belongs to it.
        output: Folder of the model; None: runs/ and the name of the first file.
        text_column, label_column: Columns of tables; None: those with usual names, else those whose values suit.
        source_language, target_language: For translators; None: as the files state them.
        precision: "auto", "float32" or "bfloat16".
        seed: Of the split and of the training.
        say: Receives lines about what was found and decided, as it is known.

    Raises:
        FileNotFoundError, ValueError: The files cannot be read, are too few, or do not suit the task.
    """
    if minutes <= 0:
        raise ValueError(f"minutes is {minutes:g}: give a time above 0")
    if task is not None and task not in ARGUMENTS:
        raise ValueError(f"the task is {task!r}: choose one of {', '.join(ARGUMENTS)}")
    guess = guess_task(files, text_column, label_column)
    chosen = task or guess.task
    text_column, label_column = text_column or guess.text_column, label_column or guess.label_column
    kinds = {**TABLES, **PAIR_KINDS} if chosen == TRANSLATION.name else TABLES
    column = (text_column or "text") if chosen == LANGUAGE.name else None
    found = survey(files, column, kinds)
    for line in found.summary():
        say(line)
    given = [files] if isinstance(files, (str, Path)) else list(files)
    names = [str(name) for name in given]
    data: dict[str, Any] = {"source": names[0] if len(names) == 1 else names}
    data |= {"text_column": text_column} if text_column else {}
    if chosen == CLASSIFICATION.name:
        data |= {"label_column": label_column} if label_column else {}
    if chosen == TRANSLATION.name:
        languages = source_language or guess.languages[0], target_language or guess.languages[1]
        data |= dict(zip(("source_language", "target_language"), _both(languages), strict=True))
    folder = default_output(files) if output is None else Path(output)
    training = {"output_dir": str(folder), "precision": precision, "seed": seed, "keep_checkpoints": False}
    wanted = _Wanted(files, found, data | _splits(found), training, 60 * minutes * TRAINING_SHARE)
    made = _PLANS[chosen](wanted)
    tests = "test" if "test" in found.splits and not made.recipe.data.held_out_test else None
    return dataclasses.replace(made, guess=guess if task is None else None, tests=tests)


def default_output(files: Files) -> Path:
    """Folder of a model without another one: runs/ and the name of the first file, folder or glob."""
    first = Path(files if isinstance(files, (str, Path)) else next(iter(files)))
    named = next((part for part in reversed(first.resolve().parts) if not glob.has_magic(part)), "")
    return Path("runs") / (Path(named).stem.strip("/") or "data")


def _both(languages: tuple[str | None, str | None]) -> tuple[str, str]:
    source, target = languages
    if source is None or target is None:
        known = f" (found: {source or target})" if source or target else ""
        raise ValueError(
            f"the files do not say from which language to translate into which{known}: give both, such as "
            "--source-language en --target-language de (source_language= and target_language= in Python)"
        )
    return source, target


def _splits(found: Survey) -> dict[str, Any]:
    """Names of the splits of the files, if they have other ones than usual."""
    if not found.splits or "train" in found.splits:
        return {}
    return {"train": next(iter(found.splits))}


def _shares(found: Survey, share: float) -> dict[str, float]:
    """Shares to hold out for what the files have no split for."""
    return {
        "held_out": 0.0 if "validation" in found.splits else share,
        "held_out_test": 0.0 if "test" in found.splits else share,
    }


def _checkpoints(steps: float, step: float) -> dict[str, Any]:
    """Validation and checkpoints at least every two minutes; the best checkpoint is the result."""
    between = max(1, min(int(SAVE_SECONDS / step), int(steps / LEAST_CHECKPOINTS)))
    return {
        "eval_strategy": "steps",
        "eval_steps": between,
        "save_strategy": "steps",
        "save_steps": between,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "logging_steps": max(1, min(50, int(steps / 20))),
    }


def _plan_language(wanted: _Wanted) -> Plan:
    files = training_files(wanted.found)
    total = sum(file.bytes for file in files)
    if total < LEAST_BYTES:
        raise ValueError(
            f"there are {total:,} bytes of text, too few to train a language model on: give at least {LEAST_BYTES:,}"
        )
    column = wanted.data.get("text_column", "text")
    sample = read_some(wanted.files, column, SAMPLE, wanted.seed)
    texts = sample[column][:]
    share = min(HELD_OUT, HELD_OUT_BYTES / total)
    shares = _shares(wanted.found, share)
    size = total * (1 - sum(shares.values()))
    amount, settings, step, passes, per_token = _choose(wanted, size, texts)
    tokens = size / per_token
    epochs = min(float(amount.epochs), passes)
    data: dict[str, Any] = {"sample_by": "document", **shares}
    read = 1.0
    if epochs < 1:
        read, epochs = max(epochs, 2 * LEAST_BYTES / total), 1.0
        tokens *= read
        data |= {"max_bytes": int(total * read), **_shares(wanted.found, min(HELD_OUT, HELD_OUT_BYTES / total / read))}
    rows, length = amount.rows, settings["training"]["segment_length"]
    rows = max(1, min(rows, int(tokens / 4 / length)))
    length = min(length, max(8, int(tokens / rows / 4)))
    steps = max(1, round(epochs * tokens / rows / length))
    validation = max(int(min(share, 1) * total * read / per_token), 1)
    settings["training"] |= {
        "num_train_epochs": round(epochs, 2),
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": max(1, min(10, validation // length)),
        "segment_length": length,
        **_checkpoints(steps, step),
    }
    recipe = wanted.recipe(LANGUAGE.name, {**settings, "data": data})
    model: Any = LLEForCausalLM(LLEConfig(**{"vocab_size": amount.vocab_size, **settings["model"]}))
    return Plan(
        recipe,
        wanted.found,
        None,
        _documents(files, texts),
        "documents",
        read,
        int(tokens),
        model.num_parameters(),
        epochs,
        steps,
        step,
        steps * step / 60,
        None,
    )


def _documents(files: Sequence[Taken], texts: Sequence[str]) -> int:
    """Number of documents, estimated by a sample of the texts where there are tables."""
    if all(file.kind == "text" for file in files):
        return len(files)
    more = sum(file.bytes for file in files) / max(1, sum(len(text.encode()) for text in texts))
    return max(len(files), round(len(texts) * max(1.0, more)))


def _choose(
    wanted: _Wanted, size: float, texts: Sequence[str]
) -> tuple[Amount, dict[str, dict[str, Any]], float, float, float]:
    """Amount, settings, seconds of a step, passes, and bytes of a token, for `size` bytes of text.

    What can be read in the time counts as the amount: of a large text a slow machine reads little, and that takes a
    small vocabulary and a small model.
    """
    amount = amount_of(size)
    while True:
        per_token = _bytes_of_a_token(texts, amount.vocab_size, wanted.seed)
        settings, step, passes = _measured_size(wanted, amount, size / per_token)
        smaller = amount_of(min(1.0, passes) * size)
        if smaller.bytes >= amount.bytes:
            return amount, settings, step, passes, per_token
        amount = smaller


def _bytes_of_a_token(texts: Sequence[str], vocab_size: int, seed: int) -> float:
    tokenizer = LLETokenizer.train(texts, vocab_size)
    some = [text[:CHARACTERS] for text in random.Random(seed).sample(texts, min(len(texts), SAMPLE_TEXTS))]
    tokens = sum(map(len, tokenizer(some, verbose=False)["input_ids"]))
    return max(1.0, sum(len(text.encode()) for text in some) / max(1, tokens))


def _measured_size(wanted: _Wanted, amount: Amount, tokens: float) -> tuple[dict[str, Any], float, float]:
    """Settings of the first size of an amount for which the time suffices, its seconds of a step, and its passes."""
    for size in amount.sizes:
        settings = language_settings(amount, size)
        recipe = wanted.recipe(LANGUAGE.name, settings)
        step = seconds_of_a_step(recipe, PATIENCE * wanted.seconds)
        in_a_step = recipe.training.per_device_train_batch_size * recipe.training.segment_length
        passes = wanted.seconds / step * in_a_step / tokens
        if passes >= size.least_passes:
            break
    return settings, step, passes


def _plan_classification(wanted: _Wanted) -> Plan:
    data = wanted.data
    rows = load_labelled(
        data["source"],
        split=data.get("train", "train") if wanted.found.splits else None,
        text_column=data.get("text_column"),
        label_column=data.get("label_column"),
    )
    rows = rows.filter(lambda text, label: bool(text and text.strip() and label), input_columns=["text", "label"])
    labels = len(set(rows["label"]))
    if labels < 2:
        raise ValueError(f"there are {len(rows)} labelled texts with {labels} labels: a classifier needs at least two")
    shares = _shares(wanted.found, min(HELD_OUT, HELD_OUT_ROWS / len(rows)))
    count = len(rows) * (1 - sum(shares.values()))
    choice = rows_of(LABELLED, round(count))
    values = {name: dict(section) for name, section in CLASSIFICATION_SETTINGS.items()}
    values["training"] |= {"per_device_train_batch_size": choice.batch, "pretraining_epochs": choice.pretraining}
    values["training"] |= {"num_train_epochs": choice.epochs}
    sample = at_most(rows, SAMPLE_ROWS, wanted.seed)
    step, before = seconds_with_labels(wanted.recipe(CLASSIFICATION.name, values), sample, PATIENCE * wanted.seconds)
    in_an_epoch = max(1.0, count / choice.batch)
    needed = in_an_epoch * (choice.epochs * step + choice.pretraining * before)
    part = min(1.0, wanted.seconds / needed)
    epochs, pretraining = choice.epochs * part, choice.pretraining * part
    read = 1.0
    if epochs < LEAST_EPOCHS_OF_LABELS:
        read = epochs / LEAST_EPOCHS_OF_LABELS
        epochs, pretraining = epochs / read, pretraining / read
    steps = max(1, round(read * in_an_epoch * epochs))
    values["training"] |= {"num_train_epochs": round(epochs, 1), "pretraining_epochs": round(pretraining, 1)}
    values["training"] |= _checkpoints(steps, step) | {"load_best_model_at_end": False}
    values["data"] = {**shares, **({"max_rows": max(2 * labels, int(read * len(rows)))} if read < 1 else {})}
    taken = steps * step + read * in_an_epoch * pretraining * before
    all_steps = steps + round(read * in_an_epoch * pretraining)
    recipe = wanted.recipe(CLASSIFICATION.name, values)
    return Plan(
        recipe, wanted.found, None, len(rows), "labelled texts", read, 0, 0, epochs, all_steps, step, taken / 60, None
    )


def _plan_translation(wanted: _Wanted) -> Plan:
    data = wanted.data
    pairs = load_pairs(
        data["source"],
        split=data.get("train", "train") if wanted.found.splits else None,
        source_language=data["source_language"],
        target_language=data["target_language"],
    )
    if len(pairs) < LEAST_PAIRS:
        raise ValueError(f"there are {len(pairs)} sentence pairs, too few to train on: give at least {LEAST_PAIRS}")
    shares = _shares(wanted.found, min(HELD_OUT, HELD_OUT_ROWS / len(pairs)))
    count = len(pairs) * (1 - sum(shares.values()))
    choice = rows_of(PAIRS, round(count))
    sample = at_most(pairs, SAMPLE_ROWS, wanted.seed)
    for width in TRANSLATOR_WIDTHS:
        values = {name: dict(section) for name, section in TRANSLATION_SETTINGS.items()}
        values["model"] |= {"hidden_size": width}
        values["tokenizer"] |= {"vocab_size": choice.vocab_size}
        values["training"] |= {"per_device_train_batch_size": choice.batch}
        recipe = wanted.recipe(TRANSLATION.name, values)
        step = seconds_with_pairs(recipe, sample, PATIENCE * wanted.seconds)
        in_an_epoch = max(1.0, count / choice.batch)
        epochs = min(float(choice.epochs), wanted.seconds / (in_an_epoch * step))
        if epochs >= LEAST_EPOCHS_OF_PAIRS:
            break
    read = 1.0
    if epochs < 1:
        read, epochs = epochs, 1.0
    steps = max(1, round(read * in_an_epoch * epochs))
    values["training"] |= {"num_train_epochs": round(epochs, 1), **_checkpoints(steps, step)}
    values["data"] = {**shares, **({"max_rows": int(read * len(pairs))} if read < 1 else {})}
    recipe = wanted.recipe(TRANSLATION.name, values)
    return Plan(
        recipe,
        wanted.found,
        None,
        len(pairs),
        "sentence pairs",
        read,
        0,
        0,
        epochs,
        steps,
        step,
        steps * step / 60,
        None,
    )


_PLANS: dict[str, Callable[[_Wanted], Plan]] = {
    LANGUAGE.name: _plan_language,
    CLASSIFICATION.name: _plan_classification,
    TRANSLATION.name: _plan_translation,
}
