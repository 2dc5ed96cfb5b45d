"""Commands of classifiers: `lle classify | learn | forget`. Heavy imports are deferred until a command runs."""

import json
import math
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.terminal import counted, printable, progress, say
from .options import (
    Bank,
    BatchSize,
    Folder,
    InPrecision,
    LabelColumn,
    Namespace,
    Namespaces,
    Precision,
    SourceName,
    TextColumn,
    column_of,
)

if TYPE_CHECKING:
    from ..data.tables import Table

Given = Annotated[
    str, typer.Argument(metavar="TEXT", help="A text, or a text file, or a .csv, .tsv, .json or .jsonl file.")
]
NewBank = Annotated[
    Path | None,
    typer.Option(
        "--bank", metavar="FOLDER", help="Bank, a folder or an address, made if missing; by default that in MODEL."
    ),
]
SHOWN = 60  # characters of a text


def classify(
    model: Folder,
    given: Given,
    text_column: TextColumn = None,
    top: Annotated[int, typer.Option(min=1, help="Labels to show for each text.")] = 1,
    history_top: Annotated[int, typer.Option(min=0, help="Number of examples behind the prediction to show.")] = 0,
    out_of_scope: Annotated[
        bool, typer.Option("--out-of-scope", help='Show the score of "none of these", and reject texts.')
    ] = False,
    bank_path: Bank = None,
    namespace: Namespaces = None,
    batch_size: BatchSize = 32,
    precision: InPrecision = Precision.auto,
    output: Annotated[Path | None, typer.Option(help="A .csv, .tsv or .jsonl file to write.")] = None,
) -> None:
    """Shows the label of a text, or of each text of a file, with its probability."""
    from ..data.tables import check_output, free_names, write_table

    table, texts = _read(model, given, text_column)
    if output is not None:
        check_output(output)
    options: dict[str, Any] = {"out_of_scope": out_of_scope, "return_history": history_top > 0}
    options |= {"history_top": history_top} if history_top else {}
    options |= {"top_k": top} if top > 1 else {}
    results = _classify(model, texts, bank_path, namespace, batch_size, precision.value, options)
    if output is None:
        for text, result in zip(texts, results, strict=True):
            typer.echo(_format(text, result))
        return
    added = [_columns(result) for result in results]
    names = free_names(list(added[0]), table.columns, table.where)
    rows = [
        {**row, **{names[name]: value for name, value in columns.items()}}
        for row, columns in zip(table.rows, added, strict=True)
    ]
    write_table(output, rows)
    refused = sum(bool(result.get("refused")) for result in results)
    told = f", {refused:,} of them as none of these" if out_of_scope else ""
    say(f"{counted(len(rows), 'text')} classified in {output}{told}, with the columns {', '.join(names.values())}.")


def _read(model: str, given: str, text_column: str | None) -> "tuple[Table, list[str]]":
    """Table of texts, and its texts."""
    from ..data.tables import read_table

    table = read_table(given, text_column or "text")
    return table, table.texts(column_of(model, "text_column", text_column, table.columns))


def _classify(
    model: str,
    texts: list[str],
    bank_path: Path | None,
    namespaces: list[str] | None,
    batch_size: int,
    precision: str,
    options: dict[str, Any],
) -> list[Any]:
    """Results of the pipeline for each text."""
    from ..common.batches import batches
    from ..common.precision import in_precision
    from ..pipelines.text_classification import LLETextClassificationPipeline
    from ..saved import attach_bank, load_classifier

    loaded, tokenizer = load_classifier(model)
    attach_bank(loaded, tokenizer, model, bank_path, namespaces or None)
    pipe: Any = LLETextClassificationPipeline(model=loaded, tokenizer=tokenizer)
    results: list[Any] = [None] * len(texts)
    bar = progress(len(texts), "Classifying", "texts", len(texts) > 1)
    # Batches of similar length; the number of bytes bounds the number of tokens.
    with bar, in_precision(loaded, precision):
        for rows in batches([len(text.encode()) for text in texts], batch_size):
            found = pipe([texts[row] for row in rows], batch_size=len(rows), **options)
            for row, result in zip(rows, found, strict=True):
                results[row] = {"labels": result} if isinstance(result, list) else result
            bar.update(len(rows))
    return results


def _columns(result: dict[str, Any]) -> dict[str, Any]:
    """Columns of a result."""
    labels = result.get("labels", [result])
    columns = {"label": labels[0]["label"], "score": labels[0]["score"]}
    if "labels" in result:
        columns["labels"] = labels
    if "out_of_scope" in result:
        mass = result["mass"]
        columns |= {name: result[name] for name in ("out_of_scope", "threshold", "refused")}
        columns["mass"] = mass if math.isfinite(mass) else None
    if "history" in result:
        columns["history"] = result["history"]
    return columns


def _format(text: str, result: dict[str, Any]) -> str:
    """Lines of a result for the terminal."""
    labels = result.get("labels", [result])
    shown = repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
    first = printable(labels[0]["label"])
    if "out_of_scope" in result:
        sign = ">=" if result["refused"] else "<"
        compared = f"{result['out_of_scope']:.2f} {sign} {result['threshold']:.2f}"
        first = f"none of these ({compared})" if result["refused"] else first
    lines = [f"{labels[0]['score']:.4f}  {typer.style(first, bold=True)}  {shown}"]
    lines += [f"{label['score']:.4f}  {printable(label['label'])}" for label in labels[1:]]
    if "out_of_scope" in result and not result["refused"]:
        lines.append(f"  accepted (score of none of these: {compared})")
    if "history" in result:
        (explained,) = result["history"]
        for cause in explained["causes"]:
            text = cause["columns"]["text"]
            shown = repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
            lines.append(
                f"  {cause['share']:+.4f}  {printable(cause['outcome'])}  {shown}, {printable(cause['where'])}"
            )
        lines.append(f"  {explained['base_share']:+.4f}  the base")
    return "\n".join(lines)


def has_label(value: Any) -> bool:
    """Whether a field in a column of labels is filled in."""
    return value is not None and bool(str(value).strip())


def learn(
    model: Folder,
    given: Given,
    label: Annotated[str | None, typer.Option(help="Label of all texts, instead of a column.")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    new_labels: Annotated[bool, typer.Option("--new-labels", help="Allow labels new to model and bank.")] = False,
    relabel: Annotated[bool, typer.Option("--relabel", help="Allow changing labels of texts in the bank.")] = False,
    source: SourceName = None,
    namespace: Namespace = "default",
    bank_path: NewBank = None,
    precision: InPrecision = Precision.auto,
) -> None:
    """Teaches a classifier examples without training: adds them to its bank, permanently."""
    from ..common.precision import in_precision
    from ..saved import bank_place, load_classifier, read_label, teach

    place = bank_place(model, bank_path)
    table, texts = _read(model, given, text_column)
    column = column_of(model, "label_column", label_column, table.columns)
    if label is None and len(table.columns) == 1:
        raise ValueError(f"{table.where} has no label: give --label")
    values, places = [label] * len(texts) if label is not None else table.values(column), table.places
    kept = [row for row, value in enumerate(values) if label is not None or has_label(value)]
    if not kept:
        raise ValueError(f"{table.where} has no label in {column!r}: fill it in, or give --label")
    if len(kept) < len(texts):
        say(f"{counted(len(texts) - len(kept), 'text')} of {table.where} without a label: left out.", err=True)
        texts, values = [texts[row] for row in kept], [values[row] for row in kept]
        places = [places[row] for row in kept]
    loaded, tokenizer = load_classifier(model)
    begin = time.perf_counter()
    labels = [read_label(value, loaded.kind) for value in values]
    try:
        with in_precision(loaded, precision.value):
            added = teach(
                loaded,
                tokenizer,
                place,
                texts,
                labels,
                new_labels=new_labels,
                relabel=relabel,
                source=source,
                namespace=namespace,
                places=places,
            )
    except ValueError as error:
        raise ValueError(f"{table.where} cannot be learned: {error}") from error
    seconds = time.perf_counter() - begin
    bank, several = loaded.history_bank, len({json.dumps(one) for one in labels})
    assert bank is not None
    say(
        f"{added:,} of {counted(len(texts), 'example')} {'is' if added == 1 else 'are'} new, of "
        f"{counted(several, 'label')}, in {seconds:.1f} s; the bank {place} has {len(bank):,}."
    )
    if added:
        name = source or max(bank.documents(), key=lambda document: document.ids[-1]).source
        where = "" if bank_path is None else f" --bank {bank_path}"
        say(f"The source is {name!r}: lle forget {model} --source {shlex.quote(name)}{where} takes it back.")


def forget(
    model: Folder,
    given: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT]", help="A text, or a text file, or a .csv, .tsv, .json or .jsonl file."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Only examples with this label.")] = None,
    text_column: TextColumn = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only examples that were added under this name.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Only examples in this namespace.")] = None,
    bank_path: Bank = None,
) -> None:
    """Forgets examples that match all given conditions, as if they had never been taught."""
    if given is None and label is None and source is None and namespace is None:
        raise ValueError("nothing to forget: give texts, --label, --source or --namespace")
    texts = None if given is None else _read(model, given, text_column)[1]
    from ..bank.bank import HistoryBank
    from ..saved import bank_place, load_classifier, read_label

    bank = HistoryBank.open(bank_place(model, bank_path))
    loaded, tokenizer = load_classifier(model)
    loaded.attach_history(bank, tokenizer=tokenizer)
    wanted = None if label is None else read_label(label, loaded.kind)
    gone = loaded.forget(texts, label=wanted, source=source, namespace=namespace)
    say(f"{counted(gone, 'example')} taken back; the bank {bank.name} has {len(bank):,}.")
