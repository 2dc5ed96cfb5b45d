"""Addresses of banks in Milvus, which stand wherever the folder of a bank may.

    milvus://HOST:PORT/COLLECTION                     a server or cluster; the port is 19530 by default
    milvuss://HOST:PORT/COLLECTION                    the same over TLS
    milvus+file:PATH.db?collection=COLLECTION         a file of milvus-lite, in this process; by default "bank"

Options after `?`, joined by `&`: `timeout=SECONDS` of a request (30), `database=NAME`, and with TLS `ca=FILE`, the
certificates to trust. Credentials come from the environment variables LLE_MILVUS_TOKEN or MILVUS_TOKEN only.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from .manifest import BankError

SCHEMES = ("milvus", "milvuss", "milvus+file")
SECRETS = {"token", "user", "username", "password"}  # options that no address may have
TOKENS = ("LLE_MILVUS_TOKEN", "MILVUS_TOKEN")
FORM = "write milvus://HOST:PORT/COLLECTION, milvuss://HOST:PORT/COLLECTION or milvus+file:PATH.db?collection=NAME"
PORT, TIMEOUT, LONGEST = 19530, 30.0, 200
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Address:
    """Address of a bank in Milvus.

    Attributes:
        uri: Address of the server for pymilvus, or the file of milvus-lite.
        collection: Name of the collection; further ones of the bank begin with it.
        database: The database of the server; "" for its default.
        timeout: Seconds until a request must have been answered, with all its repetitions.
        certificates: File of the certificates to trust; "" for those of the machine.
    """

    uri: str
    collection: str
    database: str = ""
    timeout: float = TIMEOUT
    certificates: str = ""

    @classmethod
    def parse(cls, place: str | Path) -> "Address":
        """Reads an address.

        Raises:
            BankError: It is none, or holds credentials.
        """
        text = str(place)
        if isinstance(place, Path) or "://" not in text:  # a path has one slash where an address has two
            text = re.sub(r"^(milvuss?):/+", r"\1://", text)
        parts = urlsplit(text)
        options, text = dict(parse_qsl(parts.query)), text.partition("?")[0]
        of_file = parts.scheme == "milvus+file"
        if (not of_file and "@" in text) or options.keys() & SECRETS:
            raise BankError(
                f"credentials do not belong in the address of a bank, which logs and histories keep: put "
                f"user:password or a token into the environment variable {TOKENS[0]}, and {FORM}"
            )
        if parts.scheme not in SCHEMES:
            raise BankError(f"{text!r} is no address of a bank: {FORM}")
        name = options.pop("collection", "bank") if of_file else parts.path.strip("/")
        if not _NAME.fullmatch(name) or len(name) > LONGEST:
            raise BankError(
                f"{name!r} in {text!r} is no name of a collection, which has up to {LONGEST} letters, digits and _ "
                f"and does not begin with a digit: {FORM}"
            )
        known = {"timeout"} | (set() if of_file else {"database"}) | ({"ca"} if parts.scheme == "milvuss" else set())
        for option in options:
            if option not in known:
                raise BankError(f"{text!r} has an unknown option {option!r}; it may have: {', '.join(sorted(known))}")
        uri = _file(parts.path, text) if of_file else _server(parts, text)
        timeout = _seconds(options.get("timeout", TIMEOUT), text)
        return cls(uri, name, options.get("database", ""), timeout, options.get("ca", ""))

    @property
    def is_file(self) -> bool:
        """Whether it is a file of milvus-lite, which this process opens."""
        return "://" not in self.uri

    def __str__(self) -> str:
        if self.is_file:
            return f"milvus+file:{self.uri}?collection={self.collection}"
        scheme, _, host = self.uri.partition("://")
        return f"{'milvuss' if scheme == 'https' else 'milvus'}://{host}/{self.collection}"


def _server(parts: SplitResult, text: str) -> str:
    try:
        host, port = parts.hostname, parts.port or PORT
    except ValueError:
        host = None
    if not host:
        raise BankError(f"{text!r} names no host and port: {FORM}")
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if parts.scheme == 'milvuss' else 'http'}://{shown}:{port}"


def _file(path: str, text: str) -> str:
    file = re.sub("^/{2,}", "/", unquote(path))
    if not file.endswith(".db"):
        raise BankError(f"{text!r} names no file that ends in .db: {FORM}")
    return str(Path(file).expanduser())


def _seconds(given: str | float, text: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise BankError(f"the timeout in {text!r} should be a number of seconds above 0")
    return seconds


def token() -> str:
    """The credentials of the environment, "" if there are none."""
    return next((found for name in TOKENS if (found := os.environ.get(name))), "")
