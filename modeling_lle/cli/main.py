"""Command line: `lle train | evaluate | calibrate | statistics | explain | card | demo`, `lle bank ...`, for
classifiers `lle classify | learn | forget`, and for translators `lle translate | memory`.

Heavy imports are deferred until a command runs, so that `lle --help` answers at once.
"""

import logging
import os
import re
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..common.terminal import Formatter, printable, printable_lines, say
from .bank import bank
from .calibrate import calibrate, statistics
from .card import card
from .classify import classify, forget, learn
from .evaluate import evaluate
from .options import Bank, Column, Folder, InPrecision, Name, Namespaces, Precision
from .train import train
from .translate import memory, translate

# Messages of torch errors that have no class on a CPU.
_NO_MEMORY = re.compile(
    "can't allocate memory|out of memory|bad_alloc|not enough memory|Cannot allocate memory|"
    "could not create a primitive$|can't start new thread"
)
_NOT_WRITTEN = re.compile("inline_container|PytorchStreamWriter|failed writing|iostream error")

app = typer.Typer(
    help="LLE, Learning from History: recurrent models that keep learning from what they read and are taught.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(bank, name="bank")


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


app.command()(train)
app.command()(evaluate)
app.command()(calibrate)
app.command()(statistics)


@app.command("explain")
def explain_(
    model: Folder,
    text: Annotated[str, typer.Argument(help="A text, or a file with it.")],
    bank_path: Bank = None,
    namespace: Namespaces = None,
    top: Annotated[int, typer.Option(help="Entries to show for each token.")] = 3,
    precision: InPrecision = Precision.auto,
    output: Annotated[Path | None, typer.Option(help="HTML page to write.")] = None,
) -> None:
    """Shows for each token of a text the entries that changed its probability, and by how much exactly."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..bank.bank import HistoryBank
    from ..common.precision import in_precision
    from ..data.rows import read_utf8
    from ..data.text import encode_texts
    from ..evaluation.explanations import format_explanations, write_page

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    if bank_path is not None:
        loaded.attach_history(HistoryBank.from_pretrained(bank_path), namespace or None)
    given = read_utf8(Path(text), repr(text)) if os.path.isfile(text) else text
    # Word tokenizers have no line breaks: there, each line is a row that ends with <eos>.
    rows = [given] if tokenizer("\n", add_special_tokens=False)["input_ids"] else given.splitlines()
    tokens = [token for row in encode_texts(rows, tokenizer) for token in row]
    ids = torch.tensor([tokenizer.eos_token_id, *tokens[:-1]])
    with in_precision(loaded, precision.value):
        explanations = loaded.explain(ids, top)
    typer.echo(format_explanations(explanations, tokenizer))
    if output is not None:
        write_page(output, explanations, tokenizer, f"What {model} recalls")
        say(f"The page is {output}.")


app.command()(classify)
app.command()(learn)
app.command()(forget)
app.command()(translate)
app.command()(memory)
app.command()(card)


@app.command()
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
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except (FileNotFoundError, FloatingPointError, ImportError, OSError, ValueError) as error:
        typer.secho(printable_lines(f"lle: {error}"), fg=typer.colors.RED, err=True)
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
