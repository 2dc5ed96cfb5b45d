"""Models and banks that a command names: found before anything heavy is loaded, or an error that says where to look.

Notable: offline, huggingface_hub tries for half a minute to reach the Hub. So only what may be the name of a
repository is looked up there, once and first; without an answer the copy in the cache is used, or it is an error.
"""

import logging
from pathlib import Path

import typer

from ..common.paths import is_address, may_be_on_hub, not_found

CONFIG, MANIFEST, HISTORY_FOLDER = "config.json", "manifest.json", "history"
SECONDS = 5.0  # until the Hub has answered
MAKE_BANK = "`lle bank build` makes one of texts, `lle learn` of labelled examples, `lle memory` of sentence pairs"

logger = logging.getLogger(__name__)


def find_model(context: typer.Context, given: str | None) -> str | None:
    """Folder of a model, or its name on the Hub; a callback of the argument.

    Raises:
        FileNotFoundError: It is neither on this machine nor on the Hub, or the folder holds no model.
        ConnectionError: It may be on the Hub, which cannot be reached.
    """
    return given if given is None or context.resilient_parsing else check_model(given)


def check_model(given: str) -> str:
    """Folder of a model, or its name on the Hub; errors as for `find_model`."""
    path = Path(given).expanduser()
    if path.is_file():
        raise NotADirectoryError(f"{given!r} is a file, and MODEL a folder: the order of the arguments is MODEL first")
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise FileNotFoundError(f"the folder {given!r} holds no model, as it has no {CONFIG}{_hint(path)}")
        return str(path)
    return _on_hub(given, CONFIG, "model")


def find_bank(context: typer.Context, given: Path | None) -> Path | None:
    """Folder of a bank, or of a model with one, its name on the Hub, or its address; a callback of the option.

    Raises:
        FileNotFoundError: It is neither on this machine nor on the Hub, or the folder holds no bank.
        BankError: It is no proper address.
        ConnectionError: It may be on the Hub, which cannot be reached.
    """
    return given if given is None or context.resilient_parsing else check_bank(given)


def check_bank(given: Path) -> Path:
    """Folder of a bank, or of a model with one, its name on the Hub, or its address; errors as for `find_bank`."""
    if is_address(given):
        from ..bank.address import Address

        Address.parse(given)
        return given
    path = given.expanduser()
    if path.is_dir():
        if not any((place / MANIFEST).is_file() for place in (path, path / HISTORY_FOLDER)):
            raise FileNotFoundError(f"there is no bank at {str(given)!r}: {MAKE_BANK}")
        return path
    if path.is_file():
        raise NotADirectoryError(f"{str(given)!r} is a file, and a bank a folder: {MAKE_BANK}")
    if not may_be_on_hub(given):
        raise FileNotFoundError(f"there is no bank at {str(given)!r}: {not_found(path)}; {MAKE_BANK}")
    return Path(_on_hub(str(given), f"{HISTORY_FOLDER}/{MANIFEST}", "bank"))


def _hint(path: Path) -> str:
    """What a folder without a model holds instead, or where a model is."""
    if (path / MANIFEST).is_file():
        return ": it is a bank, which goes with --bank"
    inner = sorted(entry.name for entry in path.iterdir() if (entry / CONFIG).is_file())
    if inner:
        return f": did you mean {str(path / inner[0])!r}?"
    return ": name a folder that `lle train` wrote"


def _on_hub(name: str, file: str, what: str) -> str:
    """The name itself if the Hub has it, else the folder of the copy in the cache."""
    if not may_be_on_hub(name):
        raise FileNotFoundError(not_found(name).replace("there is no", f"there is no {what}", 1))
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    beside = not_found(name).partition(": ")[2]
    try:
        HfApi().model_info(name, timeout=SECONDS)
        return name
    except RepositoryNotFoundError:
        raise FileNotFoundError(f"there is no {what} {name!r}, neither here ({beside}) nor on the Hub") from None
    except Exception as error:  # of whichever HTTP client huggingface_hub uses
        copy = try_to_load_from_cache(name, file)
        if isinstance(copy, str):
            logger.warning("the Hub does not answer (%s): taking the copy of %s in the cache", _reason(error), name)
            return copy.removesuffix(f"/{file}")
        raise ConnectionError(
            f"there is no {what} {name!r} here ({beside}), and the Hub does not answer ({_reason(error)}): check the "
            "name, or the connection"
        ) from None


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
