"""Engine: the requests to Milvus that a bank makes, each with a time limit, and errors that name the remedy.

Notable: every read is strongly consistent, every row is written under a primary key of ours by upsert. So a request
can be repeated, and after a write every client reads what was written. pymilvus repeats a request that the server did
not take, with growing pauses up to 3 seconds, until the time limit.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..address import TOKENS, Address, token
from ..manifest import BankError

MOST_ROWS = 16_384  # that Milvus returns to one query
ROWS_AT_ONCE = 2_048  # of a request that names rows
BYTES_AT_ONCE = 8 << 20  # of a request that writes; Milvus takes 64 MiB
# Requests have time limits, and milvus-lite ends the connection of a client that asks more often whether it is there.
_PINGS = {"grpc.keepalive_time_ms": 600_000, "grpc.keepalive_permit_without_calls": 0}
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "connect", "Retry timeout", "timed out")
_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "auth check failure", "unauthenticated")


class Engine:
    """One client of a server of Milvus, or of a file of milvus-lite; any number of threads may use it.

    Args:
        address: Where it is.

    Raises:
        ImportError: pymilvus is not installed.
        BankError: It cannot be reached.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._client = self._connect()

    def _connect(self) -> Any:
        try:
            from pymilvus import MilvusClient
        except ModuleNotFoundError as error:
            raise ImportError('banks in Milvus need the extra milvus: `pip install "modeling_lle[milvus]"`') from error
        # Errors reach the caller as a BankError; pymilvus would print each of them beside it, with a traceback.
        logging.getLogger("pymilvus.decorators").setLevel(logging.CRITICAL)
        address = self.address
        options: dict[str, Any] = {"grpc_options": _PINGS}
        if address.is_file:
            os.makedirs(os.path.dirname(os.path.abspath(address.uri)), exist_ok=True)
        else:
            options |= {"token": token(), "db_name": address.database}
            if address.certificates:
                options["server_pem_path"] = address.certificates
        try:
            return MilvusClient(address.uri, timeout=address.timeout, **options)
        except Exception as error:
            raise self._error("connecting", error) from None

    def _error(self, what: str, error: Exception) -> BankError:
        """What to raise for an error of pymilvus; its message never holds the credentials."""
        said = " ".join(str(getattr(error, "message", error)).split())
        secret = token()
        said = (said.replace(secret, "...") if secret else said)[:300]
        signs = " ".join(_signs(error))
        if any(sign in signs for sign in _REFUSED):
            return BankError(
                f"{self.address} does not take the credentials: set {TOKENS[0]} to user:password or a token ({said})"
            )
        if self.address.is_file:
            return BankError(
                f"{self.address} cannot be used ({what}: {said}): one process at a time can open a file of "
                "milvus-lite; for several, start `milvus-lite server` and give its address, milvus://HOST:PORT/NAME"
            )
        if any(sign in signs for sign in _AWAY):
            return BankError(
                f"{self.address} does not answer within {self.address.timeout:g} seconds: see that the server runs "
                f"and the address is right, or give it longer with ?timeout=SECONDS ({what}: {said})"
            )
        return BankError(f"{self.address} refuses {what}: {said}")

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Calls a method of pymilvus' client, with the time limit; raises a BankError if it fails."""
        try:
            return getattr(self._client, name)(*args, timeout=self.address.timeout, **options)
        except Exception as error:  # of pymilvus and of gRPC, in several families
            raise self._error(name, error) from None

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    @property
    def is_lite(self) -> bool:
        """Whether it is milvus-lite, which has float32 vectors only."""
        return "lite" in str(self.call("get_server_version")).lower()

    # Collections

    def has(self, collection: str) -> bool:
        """Whether there is a collection."""
        return bool(self.call("has_collection", collection))

    def create(self, collection: str, fields: Sequence[dict[str, Any]], index: dict[str, Any]) -> None:
        """Makes a collection.

        Args:
            collection: Its name.
            fields: Arguments of each field, as in pymilvus' `add_field`.
            index: The index of its vectors, as in pymilvus' `add_index`.
        """
        from pymilvus import MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        for field in fields:
            schema.add_field(**field)
        params = MilvusClient.prepare_index_params()
        params.add_index(**index)
        self.call("create_collection", collection, schema=schema, consistency_level="Strong")
        self.call("create_index", collection, params, sync=False)  # there is nothing to index yet
        self.call("load_collection", collection)

    def load(self, collection: str) -> None:
        """Makes a collection ready to be searched, which a server that was started again may not be."""
        if "Loaded" not in str(self.call("get_load_state", collection)):
            self.call("load_collection", collection)

    def drop(self, collection: str) -> None:
        """Removes a collection, if there is one."""
        if self.has(collection):
            self.call("drop_collection", collection)

    def fields(self, collection: str) -> dict[str, dict[str, Any]]:
        """Names, types and parameters of the fields of a collection."""
        described = self.call("describe_collection", collection)
        return {field["name"]: field for field in described["fields"]}

    # Rows

    def write(self, collection: str, rows: Sequence[dict[str, Any]], size: int, partial: bool = False) -> None:
        """Writes rows in one request for each 8 MiB; a row replaces one with the same primary key.

        Args:
            collection: Name of the collection.
            rows: Names and values of fields.
            size: About how many bytes a row has.
            partial: Whether fields that are not given keep their values.
        """
        for part in parts(rows, max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // size))):
            options = {"partial_update": True} if partial else {}
            self.call("upsert", collection, part, **options)

    def get(self, collection: str, ids: Sequence[Any], fields: Sequence[str]) -> list[dict[str, Any]]:
        """The rows with these primary keys that exist, in no particular order."""
        rows: list[dict[str, Any]] = []
        for part in parts(ids, ROWS_AT_ONCE):
            rows += self.call("get", collection, part, output_fields=list(fields), consistency_level="Strong")
        return rows

    def query(
        self, collection: str, condition: str, fields: Sequence[str], most: int = MOST_ROWS
    ) -> list[dict[str, Any]]:
        """Up to `most` rows for which a condition holds, in no particular order."""
        options = {"filter": condition, "output_fields": list(fields), "limit": most, "consistency_level": "Strong"}
        return list(self.call("query", collection, **options))

    def delete(self, collection: str, ids: Sequence[Any]) -> None:
        """Deletes the rows with these primary keys; one that does not exist is fine."""
        for part in parts(ids, ROWS_AT_ONCE):
            self.call("delete", collection, ids=part)

    def search(
        self, collection: str, vectors: list[Any], most: int, condition: str, fields: Sequence[str], probes: int
    ) -> Any:
        """For each vector the `most` rows with the largest inner products for which a condition holds, as hits."""
        return self.call(
            "search",
            collection,
            data=vectors,
            anns_field="key",
            limit=most,
            filter=condition,
            output_fields=list(fields),
            search_params={"metric_type": "IP", "params": {"nprobe": probes}},
            consistency_level="Strong",
        )

    def settle(self, collection: str) -> None:
        """Asks for what was written to be indexed, and for deleted rows to be removed, in the background."""
        self.call("flush", collection)
        self.call("compact", collection)


def _signs(error: BaseException | None) -> Iterator[str]:
    """What an error of pymilvus and those that led to it say of themselves."""
    seen: list[BaseException] = []  # pymilvus raises errors from themselves
    while error is not None and not any(error is other for other in seen):
        seen.append(error)
        code = getattr(error, "code", "")
        yield f"{error} {code() if callable(code) else code}"
        error = error.__cause__ or error.__context__


def parts(values: Sequence[Any] | Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The values in lists of up to `size`."""
    every = list(values)
    for begin in range(0, len(every), size):
        yield every[begin : begin + size]
