"""A real server, over the loopback: slow and broken clients, its log, kills, its end, and its description."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from modeling_lle import HistoryBank
from tests.factories.running import Running, make_folders
from tests.factories.served import ANN, BOB

pytestmark = pytest.mark.server

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
HEAD += f"Authorization: Bearer {ANN}\r\n"
# Imports once, and forks a server for each line of arguments: 200 starts take minutes instead of an hour.
FORKING = """
import json, os, signal, sys
from modeling_lle.cli.main import main
import modeling_lle.serving.app, modeling_lle.serving.served, modeling_lle.serving.server
import transformers.pipelines, transformers.generation
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    arguments, log = json.loads(line)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.argv = ["lle", *arguments]
        main()
    print(child, flush=True)
"""


def receive(connection: socket.socket) -> bytes:
    """What arrives until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_of_100_mb_is_cut_off(server: Running, chunked: bool) -> None:
    head = HEAD
    head += "Transfer-Encoding: chunked\r\n\r\n" if chunked else f"Content-Length: {100 << 20}\r\n\r\n"
    part = b" " * (1 << 20)
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
                sent += 1
        answer = receive(connection)
    assert sent < 100
    assert not answer or b" 413 " in answer.partition(b"\r\n")[0]
    assert server.ask("/health") == {"status": "ok"}


def test_clients_that_go_or_do_not_read_disturb_nobody(server: Running) -> None:
    body = json.dumps({"model": "text", "prompt": "a", "max_tokens": 4000, "stream": True}).encode()
    request = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    slow = []
    for number in range(20):
        connection = socket.create_connection(("127.0.0.1", server.port), 60)
        connection.sendall(request)
        if number % 2:
            connection.close()
        else:
            slow.append(connection)
    answer = server.ask("/v1/completions", {"model": "text", "prompt": "a b c", "max_tokens": 4, "seed": 1}, BOB)
    assert answer["usage"]["completion_tokens"] > 0
    for connection in slow:
        connection.close()


def test_the_log_has_a_line_of_json_for_each_request_without_texts_and_keys(folder: Path) -> None:
    running = Running(folder)
    running.ask("/v1/completions", {"model": "text", "prompt": "a b c d e f g", "max_tokens": 2})
    with contextlib.suppress(urllib.error.HTTPError):
        running.ask("/v1/models", key="a-wrong-key-0123456789")
    running.stop()
    text = running.log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    line = next(line for line in lines if line["route"] == "/v1/completions")
    assert {name: line[name] for name in ("tenant", "model", "status", "read", "generated")} == {
        **{"tenant": "ann", "model": "text", "status": 200, "read": 7},
        "generated": line["generated"],
    }
    assert next(line for line in lines if line["route"] == "/v1/models")["failed"] == "invalid_api_key"
    assert not any(secret in text for secret in (ANN, "a-wrong-key", "a b c d"))


class Forked(Running):
    """A server that a process with everything imported has forked."""

    def __init__(self, folder: Path, forking: "subprocess.Popen[str]") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", folder / "log"
        options = ["--histories", str(folder / "histories"), "--keys", str(folder / "keys"), "--port", str(self.port)]
        assert forking.stdin is not None
        assert forking.stdout is not None
        forking.stdin.write(json.dumps([["serve", str(folder / "text"), *options], str(self.log)]) + "\n")
        forking.stdin.flush()
        self.child = int(forking.stdout.readline())
        for _ in range(600):
            with contextlib.suppress(OSError):
                self.ask("/ready")
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())


def teach_until_it_dies(running: Running, name: str, acknowledged: list[str], enough: threading.Event) -> None:
    """Teaches and forgets until there is no answer; notes what was acknowledged."""
    for number in range(10_000):
        source = f"{name}-{number}"
        try:
            running.ask("/v1/history/text", {"texts": ["a b c d"], "source": source})
            acknowledged.append(source)
            if number % 4 == 3:
                gone = f"{name}-{number - 1}"
                acknowledged.remove(gone)  # whatever becomes of it now
                running.ask("/v1/history/text", {"source": gone}, method="DELETE")
        except (OSError, ValueError, http.client.HTTPException):
            return
        if number >= 2:
            enough.set()


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_what_is_acknowledged_survives_kills(tmp_path: Path, kills: int) -> None:
    folder, acknowledged, generator = make_folders(tmp_path), list[str](), random.Random(0)
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forking:
        for kill in range(kills):
            running, enough = Forked(folder, forking), threading.Event()
            threads = [
                threading.Thread(target=teach_until_it_dies, args=(running, f"{kill}-{worker}", acknowledged, enough))
                for worker in range(3)
            ]
            for thread in threads:
                thread.start()
            assert enough.wait(60), running.log.read_text()
            time.sleep(generator.random() / 5)
            os.kill(running.child, signal.SIGKILL)
            for thread in threads:
                thread.join()
            bank = HistoryBank.open(folder / "histories" / "text" / "ann")
            bank.verify()
            assert set(acknowledged) <= {document.source for document in bank.documents()}
            assert len(acknowledged) > 2 * kill
        running = Forked(folder, forking)
        size = running.ask("/v1/history/text?limit=0")
        assert {source["source"] for source in size["sources"]} >= set(acknowledged)
        os.kill(running.child, signal.SIGTERM)
        assert forking.stdin is not None
        forking.stdin.close()


def test_a_server_ends_at_once_when_nothing_runs(folder: Path) -> None:
    status, seconds = Running(folder).stop()
    assert status == 0
    assert seconds < 3


@pytest.mark.parametrize(("grace", "finishes"), [("60", True), ("0.2", False)])
def test_running_requests_finish_or_are_refused_when_the_server_ends(folder: Path, grace: str, finishes: bool) -> None:
    # Without an end of text, so that the request surely takes longer than the short grace time.
    config = json.loads((folder / "text" / "generation_config.json").read_text())
    (folder / "text" / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    tokens = 1500 if finishes else 1_000_000
    running = Running(folder, "--grace", grace, "--max-new-tokens", "1000000")
    found: list[Any] = []
    body = {"model": "text", "prompt": "a", "max_tokens": tokens}

    def ask() -> None:
        try:
            found.append(running.ask("/v1/completions", body))
        except urllib.error.HTTPError as error:
            found.append((error.code, json.load(error)["error"]["code"]))

    thread = threading.Thread(target=ask)
    thread.start()
    while not found and 'lle_rows_running{model="text"} 1' not in metrics_of(running):
        time.sleep(0.02)
    running.process.send_signal(signal.SIGTERM)
    if finishes:
        assert refusal_of(running) in (503, None)
    thread.join(60)
    assert running.process.wait(60) == 0
    if finishes:
        assert found[0]["usage"]["completion_tokens"] == tokens
    else:
        assert found == [(503, "shutting_down")]


def refusal_of(running: Running) -> int | None:
    """The status with which a server begins to refuse requests; None if it refuses connections."""
    while True:
        try:
            running.ask("/v1/models")
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, http.client.HTTPException):
            return None


def metrics_of(running: Running) -> str:
    request = urllib.request.Request(f"{running.url}/metrics", headers={"Authorization": f"Bearer {ANN}-metrics"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return str(answer.read().decode())


def test_every_answer_fits_the_description(server: Running) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is missing")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = ["--header", f"Authorization: Bearer {ANN}", "--checks", checks, "--max-examples", "10", "--seed", "1"]
    phases = ["--phases", "examples,coverage,fuzzing", "--no-color"]
    found = subprocess.run(
        [str(program), "run", f"{server.url}/openapi.json", *options, *phases],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        cwd=server.log.parent,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-10_000:]
