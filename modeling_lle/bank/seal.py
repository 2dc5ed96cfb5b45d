"""Seal of a file: a keyed hash (HMAC) that proves that this user made the file on this machine.

Notable: the secret lies in the user's cache of Hugging Face. A file without a valid seal is of unknown origin, and
must not be given to a library that trusts what it parses.
"""

import contextlib
import functools
import hashlib
import hmac
import logging
import os
import secrets
from pathlib import Path

from huggingface_hub import constants

logger = logging.getLogger(__name__)


def seal(path: Path) -> str:
    """Seal of a file, 64 hexadecimal digits."""
    code = hmac.new(_secret(Path(constants.HF_HOME) / "modeling_lle" / "secret"), digestmod=hashlib.sha256)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            code.update(block)
    return code.hexdigest()


@functools.cache
def _secret(path: Path) -> bytes:
    """The user's secret, from a file that is made if necessary; if that fails, a secret of this process."""
    made = secrets.token_bytes(32)
    partial = path.with_name(f".partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(made)
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        found = path.read_bytes()
    except OSError as error:
        logger.warning("search indexes will be made again by every process: %s", error)
        return made
    return found if len(found) == len(made) else made
