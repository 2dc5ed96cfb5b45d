"""Arguments and options shared by several commands."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

Source = Annotated[str, typer.Argument(help="Data set on the Hub, or local text, csv, json or parquet files.")]
Folder = Annotated[str, typer.Argument(help="Folder, or name on the Hub, of a model with tokenizer.")]
Name = Annotated[str | None, typer.Option(help="Configuration of a data set on the Hub.")]
Bank = Annotated[Path | None, typer.Option("--bank", help="Bank to recall from.")]
Namespaces = Annotated[
    list[str] | None, typer.Option("--namespace", help="Namespace of the bank, repeatable; by default all.")
]
Column = Annotated[str, typer.Option(help="Column of the text.")]
LabelColumn = Annotated[str, typer.Option(help="Column of the label.")]
Language = Annotated[str | None, typer.Option(help="Such as en; by default that of the model's recipe.")]
SideColumn = Annotated[
    str | None, typer.Option(help="Column of this side; by default the one named like the language or the side.")
]
OutOfScopeLabel = Annotated[str | None, typer.Option(help="Label of out-of-scope rows.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Maximum texts per batch; fewer if they are long.")]


class Precision(str, Enum):
    """Precision of matrix products, by the names of `resolve_precision`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


InPrecision = Annotated[
    Precision, typer.Option("--precision", help="Precision of matrix products; auto: the faster one on this machine.")
]


class Row(str, Enum):
    """Unit of plain text that makes a row."""

    line = "line"
    document = "document"


SampleBy = Annotated[Row, typer.Option(help="Whether a row of plain text is a line or a whole document.")]


def refuse_other_options(
    context: typer.Context, own_options: dict[str, tuple[str, ...]], task: str, what: str
) -> dict[str, Any]:
    """Returns the options of a task; raises a ValueError if one of other tasks was given.

    Args:
        context: Context of the running command.
        own_options: Options of each task that not all tasks have.
        task: Name of the task.
        what: Name of the model in messages.
    """
    own = own_options[task]
    for option in (option for others in own_options.values() for option in others if option not in own):
        if getattr(context.get_parameter_source(option), "name", "") == "COMMANDLINE":
            raise ValueError(f"--{option.replace('_', '-')} is not for {what}: leave it out")
    return {option: context.params[option] for option in own}
