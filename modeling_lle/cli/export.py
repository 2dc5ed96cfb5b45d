"""Command `lle export`: a model as a folder that runs without torch. Heavy imports are deferred until it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..common.terminal import say
from .options import Folder, LooseBank, Namespaces


def export(
    model: Folder,
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; it must not exist.")],
    int8: Annotated[bool, typer.Option("--int8", help="Write graphs with matrices in int8 too.")] = False,
    bank_path: LooseBank = None,
    namespace: Namespaces = None,
    no_bank: Annotated[bool, typer.Option("--no-bank", help="Leave the bank out, with the texts in it.")] = False,
    programs: Annotated[bool, typer.Option("--programs", help="Write the programs of torch.export too.")] = False,
) -> None:
    """Writes a model with its bank as ONNX graphs and run.py, which runs them without torch."""
    if output.exists():  # before a model is loaded
        raise FileExistsError(f"{output} exists: name a folder that does not, or remove it first")
    if no_bank and (bank_path is not None or namespace):
        raise ValueError("--no-bank exports none: leave it out, or --bank and --namespace")
    from ..export import export as write
    from ..saved import attach_bank, load_in_float32

    loaded, tokenizer = load_in_float32(model)
    if not no_bank:
        attach_bank(loaded, tokenizer, model, bank_path, namespace or None)
    write(loaded, tokenizer, output, int8=int8, bank=loaded.history, programs=programs)
    _tell(output)


def _tell(folder: Path) -> None:
    """Says what was written, how exact it is, and how to run it."""
    from ..export.folder import BANK, EXAMPLES

    values = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    for files in values["graphs"].values():
        for file in files.values():
            say(f"{folder / file}: {_megabytes((folder / file).stat().st_size)}")
    for file in values.get("programs", {}).values():
        say(f"{folder / file}: {_megabytes((folder / file).stat().st_size)}")
    if values["entries"]:
        size = sum(file.stat().st_size for file in (folder / BANK).iterdir())
        say(f"{folder / BANK}: {_megabytes(size)}, {values['entries']:,} entries and the texts that they are of")
    say(f"The graphs in float32 differ from the model by {values['largest_difference']:.1e} at most.")
    say(
        f"Run it:\n  pip install onnxruntime numpy tokenizers\n  python {folder / 'run.py'} {EXAMPLES[values['task']]}"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
