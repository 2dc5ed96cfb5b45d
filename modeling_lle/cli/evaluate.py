"""The command `lle evaluate`, for every kind of model.

Heavy imports wait until it runs.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION
from .options import (
    Bank,
    BatchSize,
    Column,
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
    Source,
    refuse_other_options,
)

# For each task the options that only some tasks have.
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


def evaluate(
    context: typer.Context,
    model: Folder,
    source: Source,
    name: Name = None,
    split: Annotated[str, typer.Option(help="Split that is read.")] = "test",
    train_split: Annotated[str | None, typer.Option(help="Split that tells rare from frequent tokens.")] = None,
    text_column: Column = "text",
    sample_by: SampleBy = Row.line,
    rows: Annotated[int, typer.Option(help="Readers, each with a stream of its own; more are faster.")] = 1,
    segment_length: Annotated[int, typer.Option(help="Tokens of a step; changes the speed only.")] = 256,
    limit_tokens: Annotated[int | None, typer.Option(help="Read only about so many tokens.")] = None,
    label_column: LabelColumn = "label",
    out_of_scope_label: OutOfScopeLabel = None,
    source_language: Language = None,
    target_language: Language = None,
    source_column: SideColumn = None,
    target_column: SideColumn = None,
    beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")] = 5,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Count capital letters as small ones.")] = False,
    batch_size: BatchSize = 32,
    bank_path: Bank = None,
    namespace: Namespaces = None,
    precision: InPrecision = Precision.auto,
    output: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and a picture.")] = None,
    results: Annotated[Path | None, typer.Option(help="Results file of a released recipe to write.")] = None,
) -> None:
    """Measures a model for the base and with each source of history, side by side.

    Of a language model, it shows the perplexity of a text that is read once; of a classifier, the accuracy,
    calibration and refusals on labelled texts; of a translator, BLEU, chrF and TER on sentence pairs.
    """
    from ..saved import task_in

    task = task_in(model)
    if not task.has_commands:
        raise ValueError(f"{model} holds a {task.model}: use {task.noun} in Python")
    options = refuse_other_options(context, OWN_OPTIONS, task.name, f"the {task.model} in {model}")
    options |= {"name": name, "split": split, "bank": bank_path, "namespaces": namespace or None}
    options |= {"precision": precision.value, "output": output}
    _EVALUATE[task.name](results, model, source, options)


def _language_model(results: Path | None, model: str, source: str, options: dict[str, Any]) -> None:
    from ..evaluation import evaluate_folder, format_table, write_release

    measured = evaluate_folder(model, source, **{**options, "sample_by": Row(options["sample_by"]).value})
    typer.echo(format_table(measured["metrics"]))
    if results is not None:
        write_release(results, model, measured, options["split"])


def _classifier(results: Path | None, model: str, source: str, options: dict[str, Any]) -> None:
    from ..evaluation import evaluate_classifier_folder, format_classification

    measured = evaluate_classifier_folder(model, source, out_of_scope=options.pop("out_of_scope_label"), **options)
    typer.echo(format_classification(measured["metrics"]))
    _write(results, measured)


def _translator(results: Path | None, model: str, source: str, options: dict[str, Any]) -> None:
    from ..evaluation import evaluate_translator_folder, format_translation

    measured = evaluate_translator_folder(model, source, **options)
    typer.echo(format_translation(measured["metrics"]))
    _write(results, measured)


def _write(results: Path | None, measured: dict[str, Any]) -> None:
    from ..evaluation import write_results
    from ..evaluation.results import this_command

    if results is not None:
        write_results(results, this_command(), measured["metrics"], measured["rows"])


_EVALUATE = {LANGUAGE.name: _language_model, CLASSIFICATION.name: _classifier, TRANSLATION.name: _translator}
