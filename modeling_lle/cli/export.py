"""Command `lle export`: a model as a folder that runs without torch. Heavy imports are deferred until it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..common.terminal import say
from .options import Folder, LooseBank, Namespaces
from .places import HISTORY_FOLDER, MANIFEST


def export(
    model: Folder,
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; it must not exist.")],
    int8: Annotated[bool, typer.Option("--int8", help="Write graphs with matrices in int8 too.")] = False,
    bank_path: LooseBank = None,
    namespace: Namespaces = None,
    programs: Annotated[bool, typer.Option("--programs", help="Write the programs of torch.export too.")] = False,
) -> None:
    """Writes a model as ONNX graphs, with run.py, which runs them without torch."""
    if output.exists():  # before a model is loaded
        raise FileExistsError(f"{output} exists: name a folder that does not, or remove it first")
    from ..bank.bank import HistoryBank
    from ..export import export as write
    from ..history.attachment import Attachment
    from ..saved import load_in_float32

    loaded, tokenizer = load_in_float32(model)
    history = None
    if bank_path is not None:
        bank = HistoryBank.from_pretrained(bank_path)
        history = Attachment(bank, None if namespace is None else bank.check_namespaces(namespace))
    elif namespace:
        raise ValueError("--namespace is of a bank: name it with --bank")
    write(loaded, tokenizer, output, int8=int8, bank=history, programs=programs)
    _tell(output)
    if history is None and (Path(model) / HISTORY_FOLDER / MANIFEST).is_file():
        say(f"The bank in {model} was left out: --bank {model} exports it too.")


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
        say(f"{folder / BANK}: {_megabytes(size)}, {values['entries']:,} entries")
    say(f"The graphs in float32 differ from the model by {values['largest_difference']:.1e} at most.")
    say(
        f"Run it:\n  pip install onnxruntime numpy tokenizers\n  python {folder / 'run.py'} {EXAMPLES[values['task']]}"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
