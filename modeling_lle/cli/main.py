"""Command line: `lle train | evaluate | calibrate | statistics | generate | explain | serve | card |
export | doctor | demo`, `lle bank ...`, for classifiers `lle classify | suggest | learn | forget`, and for translators
`lle translate | memory`.

Heavy imports are deferred until a command runs, so that `lle --help` answers at once.
"""

import gc
import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..common.terminal import Formatter, printable, printable_lines, say
from .bank import bank
from .calibrate import calibrate, statistics
from .card import card
from .classify import classify, forget, learn
from .doctor import doctor
from .evaluate import evaluate
from .explain import explain
from .export import export
from .generate import generate
from .groups import Commands
from .options import Column, InPrecision, Name, Precision
from .serve import serve
from .suggest import suggest
from .train import train
from .translate import memory, translate
from .wording import for_command_line

# Messages of torch errors that have no class on a CPU.
_NO_MEMORY = re.compile(
    "can't allocate memory|out of memory|bad_alloc|not enough memory|Cannot allocate memory|"
    "could not create a primitive$|can't start new thread"
)
_NOT_WRITTEN = re.compile("inline_container|PytorchStreamWriter|failed writing|iostream error")

app = typer.Typer(
    help="LLE, Learning from History: recurrent models that keep learning from what they read and are taught.",
    epilog="A model of your own text: lle train --help. What a command does: lle COMMAND --help.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# Panels of `lle --help`.
MAKE, TRY, TEACH, FIT = "Make a model", "Use a model", "Teach without training", "Measure and adjust"


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"modeling_lle {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of `lle` itself, before the command."""


app.command(rich_help_panel=MAKE, epilog="Example: lle train --data notes/ --minutes 10")(train)
app.command(rich_help_panel=TRY, epilog='Example: lle generate runs/mine "Once upon a time" --bank bank')(generate)
app.command(rich_help_panel=TRY, epilog='Example: lle explain runs/mine "A text" --output page.html')(explain)
app.command(rich_help_panel=TRY, epilog='Example: lle classify runs/intents "Where is my card?"')(classify)
app.command(rich_help_panel=TRY, epilog='Example: lle translate runs/en-de "Delete the file" --bank memory')(translate)
app.command(rich_help_panel=TRY, epilog="Example: lle serve runs/mine runs/intents --keys keys.txt")(serve)
app.command(rich_help_panel=TEACH, epilog="Example: lle suggest runs/intents questions.txt --output next.csv")(suggest)
app.command(rich_help_panel=TEACH, epilog='Example: lle learn runs/intents "Where is my card?" --label card')(learn)
app.command(rich_help_panel=TEACH, epilog="Example: lle forget runs/intents --source mine")(forget)
app.command(
    rich_help_panel=TEACH,
    epilog="Example: lle memory runs/en-de django.po --source-language en --target-language de --source django",
)(memory)
app.add_typer(bank, name="bank", rich_help_panel=TEACH)
app.command(rich_help_panel=FIT, epilog="Example: lle evaluate runs/mine texts/ --bank bank")(evaluate)
app.command(rich_help_panel=FIT, epilog="Example: lle calibrate runs/mine held_out.txt --bank bank")(calibrate)
app.command(rich_help_panel=FIT, epilog="Example: lle statistics runs/mine texts/ --scope head")(statistics)
app.command(rich_help_panel=MAKE, epilog="Example: lle card runs/mine")(card)
app.command(rich_help_panel=MAKE, epilog="Example: lle export runs/mine exported --int8")(export)
app.command(rich_help_panel=MAKE, epilog="Example: lle doctor")(doctor)


@app.command(rich_help_panel=MAKE)
def demo(
    dataset: Annotated[
        str | None, typer.Option(help="Data set on the Hub or local files; by default Python's standard library.")
    ] = None,
    name: Name = None,
    text_column: Column = "text",
    precision: InPrecision = Precision.auto,
    minutes: Annotated[float, typer.Option(min=0.1, help="Minutes of training; slow machines read less text.")] = 6.0,
    output: Annotated[Path, typer.Option(help="Folder for model and picture.")] = Path("runs/demo"),
) -> None:
    """Trains a small model in a few minutes, and shows how it learns from the text it reads."""
    from .demo import demonstrate

    demonstrate(output, dataset, name, text_column, precision=precision.value, train_seconds=60 * minutes, say=say)


def _stop(number: int, frame: Any) -> None:
    """Raises SystemExit, so that temporary and partial files are removed."""
    raise SystemExit(128 + number)


def main() -> None:
    """Runs the command line; errors that users can fix are one line, not a traceback."""
    gc.set_threshold(200_000, 20, 20)  # passes over what is being imported take a third of the imports' time
    if not sys.stderr.isatty():  # bars of the libraries would fill a file; these are read when they are imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(levelname)s: %(message)s", for_command_line))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except (FileNotFoundError, FloatingPointError, ImportError, OSError, ValueError) as error:
        typer.secho(printable_lines(f"lle: {for_command_line(str(error))}"), fg=typer.colors.RED, err=True)
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        reason = _lack(error)
        if reason is None:
            raise
        typer.secho(f"lle: {reason}", fg=typer.colors.RED, err=True)
        raise SystemExit(2) from None


def _lack(error: MemoryError | RuntimeError) -> str | None:
    """Message about lacking memory or disk space, if that caused an error of Python or torch; else None."""
    text = printable(str(error).partition("\n")[0])
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return (
            f"out of memory ({text or 'an allocation failed'}): give smaller batches or fewer tokens, or use a "
            "machine with more memory; files being written are unchanged"
        )
    if _NOT_WRITTEN.search(text):
        return (
            f"a file of torch could not be written ({text}): is the disk full? Free space, then continue with --resume"
        )
    return None


if __name__ == "__main__":
    main()
