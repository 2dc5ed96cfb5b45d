"""Command `lle evaluate`, for every task. Heavy imports are deferred until it runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.terminal import say
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION
from .options import (
    Bank,
    BatchSize,
    Data,
    Folder,
    InPrecision,
    LabelColumn,
    Language,
    Name,
    Namespaces,
    OutOfScopeLabel,
    Precision,
    Row,
    SampleBy,
    SideColumn,
    TextColumn,
    as_trained,
    refuse_other_options,
    task_of_command,
)

# Options of each task that not all tasks have.
OWN_OPTIONS = {
    LANGUAGE.name: ("text_column", "sample_by", "train_split", "rows", "segment_length", "limit_tokens"),
    CLASSIFICATION.name: ("text_column", "label_column", "out_of_scope_label", "batch_size"),
    TRANSLATION.name: (
        "source_language",
        "target_language",
        "source_column",
        "target_column",
        "beams",
        "lowercase",
        "batch_size",
    ),
}
SPLITS = ("test", "validation")  # in this order


def evaluate(
    context: typer.Context,
    model: Folder,
    source: Data,
    name: Name = None,
    split: Annotated[
        str | None, typer.Option(help="Split to read; by default test, else validation, else the whole text.")
    ] = None,
    train_split: Annotated[str | None, typer.Option(help="Split for counting token frequencies.")] = None,
    text_column: TextColumn = None,
    sample_by: SampleBy = None,
    rows: Annotated[int, typer.Option(help="Readers, each with its own stream; more are faster.")] = 1,
    segment_length: Annotated[int, typer.Option(help="Tokens per step; affects speed only.")] = 256,
    limit_tokens: Annotated[int | None, typer.Option(help="Maximum tokens to read.")] = None,
    label_column: LabelColumn = None,
    out_of_scope_label: OutOfScopeLabel = None,
    source_language: Language = None,
    target_language: Language = None,
    source_column: SideColumn = None,
    target_column: SideColumn = None,
    beams: Annotated[int, typer.Option(min=1, help="Beam size; 1 is greedy.")] = 5,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Ignore case.")] = False,
    batch_size: BatchSize = 32,
    bank_path: Bank = None,
    namespace: Namespaces = None,
    precision: InPrecision = Precision.auto,
    output: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and a picture.")] = None,
    results: Annotated[Path | None, typer.Option(help="Results file of a released recipe to write.")] = None,
) -> None:
    """Evaluates a model without history and with each source of it, side by side.

    Language models: perplexity of a text, read once. Classifiers: accuracy, calibration and rejection on labelled
    texts. Translators: BLEU, chrF and TER on sentence pairs.
    """
    task = task_of_command(model)
    options = refuse_other_options(context, OWN_OPTIONS, task.name, f"{model}, {task.noun}")
    options |= {"name": name, "split": split or SPLITS, "bank": bank_path, "namespaces": namespace or None}
    options |= {"precision": precision.value, "output": output, "progress": True}
    _EVALUATE[task.name](results, model, source, options)


def _language_model(results: Path | None, model: str, source: str, options: dict[str, Any]) -> None:
    from ..evaluation import evaluate_folder, format_table, write_release

    options["text_column"] = as_trained(model, "text_column", options["text_column"], "text")
    options["sample_by"] = Row(as_trained(model, "sample_by", options["sample_by"], Row.line)).value
    measured = evaluate_folder(model, source, **options)
    say(measured["read"])
    say(format_table(measured["metrics"]))
    if results is not None:
        split = options["split"]
        write_release(results, model, measured, split if isinstance(split, str) else "test")


def _classifier(results: Path | None, model: str, source: str, options: dict[str, Any]) -> None:
    from ..evaluation import evaluate_classifier_folder, format_classification

    options |= {column: as_trained(model, column, options[column]) for column in ("text_column", "label_column")}
    measured = evaluate_classifier_folder(model, source, out_of_scope=options.pop("out_of_scope_label"), **options)
    say(measured["read"])
    say(format_classification(measured["metrics"]))
    _write(results, measured)


def _translator(results: Path | None, model: str, source: str, options: dict[str, Any]) -> None:
    from ..evaluation import evaluate_translator_folder, format_translation

    measured = evaluate_translator_folder(model, source, **options)
    say(measured["read"])
    say(format_translation(measured["metrics"]))
    _write(results, measured)


def _write(results: Path | None, measured: dict[str, Any]) -> None:
    from ..evaluation import write_results
    from ..evaluation.results import this_command

    if results is not None:
        write_results(results, this_command(), measured["metrics"], measured["rows"])


_EVALUATE = {LANGUAGE.name: _language_model, CLASSIFICATION.name: _classifier, TRANSLATION.name: _translator}
