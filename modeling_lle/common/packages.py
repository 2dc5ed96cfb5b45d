"""The message where a model's code runs without this package, of which saved models carry a part."""

from typing import NoReturn


def raise_missing(error: ModuleNotFoundError) -> NoReturn:
    """Raises an ImportError that names the remedy if a module of this package is missing, else `error` itself."""
    if error.name is not None and error.name.partition(".")[0] == "modeling_lle":
        raise ImportError("this needs the package: `pip install modeling_lle`") from error
    raise error
