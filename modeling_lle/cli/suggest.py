"""`lle suggest`: which texts without labels to label next. Heavy imports are deferred until the command runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.terminal import counted, printable, say
from .classify import SHOWN, Given, has_label
from .options import Bank, BatchSize, Folder, InPrecision, LabelColumn, Namespaces, Precision, TextColumn, column_of

if TYPE_CHECKING:
    from ..pipelines.suggestions import Suggestion

# The columns of the file; `lle learn` and `lle train` read the first two.
TEXT, LABEL = "text", "label"


def suggest(
    model: Folder,
    given: Given,
    number: Annotated[int, typer.Option(min=1, help="Texts to suggest.")] = 20,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    bank_path: Bank = None,
    namespace: Namespaces = None,
    batch_size: BatchSize = 256,
    precision: InPrecision = Precision.auto,
    output: Annotated[
        Path | None, typer.Option(help="A .csv, .tsv or .jsonl file to write, with an empty column label to fill in.")
    ] = None,
) -> None:
    """Suggests which texts of a file to label next: uncertain ones, unlike the examples and unlike each other."""
    from ..common.precision import in_precision
    from ..data.tables import check_output, write_table
    from ..pipelines.suggestions import suggest as choose
    from ..pipelines.text_classification import LLETextClassificationPipeline
    from ..saved import attach_bank, load_classifier

    if output is not None:
        check_output(output)
    texts = _unlabelled(model, given, text_column, label_column)
    loaded, tokenizer = load_classifier(model)
    attach_bank(loaded, tokenizer, model, bank_path, namespace or None)
    pipe: Any = LLETextClassificationPipeline(model=loaded, tokenizer=tokenizer)
    with in_precision(loaded, precision.value):
        chosen = choose(pipe, texts, number, batch_size=batch_size, progress=True)
    if not chosen:
        raise ValueError(f"there is no text to label in {given}: all are labelled, in the bank, or blank")
    if len(chosen) < number:
        say(f"There are only {counted(len(chosen), 'text')} to choose from.", err=True)
    if output is None:
        for one in chosen:
            typer.echo(_format(one))
        return
    write_table(output, [_columns(one) for one in chosen])
    say(f"{counted(len(chosen), 'text')} in {output}: fill in the column {LABEL}, then teach them:")
    where = "" if bank_path is None else f" --bank {bank_path}"
    say(f"lle learn {model} {output}{where}    (--new-labels, if some of the labels are new)")


def _unlabelled(model: str, given: str, text_column: str | None, label_column: str | None) -> list[Any]:
    """The texts of a table, without those of rows that have a label."""
    from ..data.tables import read_table

    table = read_table(given, text_column or TEXT)
    texts = table.values(column_of(model, "text_column", text_column, table.columns))
    column = column_of(model, "label_column", label_column, table.columns)
    if label_column is None and column not in table.columns:
        return texts
    kept = [text for text, label in zip(texts, table.values(column), strict=True) if not has_label(label)]
    if len(kept) < len(texts):
        say(f"{counted(len(texts) - len(kept), 'text')} with a label in {column!r}: left out.", err=True)
    return kept


def _columns(one: "Suggestion") -> dict[str, Any]:
    """Columns of a suggestion."""
    return {
        TEXT: one.text,
        LABEL: None,
        "suggested_label": one.label,
        "probability": round(one.probability, 4),
        "why": _why(one),
        "nearest_example": one.nearest,
        "nearest_label": one.nearest_label,
    }


def _why(one: "Suggestion") -> str:
    from ..pipelines.suggestions import UNCERTAIN

    return f"{one.reason}, perhaps {one.second}" if one.reason == UNCERTAIN else one.reason


def _format(one: "Suggestion") -> str:
    """Lines of a suggestion for the terminal."""
    label = typer.style(printable(one.label), bold=True)
    lines = [f"{_short(one.text)}", f"  {one.probability:.4f}  {label}  ({printable(_why(one))})"]
    if one.nearest is not None:
        lines.append(f"  {one.similarity:.4f}  {printable(str(one.nearest_label))}  {_short(one.nearest)}")
    return "\n".join(lines)


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
