"""Commands `lle calibrate`, for every task, and `lle statistics`. Heavy imports are deferred until they run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data import TextTokens
    from ..models.causal import LLEForCausalLM
    from ..models.pretrained import LLEPreTrainedModel

    Calibrated = tuple[LLEPreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]

# Options of each task that not all tasks have.
OWN_OPTIONS = {
    LANGUAGE.name: ("text_column", "sample_by", "limit_tokens"),
    CLASSIFICATION.name: (
        "text_column",
        "label_column",
        "out_of_scope_label",
        "keep_in_scope",
        "fixed",
        "batch_size",
    ),
    TRANSLATION.name: (
        "source_language",
        "target_language",
        "source_column",
        "target_column",
        "fixed",
        "batch_size",
    ),
}
Output = Annotated[Path | None, typer.Option(help="Where to save; by default the model's folder.")]


def calibrate(
    context: typer.Context,
    model: Folder,
    source: Source,
    name: Name = None,
    split: Annotated[str, typer.Option(help="Split to read: held-out data, not the test set.")] = "validation",
    text_column: Column = "text",
    sample_by: SampleBy = Row.line,
    limit_tokens: Annotated[int, typer.Option(help="Tokens to fit on.")] = 30000,
    label_column: LabelColumn = "label",
    out_of_scope_label: OutOfScopeLabel = None,
    keep_in_scope: Annotated[float, typer.Option(help="Least share of correctly labelled texts to accept.")] = 0.99,
    fixed: Annotated[
        list[str] | None, typer.Option(help="Keep sharpness, background or gate unchanged; repeatable.")
    ] = None,
    source_language: Language = None,
    target_language: Language = None,
    source_column: SideColumn = None,
    target_column: SideColumn = None,
    batch_size: BatchSize = 32,
    bank_path: Bank = None,
    namespace: Namespaces = None,
    precision: InPrecision = Precision.auto,
    output: Output = None,
) -> None:
    """Fits the parameters of the history rule on held-out data, in seconds, and saves the model.

    A language model needs text; a classifier labelled texts, where out-of-scope ones fit the score of "none of these";
    a translator sentence pairs, each predicted from the other pairs of the memory.
    """
    from ..saved import task_in

    folder = _place(model, output)
    task = task_in(model)
    if not task.has_commands:
        raise ValueError(f"{model} holds a {task.model}: use {task.noun} in Python")
    options = refuse_other_options(context, OWN_OPTIONS, task.name, f"the {task.model} in {model}")
    options |= {"name": name, "split": split, "precision": precision.value}
    loaded, tokenizer, found = _CALIBRATE[task.name](model, source, bank_path, namespace or None, options)
    _save(loaded, tokenizer, folder)
    values = loaded.config.to_dict()
    read = [path.removeprefix("history.") for path in task.sections]
    typer.echo(json.dumps({**found, **{name: {**values["history"], **values}[name] for name in read}}, indent=2))


def _language_model(
    model: str, source: str, bank: Path | None, namespaces: list[str] | None, options: dict[str, Any]
) -> "Calibrated":
    from ..bank.bank import HistoryBank
    from ..common.precision import in_precision
    from ..training import calibrate as fit

    limit, precision = options.pop("limit_tokens"), options.pop("precision")
    loaded, tokenizer, tokens = _load(model, source, **options)
    if bank is not None:
        loaded.attach_history(HistoryBank.from_pretrained(bank), namespaces)
    with in_precision(loaded, precision):
        return loaded, tokenizer, fit(loaded, tokens.ids, limit)


def _classifier(
    model: str, source: str, bank: Path | None, namespaces: list[str] | None, options: dict[str, Any]
) -> "Calibrated":
    from ..common.precision import in_precision
    from ..data import check_labelled, load_labelled, split_out_of_scope
    from ..data.labelled import OUT_OF_SCOPE_LABEL, check_known
    from ..entries.examples import held_out
    from ..history.label_rule import SINGLE
    from ..saved import attach_bank, load_classifier
    from ..training.classification import encode, fit_history

    loaded, tokenizer = load_classifier(model)
    if loaded.kind != SINGLE:
        raise ValueError(f"only single-label classifiers are calibrated here; the problem_type is {loaded.kind!r}")
    attach_bank(loaded, tokenizer, model, bank, namespaces)
    if loaded.history_bank is None:
        raise ValueError(f"{model} has no bank to calibrate: name one with --bank")
    outside_label, precision = options.pop("out_of_scope_label"), options.pop("precision")
    size, keep, fixed = (options.pop(option) for option in ("batch_size", "keep_in_scope", "fixed"))
    labelled = load_labelled(source, out_of_scope=outside_label, **options)
    check_labelled(labelled, where=source)
    labels = loaded.label_names()
    check_known(labelled["label"][:], labels, outside_label or OUT_OF_SCOPE_LABEL)
    labelled = labelled.select(held_out(loaded.history_bank, labelled["text"][:]))
    inside, outside = split_out_of_scope(labelled, outside_label or OUT_OF_SCOPE_LABEL)
    if not len(inside):
        raise ValueError(f"all texts of {source} with a label are in the bank: give held-out ones")
    both = encode(inside, tokenizer, labels), encode(outside, tokenizer)
    with in_precision(loaded, precision):
        return loaded, tokenizer, fit_history(loaded, tokenizer, *both, size, keep, fixed or ())


def _translator(
    model: str, source: str, bank: Path | None, namespaces: list[str] | None, options: dict[str, Any]
) -> "Calibrated":
    from ..common.precision import in_precision
    from ..data import load_pairs
    from ..entries.pairs import pair_batches
    from ..evaluation.translation import languages_of
    from ..saved import attach_bank, load_translator

    sides = languages_of(model, options.pop("source_language"), options.pop("target_language"))
    loaded, tokenizer = load_translator(model)
    attach_bank(loaded, tokenizer, model, bank, namespaces)
    if loaded.history_bank is None:
        raise ValueError(f"{model} has no memory to calibrate: name one with --bank")
    size, precision, fixed = (options.pop(option) for option in ("batch_size", "precision", "fixed"))
    pairs = load_pairs(source, source_language=sides[0], target_language=sides[1], **options)
    batches = pair_batches(pairs["source"][:], pairs["target"][:], tokenizer, size)
    with in_precision(loaded, precision):
        return loaded, tokenizer, loaded.calibrate(batches, fixed=fixed or ())


_CALIBRATE = {LANGUAGE.name: _language_model, CLASSIFICATION.name: _classifier, TRANSLATION.name: _translator}


def statistics(
    model: Folder,
    source: Source,
    name: Name = None,
    split: Annotated[str, typer.Option(help="Split to read: training text.")] = "train",
    text_column: Column = "text",
    sample_by: SampleBy = Row.line,
    limit_tokens: Annotated[int, typer.Option(help="Tokens to read.")] = 100_000,
    scope: Annotated[str | None, typer.Option(help="Sets history.update.scope: head, low-rank or all.")] = None,
    precision: InPrecision = Precision.auto,
    output: Output = None,
) -> None:
    """Collects statistics of training text for the test-time update, once per model, and saves them with it."""
    from ..common.precision import in_precision
    from ..training import segments

    folder = _place(model, output)
    loaded, tokenizer, tokens = _load(
        model, source, name=name, split=split, text_column=text_column, sample_by=sample_by
    )
    if scope is not None:
        loaded.config.overlay.scope = cast(Literal["none", "head", "low-rank", "all"], scope)
    with in_precision(loaded, precision.value):
        loaded.collect_update_statistics(segments(tokens.ids, limit_tokens, 70))
    _save(loaded, tokenizer, folder)
    typer.echo(f"The statistics are in {folder}; history.update.scope is {loaded.config.overlay.scope!r}.")


def _place(model: str, output: Path | None) -> Path:
    """Folder to save a model in."""
    if output is None and not Path(model).is_dir():
        raise ValueError(f"{model} is not a local folder: give --output")
    return output or Path(model)


def _load(
    model: str, source: str, *, name: str | None, split: str, text_column: str, sample_by: Row
) -> "tuple[LLEForCausalLM, PreTrainedTokenizerBase, TextTokens]":
    """Loads a language model, its tokenizer, and the tokens of a split."""
    from ..data import collect, load_texts, tokenize
    from ..saved import load_language_model

    loaded, tokenizer = load_language_model(model)
    texts = load_texts(source, name=name, split=split, text_column=text_column, sample_by=sample_by.value)
    tokens = collect(tokenize(texts, tokenizer, text_column=text_column), start=tokenizer.eos_token_id)
    tokens.check_vocabulary(loaded.config.vocab_size)
    return loaded, tokenizer, tokens


def _save(model: "LLEPreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes a model and its tokenizer, each file atomically."""
    from ..common.temporary import replacing_files
    from ..models.pretrained import PARTIAL

    model.save_pretrained(folder)
    with replacing_files(folder, PARTIAL) as made:
        tokenizer.save_pretrained(made)
