"""Arguments and options that several commands of the command line share."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[str, typer.Argument(help="A data set on the Hub, or local text, csv, json or parquet files.")]
Folder = Annotated[str, typer.Argument(help="A folder, or a name on the Hub, with a model and its tokenizer.")]
Name = Annotated[str | None, typer.Option(help="Configuration of a data set on the Hub.")]
Bank = Annotated[Path | None, typer.Option("--bank", help="A bank to recall from.")]
Namespaces = Annotated[
    list[str] | None, typer.Option("--namespace", help="A namespace of the bank, repeatable; all if not given.")
]
Column = Annotated[str, typer.Option(help="Column of the text.")]
LabelColumn = Annotated[str, typer.Option(help="Column of the label.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts of a batch; fewer where they are long.")]


class Row(str, Enum):
    """What a row of plain text is."""

    line = "line"
    document = "document"


SampleBy = Annotated[Row, typer.Option(help="Whether a row of plain text is a line or a whole document.")]
