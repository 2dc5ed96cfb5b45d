"""Demonstration: trains a small language model, then shows how it learns from the text it reads and from a bank.

The default corpus is the source code of Python's standard library, split by package, so nothing is downloaded. The
amount of training text depends on the measured duration of a training step.
"""

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, pipeline

from ..bank.bank import HistoryBank
from ..bank.files import Folder
from ..common.precision import in_precision
from ..data import TextTokens, collect, load_texts, python_corpus, tokenize
from ..data.text import Rows
from ..evaluation import evaluate_stream, format_table
from ..models.causal import LLEForCausalLM
from ..training import calibrate, make_recipe, run
from ..training.measure import choose_tokens
from ..training.sizes import LANGUAGE_TRAINING

TRAIN_TOKENS = 1_250_000  # at most
TRAIN_SECONDS = 360.0
TEST_TOKENS = 60_000
CALIBRATION_TOKENS = 30_000
KEEP_BELOW = 0.2  # the bank keeps tokens below this probability
PROMPTS = 3
HISTORY_TOKENS = 1500
NEW_TOKENS = 40
# Configurations of data sets on the Hub without a default.
CONFIGURATIONS = {"Salesforce/wikitext": "wikitext-2-raw-v1"}
RECIPE: dict[str, Any] = {
    "tokenizer": {"kind": "bpe", "vocab_size": 4096},
    "model": {
        "hidden_size": 384,
        "num_hidden_layers": 2,
        "input_dropout": 0.1,
        "hidden_dropout": 0.1,
        "output_dropout": 0.1,
    },
    "training": {
        **LANGUAGE_TRAINING,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 16,
        "save_strategy": "no",
        "logging_steps": 100,
    },
}
NEXT = """
What to try next
  lle evaluate {folder} FILES --output {folder}    how much the history helps on your own text
  lle explain {folder} FILE --bank {folder}/bank --output page.html    which entries moved each prediction
  lle bank add {folder} FILES {folder}/bank --source mine    the bank learns your texts, until `lle bank forget`
  lle train --data FILES    a model of your own texts, in ten minutes
  README.md    the same from Python, with pipeline() and generate()
"""


@dataclass
class Prompt:
    """A place in a test document: the text up to two lines above, the text just before, and the continuation."""

    source: str
    history: str
    prompt: str
    truth: str


def demonstrate(
    folder: str | Path = "runs/demo",
    dataset: str | None = None,
    name: str | None = None,
    text_column: str = "text",
    train_tokens: int = TRAIN_TOKENS,
    train_seconds: float = TRAIN_SECONDS,
    precision: str = "auto",
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains, calibrates, measures and saves a language model, gives it a bank, and completes text with it.

    Args:
        folder: Folder for the model, evaluation.png and metrics.json.
        dataset: Data set on the Hub or local files; None: Python's standard library.
        name: Configuration of a data set on the Hub.
        text_column: Column of the text.
        train_tokens: Approximate maximum of training tokens.
        train_seconds: Approximate training time; slow machines read fewer tokens.
        precision: "auto", "float32" or "bfloat16", for all steps.
        say: Receives lines to print.

    Returns:
        Metrics of the test text, as in `StreamEvaluation.metrics`.
    """
    begin = time.perf_counter()
    folder = Path(folder)
    values = {**RECIPE, "data": {"text_column": text_column}}
    values["training"] = {**RECIPE["training"], "output_dir": str(folder), "precision": precision}
    recipe = make_recipe(values, "the demo")
    train_tokens = choose_tokens(recipe, train_tokens, train_seconds, say)
    texts = _texts(dataset, name, text_column, train_tokens)
    say(f"Training on {len(texts['train']):,} texts of {dataset or 'the Python standard library'} ...")
    metrics = run(recipe, {split: texts[split] for split in ("train", "validation")})
    say(
        f"{metrics['parameters']:,} parameters trained in {metrics['train_minutes']:.1f} minutes; the history rule "
        f"fitted on {metrics['calibration']['predictions']:,.0f} tokens of validation text."
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    test = collect(_encoded(texts["test"], tokenizer, text_column, TEST_TOKENS), start=tokenizer.eos_token_id)
    say("\nUnseen text, read as one stream:\n")
    with in_precision(model, recipe.training.precision):
        _measure(model, test, say)
        bank = _remember(model, tokenizer, texts, text_column, folder, say)
        say("\nThe same text, with the stream and the bank:\n")
        measured = _measure(model, test, say, folder / "evaluation.png")
    say(f"The picture is {folder / 'evaluation.png'}, the model is in {folder}, its bank in {bank.folder.path}.")
    _complete(folder, tokenizer, texts["test"], text_column, say)
    say(NEXT.format(folder=folder))
    say(f"Done in {(time.perf_counter() - begin) / 60:.1f} minutes.")
    return measured


def _texts(dataset: str | None, name: str | None, text_column: str, train_tokens: int) -> dict[str, Rows]:
    """The three splits, each cut to about `train_tokens` at four bytes per token."""
    if dataset is None:
        return dict(python_corpus(max_train_bytes=4 * train_tokens))
    name = name or CONFIGURATIONS.get(dataset)
    splits = {
        split: load_texts(dataset, name=name, split=split, text_column=text_column)
        for split in ("train", "validation", "test")
    }
    return {split: _at_most(rows, text_column, 4 * train_tokens) for split, rows in splits.items()}


def _at_most(rows: Any, text_column: str, size: int) -> Dataset:
    """The first rows with at most `size` characters."""
    total = 0
    for index, text in enumerate(rows[text_column]):
        total += len(text)
        if total > size:
            return rows.select(range(max(1, index)))
    return rows


def _encoded(texts: Any, tokenizer: PreTrainedTokenizerBase, text_column: str, tokens: int) -> Dataset:
    """The first texts with about `tokens` tokens, tokenised."""
    return tokenize(_at_most(texts, text_column, 4 * tokens), tokenizer, text_column=text_column)


def _measure(
    model: LLEForCausalLM, tokens: TextTokens, say: Callable[[str], None], picture: Path | None = None
) -> dict[str, float]:
    """Evaluates unseen text, prints the table, and draws the picture."""
    evaluation = evaluate_stream(model, tokens)
    measured = evaluation.metrics()
    say(format_table(measured))
    if picture is not None:
        from ..evaluation.pictures import draw_evaluation, save_figure

        save_figure(draw_evaluation(evaluation), picture)
    return measured


def _remember(
    model: LLEForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: dict[str, Rows],
    column: str,
    folder: Path,
    say: Callable[[str], None],
) -> HistoryBank:
    """Builds a bank of the training tokens that the model has not learned, and calibrates both sources."""
    path = folder / "bank"
    Folder(path).remove()  # of an earlier demonstration
    begin = time.perf_counter()
    bank = HistoryBank.build(
        model, tokenizer, texts["train"], path, text_column=column, source="training text", keep_below=KEEP_BELOW
    )
    model.attach_history(bank, tokenizer=tokenizer)
    held_out = collect(_encoded(texts["validation"], tokenizer, column, CALIBRATION_TOKENS))
    calibrate(model, held_out.ids, CALIBRATION_TOKENS)
    say(
        f"\nA bank of the training tokens that the model had not learned, {len(bank):,} entries, built and calibrated "
        f"in {time.perf_counter() - begin:.0f} seconds."
    )
    return bank


def choose_prompts(documents: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, column: str) -> list[Prompt]:
    """Places in the longest test documents: a started line, two lines above it, and enough history."""
    prompts = []
    for document in sorted(documents, key=lambda row: -len(row[column]))[:PROMPTS]:
        lines = document[column].splitlines(keepends=True)
        length = len(tokenizer(document[column], verbose=False)["input_ids"])
        at = min(len(lines) - 1, max(1, len(lines) * HISTORY_TOKENS // max(length, HISTORY_TOKENS)))
        at = next((place for place in range(at, len(lines)) if len(lines[place].strip()) > 30), at)
        line, above = lines[at], max(0, at - 2)
        words = line.split()
        cut = line.find(words[0]) + len(words[0]) if words else len(line) // 2
        source = str(document.get("source", "a test document"))
        prompts.append(Prompt(source, "".join(lines[:above]), "".join(lines[above:at]) + line[:cut], line[cut:]))
    return prompts


def _complete(
    folder: Path, tokenizer: PreTrainedTokenizerBase, test: Any, column: str, say: Callable[[str], None]
) -> None:
    """Completes prompts, each without and with the preceding text of its document."""
    generate = pipeline("text-generation", model=str(folder))
    for place in choose_prompts(list(test), tokenizer, column):
        say(f"\n{place.source}\n" + textwrap.indent(place.prompt, "    | "))
        for label, text in (("without history", place.prompt), ("with history", place.history + place.prompt)):
            output = generate(text, max_new_tokens=NEW_TOKENS, do_sample=False, return_full_text=False)
            say(f"{label:>16}: {_first_line(output[0]['generated_text'])}")
        say(f"{'the file itself':>16}: {_first_line(place.truth)}")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "(an empty line)")
