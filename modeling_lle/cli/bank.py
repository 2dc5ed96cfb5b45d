"""The command line of banks: `lle bank build | add | forget | search | info | verify | compact | export | import`.

Heavy imports wait until a command runs.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.terminal import printable, say
from ..tasks import TRANSLATION
from .options import Column, Folder, InPrecision, Name, Precision, Row, SampleBy, Source

bank = typer.Typer(help="Banks of past sequences for a model to recall from.", no_args_is_help=True)

Path_ = Annotated[Path, typer.Argument(metavar="BANK", help="The folder of the bank.")]
Split = Annotated[str, typer.Option(help="Split that is read.")]
SourceName = Annotated[str | None, typer.Option("--as", help="Name of the source, for forgetting it.")]
Namespace = Annotated[str, typer.Option(help="Namespace of the entries.")]
KeepBelow = Annotated[float | None, typer.Option(help="Keep only tokens below this probability.")]
Keep = Annotated[list[str] | None, typer.Option(help="Column to keep with each text, repeatable; by default all.")]
Merge = Annotated[bool, typer.Option(help="Merge duplicates within a row into one entry.")]


@contextlib.contextmanager
def _rows(
    source: str, name: str | None, split: str, text_column: str, sample_by: Row, streaming: bool = False
) -> Iterator[Any]:
    """Yields the texts, without leaving a copy in the cache of `datasets` that forgetting would miss."""
    from ..common.temporary import TemporaryFolder
    from ..data import load_texts

    options: dict[str, Any] = {"text_column": text_column, "sample_by": sample_by.value, "streaming": streaming}
    with TemporaryFolder("lle-texts-") as cache:
        yield load_texts(source, name=name, split=split, cache_dir=cache, **options)


def _load(model: str) -> tuple[Any, Any]:
    from ..saved import load_language_model, task_in

    if task_in(model) == TRANSLATION:
        raise ValueError(f"{model} holds a translator, whose bank holds sentence pairs: use lle memory")
    return load_language_model(model)


def _say_size(opened: Any) -> None:
    info = opened.info()
    say(
        f"{info['path']}: {info['entries']:,} entries, {info['bytes'] / 2**20:,.1f} MiB, "
        f"namespaces: {', '.join(info['namespaces']) or 'none'}."
    )


@bank.command()
def build(
    model: Folder,
    source: Source,
    path: Path_,
    name: Name = None,
    split: Split = "train",
    text_column: Column = "text",
    sample_by: SampleBy = Row.line,
    source_name: SourceName = None,
    namespace: Namespace = "default",
    keep_below: KeepBelow = None,
    merge: Merge = False,
    precision: InPrecision = Precision.auto,
    keep: Keep = None,
    streaming: Annotated[bool, typer.Option(help="Read a data set that does not fit on disk.")] = False,
) -> None:
    """Builds a bank from a data set; repeat an interrupted command to resume it."""
    from ..bank.bank import HistoryBank
    from ..bank.files import MANIFEST
    from ..common.precision import in_precision

    loaded, tokenizer = _load(model)
    options: dict[str, Any] = {
        "source": source_name or source,
        "text_column": text_column,
        "namespace": namespace,
        "keep_below": keep_below,
        "merge": merge,
        "columns": keep or None,
        "progress": True,
    }
    with (
        _rows(source, name, split, text_column, sample_by, streaming) as rows,
        in_precision(loaded, precision.value),
    ):
        if (path / MANIFEST).exists():
            opened = HistoryBank.open(path)
            opened.add(rows, model=loaded, tokenizer=tokenizer, resume=True, **options)
        else:
            opened = HistoryBank.build(loaded, tokenizer, rows, path, **options)
    _say_size(opened)


@bank.command()
def add(
    model: Folder,
    source: Source,
    path: Path_,
    name: Name = None,
    split: Split = "train",
    text_column: Column = "text",
    sample_by: SampleBy = Row.line,
    source_name: SourceName = None,
    namespace: Namespace = "default",
    keep_below: KeepBelow = None,
    merge: Merge = False,
    precision: InPrecision = Precision.auto,
    keep: Keep = None,
    resume: Annotated[bool, typer.Option(help="Resume adding this source.")] = False,
) -> None:
    """Adds a data set to a bank."""
    from ..bank.bank import HistoryBank
    from ..common.precision import in_precision

    opened = HistoryBank.open(path)
    loaded, tokenizer = _load(model)
    with _rows(source, name, split, text_column, sample_by) as rows, in_precision(loaded, precision.value):
        added = opened.add(
            rows,
            model=loaded,
            tokenizer=tokenizer,
            source=source_name or source,
            text_column=text_column,
            namespace=namespace,
            keep_below=keep_below,
            merge=merge,
            columns=keep or None,
            resume=resume,
            progress=True,
        )
    say(f"{added:,} entries added.")
    _say_size(opened)


@bank.command()
def forget(
    path: Path_,
    ids: Annotated[str | None, typer.Option(help="Ids of entries, comma-separated: 3,17,4.")] = None,
    source: Annotated[str | None, typer.Option(help="A source.")] = None,
    namespace: Annotated[str | None, typer.Option(help="A namespace.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="column=value of a document, repeatable.")] = None,
    compact: Annotated[bool, typer.Option(help="Free disk space at once.")] = False,
) -> None:
    """Forgets the entries that match all given conditions."""
    from ..bank.bank import HistoryBank

    opened = HistoryBank.open(path)
    gone = opened.forget(
        None if ids is None else _numbers(ids),
        source=source,
        namespace=namespace,
        where=_conditions(opened, where) if where else None,
    )
    say(f"{gone:,} entries forgotten.")
    if compact:
        say(f"{opened.compact() / 2**20:,.1f} MiB freed.")
    _say_size(opened)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"ids are comma-separated numbers, got {text!r}") from None


def _conditions(opened: Any, where: list[str]) -> Any:
    """Predicate on a document's columns; values are compared as text."""
    from ..bank.changes import check_columns, written

    pairs = [condition.partition("=") for condition in where]
    for condition, (name, equals, _) in zip(where, pairs, strict=True):
        if not (name and equals):
            raise ValueError(f"cannot read the condition {condition!r}: write column=value")
    check_columns(opened.snapshot(), [name for name, _, _ in pairs])
    return lambda columns: all(name in columns and value in written(columns[name]) for name, _, value in pairs)


@bank.command()
def search(
    model: Folder,
    path: Path_,
    text: Annotated[str, typer.Argument(help="The text so far.")],
    neighbours: Annotated[int, typer.Option(help="Entries to show.")] = 8,
    namespace: Annotated[
        list[str] | None, typer.Option(help="Namespace to search, repeatable; by default all.")
    ] = None,
    precision: InPrecision = Precision.auto,
) -> None:
    """Shows the entries nearest to the end of a text, with their continuations."""
    import torch

    from ..bank.bank import HistoryBank
    from ..bank.places import LineBreaks, place_of
    from ..common.precision import in_precision
    from ..data.text import encode_texts

    opened = HistoryBank.open(path)
    loaded, tokenizer = _load(model)
    breaks = LineBreaks(tokenizer)
    opened.check_model(loaded)
    state = opened.snapshot()
    ids = [tokenizer.eos_token_id, *encode_texts([text], tokenizer)[0][:-1]]
    with torch.no_grad(), in_precision(loaded, precision.value):
        query = torch.nn.functional.normalize(loaded.model(torch.tensor([ids])).last_hidden_state[0, -1:], dim=-1)
    found = state.search(query, neighbours, namespace or None)
    real = found.ids[0] >= 0
    for similarity, entry in zip(
        found.similarity[0, real].tolist(), state.describe(found.ids[0, real].tolist()), strict=True
    ):
        before, outcome, after = (
            printable(tokenizer.decode([token for token in tokens if token >= 0]).replace("\n", " "))
            for tokens in (entry.before, [entry.outcome], entry.after)
        )
        place = printable(place_of(entry.source, entry.row, entry.columns, breaks.count(entry.since)))
        followed = typer.style(outcome, bold=True, fg=typer.colors.GREEN)
        typer.echo(f"{entry.id:>10}  {similarity:.3f}  {place}  {before}{followed}{after}")


@bank.command()
def info(path: Path_) -> None:
    """Shows the content of a bank as JSON."""
    from ..bank.bank import HistoryBank

    say(json.dumps(HistoryBank.open(path).info(), indent=2, ensure_ascii=False))


@bank.command()
def verify(path: Path_) -> None:
    """Checks the checksum of every file."""
    from ..bank.bank import HistoryBank

    opened = HistoryBank.open(path)
    leftovers = opened.verify()
    say(f"{opened.folder.path} is whole: {len(opened):,} entries in {len(opened.manifest.files)} files.")
    if leftovers:
        say(f"Left over from earlier changes: {', '.join(leftovers)}. `lle bank compact {path}` removes it.")


@bank.command()
def compact(path: Path_) -> None:
    """Frees the disk space of forgotten entries."""
    from ..bank.bank import HistoryBank

    opened = HistoryBank.open(path)
    say(f"{opened.compact() / 2**20:,.1f} MiB freed.")
    _say_size(opened)


@bank.command("export")
def export_(path: Path_, file: Annotated[Path, typer.Argument(help="The Parquet file to write.")]) -> None:
    """Exports entries and texts to a Parquet file."""
    from ..bank.bank import HistoryBank
    from ..bank.parquet import to_parquet

    say(f"{to_parquet(HistoryBank.open(path), file):,} entries written to {file}.")


@bank.command("import")
def import_(file: Annotated[Path, typer.Argument(help="Parquet file of `lle bank export`.")], path: Path_) -> None:
    """Builds a bank from the entries in a Parquet file."""
    from ..bank.parquet import from_parquet

    _say_size(from_parquet(file, path))
