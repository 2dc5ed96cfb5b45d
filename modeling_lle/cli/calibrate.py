"""Commands `lle calibrate`, for every task, and `lle statistics`. Heavy imports are deferred until they run."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ..common.terminal import counted, progress, say
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION
from .options import (
    AsJson,
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..data import TextTokens
    from ..models.causal import LLEForCausalLM
    from ..models.classification import LLEForSequenceClassification
    from ..models.pretrained import LLEPreTrainedModel
    from ..models.seq2seq import LLEForSeq2SeqLM
    from .held_out import Measured, Outcome

    Calibrated = tuple[LLEPreTrainedModel, PreTrainedTokenizerBase, Outcome, list[str]]

# Options of each task that not all tasks have.
OWN_OPTIONS = {
    LANGUAGE.name: ("text_column", "sample_by", "limit_tokens", "matches"),
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
SPLITS = ("validation", "test")  # in this order
SEGMENT = 256  # tokens read at once
CLASSIFIER_SLACK = 0.02  # nats; the fit also sees to labels that are taught later, which costs a little on others
Output = Annotated[Path | None, typer.Option(help="Where to save; by default the model's folder.")]


def calibrate(
    context: typer.Context,
    model: Folder,
    source: Data,
    name: Name = None,
    split: Annotated[
        str | None, typer.Option(help="Split to read; by default validation, else test, else the whole text.")
    ] = None,
    text_column: TextColumn = None,
    sample_by: SampleBy = None,
    limit_tokens: Annotated[int, typer.Option(help="Tokens to fit on.")] = 30000,
    matches: Annotated[
        int | None, typer.Option(help="Try exact matches over so many tokens, 65536 say; kept if they predict better.")
    ] = None,
    label_column: LabelColumn = None,
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
    as_json: AsJson = False,
) -> None:
    """Fits how much the history counts, on text that is new to the model, in seconds, and saves the model.

    A language model needs text; a classifier labelled texts, where out-of-scope ones fit the score of "none of these";
    a translator sentence pairs, each predicted from the other pairs of the memory. A fifth of DATA is not fitted on,
    and shows whether the new values are better; if they are not, the old ones are kept.
    """
    folder = _place(model, output)
    task = task_of_command(model)
    options = refuse_other_options(context, OWN_OPTIONS, task.name, f"{model}, {task.noun}")
    options |= {"name": name, "split": split or SPLITS, "precision": precision.value}
    loaded, tokenizer, outcome, lines = _CALIBRATE[task.name](model, source, bank_path, namespace or None, options)
    unchanged = outcome.refused is not None and not outcome.found and output is None
    if not unchanged:
        _save(loaded, tokenizer, folder)
    if as_json:
        say(json.dumps(outcome.as_values(), indent=2))
        return
    say("\n".join([*outcome.lines(), "", *lines, *([] if unchanged else [f"The model is in {folder}."])]))


def _language_model(
    model: str, source: str, bank: Path | None, namespaces: list[str] | None, options: dict[str, Any]
) -> "Calibrated":
    from ..bank.bank import HistoryBank
    from ..common.precision import in_precision
    from ..data.sources import describe
    from ..training import segments
    from ..training.overlap import Seen
    from .held_out import fit_and_measure, hold_out_tokens, measure_tokens, parameters, perplexity_line, restore

    limit, reach, precision = (options.pop(option) for option in ("limit_tokens", "matches", "precision"))
    loaded, tokenizer, tokens = _load(model, source, **options)
    fitted, rest = hold_out_tokens(tokens.ids, tokenizer.eos_token_id, limit)
    window = loaded.config.stream.window
    lines = []
    if len(fitted) - 1 < window:
        lines = [f"The text is shorter than the stream's window of {counted(window, 'token')}: more text fits better."]
    if bank is not None:
        loaded.attach_history(HistoryBank.from_pretrained(bank), namespaces)
    Seen(model, loaded.history, tokenizer).tell(tokens.ids, describe(source))

    def descend() -> None:
        with progress(len(fitted) - 1, "Calibrating", "tokens") as bar:
            loaded.calibrate(_watched(segments(fitted, len(fitted), SEGMENT), bar, "input_ids"))

    def measure() -> "Measured":
        return measure_tokens(loaded, segments(rest, len(rest), SEGMENT))

    def fit() -> None:
        descend()
        if reach is None:
            return
        without, loss = parameters(loaded), measure().loss
        loaded.config.matches.window = reach
        descend()
        if measure().loss >= loss:
            restore(loaded, without)

    with in_precision(loaded, precision):
        outcome = fit_and_measure(
            loaded,
            fit,
            measure,
            counted(len(fitted) - 1, "token"),
            counted(len(rest) - 1, "token"),
        )
    of = f"the {outcome.measured_on} after the {outcome.fitted_on} that were fitted on"
    return loaded, tokenizer, outcome, [perplexity_line(outcome.before, outcome.after, of), *lines]


def _watched(batches: Any, bar: Any, name: str) -> Any:
    """Batches, whose tokens or rows a progress bar counts."""
    for batch in batches:
        yield batch
        bar.update(batch[name].numel() if name == "input_ids" else len(batch[name]))


def _classifier(
    model: str, source: str, bank: Path | None, namespaces: list[str] | None, options: dict[str, Any]
) -> "Calibrated":
    from ..common.precision import in_precision
    from ..data import check_labelled, load_labelled, split_out_of_scope
    from ..data.labelled import OUT_OF_SCOPE_LABEL, check_known
    from ..data.sources import describe
    from ..entries.examples import held_out
    from ..history.label_rule import SINGLE
    from ..saved import attach_bank, load_classifier
    from ..training.overlap import Seen

    loaded, tokenizer = load_classifier(model)
    if loaded.kind != SINGLE:
        raise ValueError(f"only single-label classifiers are calibrated here; the problem_type is {loaded.kind!r}")
    attach_bank(loaded, tokenizer, model, bank, namespaces)
    if loaded.history_bank is None:
        raise ValueError(
            f"{model} has no bank to calibrate: teach it examples with `lle learn`, or name one with --bank"
        )
    outside_label, precision = options.pop("out_of_scope_label"), options.pop("precision")
    size, keep, fixed = (options.pop(option) for option in ("batch_size", "keep_in_scope", "fixed"))
    options |= {column: as_trained(model, column, options[column]) for column in ("text_column", "label_column")}
    labelled = load_labelled(source, out_of_scope=outside_label, **options)
    check_labelled(labelled, where=source)
    strange = outside_label or OUT_OF_SCOPE_LABEL
    check_known(labelled["label"][:], loaded.label_names(), strange)
    Seen(model, None).tell(labelled["text"][:], describe(source))
    labelled = labelled.select(held_out(loaded.history_bank, labelled["text"][:]))
    inside, outside = split_out_of_scope(labelled, strange)
    if not len(inside):
        raise ValueError(f"all texts of {source} with a label are in the bank: give held-out ones")
    with in_precision(loaded, precision):
        return loaded, tokenizer, *_fit_classifier(loaded, tokenizer, inside, outside, size, keep, fixed or ())


def _fit_classifier(
    model: "LLEForSequenceClassification",
    tokenizer: "PreTrainedTokenizerBase",
    inside: "Dataset",
    outside: "Dataset",
    size: int,
    keep: float,
    fixed: "Sequence[str]",
) -> "tuple[Outcome, list[str]]":
    """Fits the bank of a classifier on texts with a label and, given others, its score of "none of these"."""
    from ..training.classification import batches, encode
    from ..training.held_out import hold_out_labelled
    from .classifier_report import accuracy_lines, measure_labelled, refusal_lines
    from .held_out import HELD_OUT, SEED, fit_and_measure

    fitted, rest = hold_out_labelled(inside, HELD_OUT, SEED)
    lines = []
    if not len(rest):  # each label has a single text
        fitted = rest = inside
        lines = ["Each label has a single text, so none could be held out: these are the texts that were fitted on."]
    strangers, others = outside, outside
    if len(outside) > 1:
        border = len(outside) - max(1, round(HELD_OUT * len(outside)))
        strangers, others = outside.select(range(border)), outside.select(range(border, len(outside)))
    encoded = encode(fitted, tokenizer, model.label_names())

    def fit() -> None:
        with progress(len(fitted), "Calibrating", "texts") as bar:
            model.calibrate(_watched(batches(encoded, tokenizer, size), bar, "labels"), fixed=fixed)

    def measure() -> "Measured":
        return measure_labelled(model, tokenizer, rest, size)

    outcome = fit_and_measure(
        model, fit, measure, counted(len(fitted), "text"), counted(len(rest), "text"), slack=CLASSIFIER_SLACK
    )
    lines = [*accuracy_lines(outcome), *lines]
    if len(outside):
        before = model.config.classifier.out_of_scope.threshold
        found = model.fit_out_of_scope(
            batches(encoded, tokenizer, size), batches(encode(strangers, tokenizer), tokenizer, size), keep
        )
        lines += refusal_lines(model, tokenizer, rest, others, before)
        outcome = dataclasses.replace(
            outcome,
            found={"out_of_scope": {**found, "threshold": model.config.classifier.out_of_scope.threshold}},
        )
    return outcome, lines


def _translator(
    model: str, source: str, bank: Path | None, namespaces: list[str] | None, options: dict[str, Any]
) -> "Calibrated":
    from ..common.precision import in_precision
    from ..data import load_pairs
    from ..data.sources import describe
    from ..saved import attach_bank, languages_of, load_translator
    from ..training.overlap import Seen

    sides = languages_of(model, options.pop("source_language"), options.pop("target_language"))
    loaded, tokenizer = load_translator(model)
    attach_bank(loaded, tokenizer, model, bank, namespaces)
    if loaded.history_bank is None:
        raise ValueError(f"{model} has no memory to calibrate: make one with `lle memory`, or name one with --bank")
    size, precision, fixed = (options.pop(option) for option in ("batch_size", "precision", "fixed"))
    pairs = load_pairs(source, source_language=sides[0], target_language=sides[1], **options)
    Seen(model, None).tell(pairs["source"][:], describe(source))
    with in_precision(loaded, precision):
        return (
            loaded,
            tokenizer,
            *fit_pairs(loaded, tokenizer, pairs["source"][:], pairs["target"][:], size, fixed or ()),
        )


def fit_pairs(
    model: "LLEForSeq2SeqLM",
    tokenizer: "PreTrainedTokenizerBase",
    sources: "Sequence[str]",
    targets: "Sequence[str]",
    size: int,
    fixed: "Sequence[str]" = (),
) -> "tuple[Outcome, list[str]]":
    """Fits the parameters of a translator's memory; returns the result, and lines on texts that were not fitted on."""
    from ..entries.pairs import pair_batches
    from .held_out import HELD_OUT, fit_and_measure, measure_tokens, perplexity_line

    border = len(sources) - max(1, round(HELD_OUT * len(sources))) if len(sources) > 1 else 1
    start = border if len(sources) > 1 else 0
    fitted, rest = range(border), range(start, len(sources))

    def batches(rows: range) -> Any:
        return pair_batches([sources[row] for row in rows], [targets[row] for row in rows], tokenizer, size)

    def fit() -> None:
        with progress(len(fitted), "Calibrating", "pairs") as bar:
            model.calibrate(_watched(batches(fitted), bar, "labels"), fixed=fixed)

    outcome = fit_and_measure(
        model,
        fit,
        lambda: measure_tokens(model, batches(rest)),
        counted(len(fitted), "pair"),
        counted(len(rest), "pair"),
    )
    of = f"{outcome.measured_on} that were not fitted on, each predicted from other pairs"
    if not start:
        of = "the only pair, which was fitted on"
    return outcome, [perplexity_line(outcome.before, outcome.after, of)]


_CALIBRATE = {LANGUAGE.name: _language_model, CLASSIFICATION.name: _classifier, TRANSLATION.name: _translator}


def statistics(
    model: Folder,
    source: Data,
    name: Name = None,
    split: Annotated[
        str | None, typer.Option(help="Split to read: training text; by default train, else the whole text.")
    ] = None,
    text_column: TextColumn = None,
    sample_by: SampleBy = None,
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
        model, source, name=name, split=split or ("train",), text_column=text_column, sample_by=sample_by
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
    model: str,
    source: str,
    *,
    name: str | None,
    split: "str | Sequence[str]",
    text_column: str | None,
    sample_by: Row | None,
) -> "tuple[LLEForCausalLM, PreTrainedTokenizerBase, TextTokens]":
    """Loads a language model, its tokenizer, and the tokens of a split."""
    from ..data import collect, load_texts, tokenize
    from ..saved import load_language_model

    loaded, tokenizer = load_language_model(model)
    column = as_trained(model, "text_column", text_column, "text")
    unit: Any = Row(as_trained(model, "sample_by", sample_by, Row.line)).value
    texts = load_texts(source, name=name, split=split, text_column=column, sample_by=unit)
    tokens = collect(tokenize(texts, tokenizer, text_column=column), start=tokenizer.eos_token_id)
    tokens.check_vocabulary(loaded.config.vocab_size)
    return loaded, tokenizer, tokens


def _save(model: "LLEPreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes a model and its tokenizer, each file atomically."""
    from ..common.temporary import replacing_files
    from ..models.pretrained import PARTIAL

    model.save_pretrained(folder)
    with replacing_files(folder, PARTIAL) as made:
        tokenizer.save_pretrained(made)
