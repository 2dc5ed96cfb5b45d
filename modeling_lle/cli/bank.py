"""The command line of banks: `lle bank build | add | forget | search | info | verify | compact | copy |
export | import`.

Heavy imports wait until a command runs.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.terminal import counted, printable, progress, say
from ..tasks import LANGUAGE, TRANSLATION
from .groups import Commands
from .options import (
    AsJson,
    Data,
    Folder,
    InPrecision,
    Name,
    Namespace,
    Precision,
    Row,
    SampleBy,
    SourceName,
    TextColumn,
    as_trained,
)

bank = typer.Typer(
    help="Banks of past sequences for a model to recall from: build, add, search, forget.",
    cls=Commands,
    no_args_is_help=True,
)

Path_ = Annotated[Path, typer.Argument(metavar="BANK", help="The folder of the bank, or its address in Milvus.")]
Split = Annotated[str | None, typer.Option(help="Split to read; by default train, else the whole text.")]
KeepBelow = Annotated[float | None, typer.Option(help="Keep only tokens below this probability.")]
Keep = Annotated[list[str] | None, typer.Option(help="Column to keep with each text, repeatable; by default all.")]
Merge = Annotated[bool, typer.Option(help="Merge duplicates within a row into one entry.")]
KeyWidth = Annotated[
    int | None, typer.Option(min=2, help="Project keys to this width, for wide models; by default none.")
]
Streaming = Annotated[bool, typer.Option(help="Read a data set that does not fit on disk.")]
Parts = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder through which several processes add one source together, all started with this command; by "
        "default none, and under torchrun or accelerate launch one in BANK.",
    ),
]
LONGEST = 8192  # tokens of a text that are read before a search; earlier ones have left the state
SHOWN = 20  # sources of a bank that `lle bank info` lists
_EXAMPLE = "Example: lle bank "


@contextlib.contextmanager
def _rows(
    source: str, name: str | None, split: str | None, text_column: str, sample_by: str, streaming: bool = False
) -> Iterator[Any]:
    """Yields the texts, without leaving a copy in the cache of `datasets` that forgetting would miss."""
    from ..common.temporary import TemporaryFolder
    from ..data import load_texts

    options: dict[str, Any] = {"text_column": text_column, "sample_by": sample_by, "streaming": streaming}
    with TemporaryFolder("lle-texts-") as cache:
        yield load_texts(source, name=name, split=split or ("train",), cache_dir=cache, **options)


def _load(model: str) -> tuple[Any, Any]:
    from ..saved import load_language_model, task_in

    task = task_in(model)
    if task != LANGUAGE:
        what, command = ("sentence pairs", "memory") if task == TRANSLATION else ("labelled examples", "learn")
        raise ValueError(f"{model} holds {task.noun}, whose bank holds {what}: use lle {command}")
    return load_language_model(model)


def _load_encoder(model: str) -> tuple[Any, Any]:
    """As `_load`; the model is on the GPU of this process, if there is one."""
    import torch

    loaded, tokenizer = _load(model)
    if torch.cuda.is_available():
        loaded.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return loaded, tokenizer


def _rows_as_trained(model: str, text_column: str | None, sample_by: Row | None) -> tuple[str, str]:
    """Text column and unit of a row."""
    unit = Row(as_trained(model, "sample_by", sample_by, Row.line))
    return as_trained(model, "text_column", text_column, "text"), unit.value


def _together(path: Path, parts: Path | None) -> dict[str, Any]:
    """Options of `add` for this process, which may be one of several ranks; the first one shows its progress."""
    from ..bank.files import PARTS
    from ..common.paths import is_address

    if parts is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if is_address(path):
            raise ValueError("processes that add to a bank in Milvus need a folder in common: give --parts FOLDER")
        parts = path / PARTS
    return {"parts": parts, "progress": os.environ.get("RANK", "0") == "0"}


def _say_size(opened: Any) -> None:
    info = opened.info()
    say(
        f"{info['path']}: {counted(info['entries'], 'entry', 'entries')}, {info['bytes'] / 2**20:,.1f} MiB, "
        f"namespaces: {', '.join(info['namespaces']) or 'none'}."
    )


@bank.command(epilog=_EXAMPLE + "build runs/mine texts/ bank --source notes")
def build(
    model: Folder,
    source: Data,
    path: Path_,
    name: Name = None,
    split: Split = None,
    text_column: TextColumn = None,
    sample_by: SampleBy = None,
    source_name: SourceName = None,
    namespace: Namespace = "default",
    keep_below: KeepBelow = None,
    merge: Merge = False,
    key_width: KeyWidth = None,
    precision: InPrecision = Precision.auto,
    keep: Keep = None,
    streaming: Streaming = False,
    parts: Parts = None,
) -> None:
    """Builds a bank from a data set; repeat an interrupted command to resume it.

    Several processes build one bank together: torchrun --nproc-per-node 2 --no-python lle bank build ...
    """
    from ..bank.bank import HistoryBank
    from ..bank.copying import bank_exists
    from ..common.precision import in_precision

    loaded, tokenizer = _load_encoder(model)
    column, unit = _rows_as_trained(model, text_column, sample_by)
    options: dict[str, Any] = {
        "source": source_name or source,
        "text_column": column,
        "namespace": namespace,
        "keep_below": keep_below,
        "merge": merge,
        "columns": keep or None,
        **_together(path, parts),
    }
    with (
        _rows(source, name, split, column, unit, streaming) as rows,
        in_precision(loaded, precision.value),
    ):
        if options["parts"] is None and bank_exists(path):
            opened = HistoryBank.open(path)
            opened.check_key_width(key_width)
            opened.add(rows, model=loaded, tokenizer=tokenizer, resume=True, **options)
        else:
            opened = HistoryBank.build(loaded, tokenizer, rows, path, key_width=key_width, **options)
    _say_size(opened)


@bank.command(epilog=_EXAMPLE + "add runs/mine more.txt bank --source more")
def add(
    model: Folder,
    source: Data,
    path: Path_,
    name: Name = None,
    split: Split = None,
    text_column: TextColumn = None,
    sample_by: SampleBy = None,
    source_name: SourceName = None,
    namespace: Namespace = "default",
    keep_below: KeepBelow = None,
    merge: Merge = False,
    precision: InPrecision = Precision.auto,
    keep: Keep = None,
    resume: Annotated[bool, typer.Option(help="Resume adding this source.")] = False,
    streaming: Streaming = False,
    parts: Parts = None,
) -> None:
    """Adds a data set to a bank."""
    from ..bank.bank import HistoryBank
    from ..common.precision import in_precision

    opened = HistoryBank.open(path)
    loaded, tokenizer = _load_encoder(model)
    column, unit = _rows_as_trained(model, text_column, sample_by)
    with _rows(source, name, split, column, unit, streaming) as rows, in_precision(loaded, precision.value):
        added = opened.add(
            rows,
            model=loaded,
            tokenizer=tokenizer,
            source=source_name or source,
            text_column=column,
            namespace=namespace,
            keep_below=keep_below,
            merge=merge,
            columns=keep or None,
            resume=resume,
            **_together(path, parts),
        )
    say(f"{counted(added, 'entry', 'entries')} added.")
    _say_size(opened)


@bank.command(epilog=_EXAMPLE + "forget bank --source more")
def forget(
    path: Path_,
    ids: Annotated[str | None, typer.Option(help="Ids of entries, comma-separated: 3,17,4.")] = None,
    source: Annotated[str | None, typer.Option(help="Name under which it was added.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Only entries of this namespace.")] = None,
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
    say(f"{counted(gone, 'entry', 'entries')} forgotten.")
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


@bank.command(epilog=_EXAMPLE + 'search runs/mine bank "The text so far"')
def search(
    model: Folder,
    path: Path_,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text so far, or a file with it.")],
    neighbours: Annotated[int, typer.Option(help="Entries to show.")] = 8,
    namespace: Annotated[
        list[str] | None, typer.Option(help="Namespace to search, repeatable; by default all.")
    ] = None,
    precision: InPrecision = Precision.auto,
) -> None:
    """Shows the entries nearest to the end of a text, with their continuations."""
    from .texts import encode_whole, read_text

    given = read_text(text)
    import torch

    from ..bank.bank import HistoryBank
    from ..bank.places import LineBreaks, place_of
    from ..common.precision import in_precision

    opened = HistoryBank.open(path)
    loaded, tokenizer = _load(model)
    breaks = LineBreaks(tokenizer)
    opened.check_model(loaded)
    state = opened.snapshot()
    ids = [tokenizer.eos_token_id, *encode_whole(given, tokenizer)[:-1]][-LONGEST:]
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


@bank.command(epilog=_EXAMPLE + "info bank")
def info(path: Path_, as_json: AsJson = False) -> None:
    """Shows what a bank holds: entries, sources and namespaces."""
    from ..bank.bank import HistoryBank

    found = HistoryBank.open(path).info()
    if as_json:
        say(json.dumps(found, indent=2, ensure_ascii=False))
        return
    size = f"{found['bytes'] / 2**20:,.1f} MiB"
    say(f"{found['path']}: {counted(found['entries'], 'entry', 'entries')}, {size}.")
    if found["forgotten"]:
        say(f"{counted(found['forgotten'], 'entry', 'entries')} forgotten; `lle bank compact` frees their space.")
    for namespace, entries in found["namespaces"].items():
        say(f"namespace {namespace}: {counted(entries, 'entry', 'entries')}")
    sources = found["sources"]
    for added in sources[:SHOWN]:
        say(f"source {added['source']}, namespace {added['namespace']}: {counted(added['rows'], 'row')} read")
    if len(sources) > SHOWN:
        say(f"and {counted(len(sources) - SHOWN, 'more source')}: --json lists all of them")
    say(f"Its model has states of width {found['state_width']:,} and a vocabulary of {found['vocab_size']:,} tokens.")
    if found["is_projected"]:
        say(f"Its keys are states that are projected to the width {found['width']:,}.")


@bank.command(epilog=_EXAMPLE + "verify bank")
def verify(path: Path_) -> None:
    """Checks the checksum of every file."""
    from ..bank.bank import HistoryBank

    opened = HistoryBank.open(path)
    leftovers = opened.verify()
    files = f" in {counted(len(opened.manifest.files), 'file')}" if isinstance(opened, HistoryBank) else ""
    say(f"{opened.name} is whole: {counted(len(opened), 'entry', 'entries')}{files}.")
    if leftovers:
        say(f"Left over from earlier changes: {', '.join(leftovers)}. `lle bank compact {path}` removes it.")


@bank.command(epilog=_EXAMPLE + "compact bank")
def compact(path: Path_) -> None:
    """Frees the disk space of forgotten entries."""
    from ..bank.bank import HistoryBank

    opened = HistoryBank.open(path)
    say(f"{opened.compact() / 2**20:,.1f} MiB freed.")
    _say_size(opened)


@bank.command("copy", epilog=_EXAMPLE + "copy bank milvus://localhost:19530/mine")
def copy_(
    path: Path_,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder or address of the copy, made if missing.")],
) -> None:
    """Copies a bank between folders and Milvus, and compares the copy; repeat an interrupted command to resume it."""
    from ..bank.bank import HistoryBank
    from ..bank.copying import copy_to

    opened = HistoryBank.open(path)
    with progress(len(opened), "Copying", "entries") as bar:
        copied = copy_to(opened, target, bar.update)
    say("The copy holds the same, by its digest.")
    _say_size(copied)


@bank.command("export", epilog=_EXAMPLE + "export bank bank.parquet")
def export_(path: Path_, file: Annotated[Path, typer.Argument(help="The Parquet file to write.")]) -> None:
    """Exports entries and texts to a Parquet file."""
    from ..bank.bank import HistoryBank
    from ..bank.parquet import to_parquet

    written = to_parquet(HistoryBank.open(path), file)
    say(f"{counted(written, 'entry', 'entries')} written to {file}.")


@bank.command("import", epilog=_EXAMPLE + "import bank.parquet bank")
def import_(file: Annotated[Path, typer.Argument(help="Parquet file of `lle bank export`.")], path: Path_) -> None:
    """Builds a bank from the entries in a Parquet file."""
    from ..bank.parquet import from_parquet

    _say_size(from_parquet(file, path))
