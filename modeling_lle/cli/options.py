"""Arguments and options shared by several commands."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.remembered import remembered
from ..tasks import Task
from .places import find_bank, find_model

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="Files, a folder, a glob, or the name of a data set on the Hub.")
]
Folder = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder of a model, or its name on the Hub.", callback=find_model),
]
Name = Annotated[str | None, typer.Option(help="Configuration of a data set on the Hub.")]
Bank = Annotated[
    Path | None,
    typer.Option(
        "--bank",
        metavar="FOLDER",
        help="Bank to recall from, a folder or an address; by default that in MODEL.",
        callback=find_bank,
    ),
]
LooseBank = Annotated[
    Path | None,
    typer.Option(
        "--bank",
        metavar="FOLDER",
        help="Bank to recall from, a folder or an address; by default none.",
        callback=find_bank,
    ),
]
Namespaces = Annotated[
    list[str] | None, typer.Option("--namespace", help="Namespace of the bank, repeatable; by default all.")
]
Namespace = Annotated[str, typer.Option(help="Namespace of what is added, such as a user or a project.")]
SourceName = Annotated[
    str | None, typer.Option("--source", metavar="NAME", help="Name of what is added, by which it can be forgotten.")
]
Column = Annotated[str, typer.Option(help="Column of the text.")]
TextColumn = Annotated[
    str | None, typer.Option("--text-column", help="Column of the text; by default that of the training, or text.")
]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="Column of the label; by default that of the training, or label.")
]
Language = Annotated[str | None, typer.Option(help="Such as en; by default that of the training.")]
SideColumn = Annotated[
    str | None, typer.Option(help="Column of this side; by default the one named like the language or the side.")
]
OutOfScopeLabel = Annotated[str | None, typer.Option(help="Label of out-of-scope rows.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Maximum texts per batch; fewer if they are long.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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


SampleBy = Annotated[
    Row | None,
    typer.Option(
        "--sample-by", help="Whether a row of plain text is a line or a whole document; by default as in training."
    ),
]


def as_trained(model: str, name: str, given: Any, usual: Any = None) -> Any:
    """An option as given; else as the recipe of a model has it in its section `data`; else as usual."""
    if given is not None:
        return given
    found = remembered(model).get(name, usual)
    # Recipes have "text" and "label" by default, where any usual name of a column is looked for.
    return usual if found == {"text_column": "text", "label_column": "label"}.get(name) else found


def column_of(model: str, name: str, given: str | None, columns: Sequence[str]) -> str:
    """The text column or label column of a table: as given, as in the training if the table has it, or as usual.

    Args:
        model: Folder of the model.
        name: "text_column" or "label_column".
        given: The option.
        columns: Columns of the table.
    """
    usual = name.removesuffix("_column")
    found = as_trained(model, name, given, usual)
    return found if given is not None or found in columns else usual


def task_of_command(model: str) -> Task:
    """Task of a saved model; raises a ValueError if no command works on models of it."""
    from ..saved import task_in

    task = task_in(model)
    if not task.has_commands:
        raise ValueError(f"{model} holds {task.noun}, which no command works on: use it in Python")
    return task


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
