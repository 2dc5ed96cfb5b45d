"""Arguments and options that several commands of the command line share."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

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
Language = Annotated[str | None, typer.Option(help="Such as en; that of the model's recipe if not given.")]
SideColumn = Annotated[
    str | None, typer.Option(help="The one that is called as the language, or as the side, if not given.")
]
OutOfScopeLabel = Annotated[str | None, typer.Option(help="Label that means none of the others.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts of a batch; fewer where they are long.")]


class Precision(str, Enum):
    """What matrix products are computed in: the names that `precision.resolve_precision` takes."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


InPrecision = Annotated[
    Precision, typer.Option("--precision", help="Of matrix products; auto: what is faster on this machine.")
]


class Row(str, Enum):
    """What a row of plain text is."""

    line = "line"
    document = "document"


SampleBy = Annotated[Row, typer.Option(help="Whether a row of plain text is a line or a whole document.")]


def refuse_other_options(
    context: typer.Context, own_options: dict[str, tuple[str, ...]], task: str, what: str
) -> dict[str, Any]:
    """Raises a ValueError if an option was given that is for other tasks only; else returns those of this task.

    Args:
        context: Of the command that runs.
        own_options: For each task the options that only some tasks have.
        task: The task.
        what: What messages call the model.
    """
    own = own_options[task]
    for option in (option for others in own_options.values() for option in others if option not in own):
        if getattr(context.get_parameter_source(option), "name", "") == "COMMANDLINE":
            raise ValueError(f"--{option.replace('_', '-')} is not for {what}: leave it out")
    return {option: context.params[option] for option in own}
