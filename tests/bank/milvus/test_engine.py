"""Connections: TLS, credentials of the environment, and servers that refuse or disappear."""

import base64
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

import grpc

from modeling_lle import HistoryBank
from modeling_lle.bank.manifest import BankError
from tests.bank.conformance import FINGERPRINT, VOCABULARY, WIDTH, check_search, segment
from tests.factories.milvus import MilvusBank

TOKEN = "ann:open-sesame"


class Guard(grpc.ServerInterceptor):
    """Refuses requests without the right token."""

    def intercept_service(self, go_on: Callable[[Any], Any], call: Any) -> Any:
        given = dict(call.invocation_metadata).get("authorization", "")
        if base64.b64decode(given).decode() == TOKEN:
            return go_on(call)

        def refuse(request: Any, context: Any) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"auth check failure for {given}")

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """Address of a server over TLS that wants the token, with the certificate to trust."""
    if shutil.which("openssl") is None:
        pytest.skip("makes a certificate with openssl")
    from milvus_lite.adapter.grpc.servicer import MilvusServicer
    from milvus_lite.db import MilvusLite
    from pymilvus.grpc_gen import milvus_pb2_grpc

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    database = MilvusLite(str(tmp_path / "data"))
    server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[Guard()])
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(database), server)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    port = server.add_secure_port("localhost:0", credentials)
    server.start()
    yield f"milvuss://localhost:{port}/mine?ca={certificate}&timeout=5"
    server.stop(None)
    database.close()


@pytest.mark.server
def test_tls_and_credentials(guarded: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MILVUS_TOKEN", TOKEN)
    bank = HistoryBank.create(guarded, FINGERPRINT, WIDTH, VOCABULARY)
    bank.append([segment([[3, 4, 5, 6, 7]], seed=1)], "ann")
    check_search(bank)
    assert isinstance(bank, MilvusBank)
    monkeypatch.setenv("LLE_MILVUS_TOKEN", "ann:guess")  # goes first
    with pytest.raises(BankError, match="does not take the credentials: set LLE_MILVUS_TOKEN") as caught:
        HistoryBank.open(guarded)
    for text in (repr(bank), str(bank.info()), str(caught.value), caplog.text):
        assert "sesame" not in text
        assert "guess" not in text
    with pytest.raises(BankError, match="does not answer within 1 seconds"):
        HistoryBank.open(guarded.replace("milvuss", "milvus").partition("?")[0] + "?timeout=1")
