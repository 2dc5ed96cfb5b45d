"""A real server and real clients, over the loopback: openai, lm-evaluation-harness, forms, slow and broken clients."""

import asyncio
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modeling_lle import HistoryBank
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import WORD_PAIRS_TOKENIZER
from tests.factories.texts import WORD_TOKENIZER
from tests.factories.translators import TRUSTED_MEMORY, make_word_translator

pytestmark = pytest.mark.server

ANN, BOB = "key-of-ann-0123456789", "key-of-bob-0123456789"
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
HEAD += f"Authorization: Bearer {ANN}\r\n"
COMMAND = "from modeling_lle.cli.main import main; main()"
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


class Running:
    """A server that runs in a process of its own."""

    def __init__(self, folder: Path, *options: str, keys: bool = True, models: tuple[str, ...] = ("text",)) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", folder / f"log-{self.port}"
        given = ["--keys", str(folder / "keys")] if keys else []
        places = [str(folder / name) for name in models]
        languages = ["--languages", "pair=en-de"] if "pair" in models else []
        command = [sys.executable, "-c", COMMAND, "serve", *places, "--histories", str(folder / "histories"), *given]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *languages, "--port", str(self.port), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
            )
        for _ in range(1200):
            with contextlib.suppress(OSError):
                self.ask("/ready")
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def ask(self, path: str, body: Any = None, key: str = ANN, method: str | None = None) -> Any:
        """The answer to a request; errors as urllib raises them."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)

    def stop(self, sign: int = signal.SIGTERM) -> tuple[int, float]:
        """Ends it; returns its exit status and the seconds that it took."""
        started = time.monotonic()
        self.process.send_signal(sign)
        return self.process.wait(60), time.monotonic() - started


def make_folders(folder: Path) -> Path:
    """Folders of the three models, and a file of keys."""
    for name, model, tokenizer in (
        ("text", make_language_model(vocab_size=len(WORD_TOKENIZER)), WORD_TOKENIZER),
        ("label", make_classifier(), WORD_TOKENIZER),
        ("pair", make_word_translator(history=TRUSTED_MEMORY), WORD_PAIRS_TOKENIZER),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    config = folder / "text" / "tokenizer_config.json"
    values = json.loads(config.read_text())
    values["chat_template"] = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    config.write_text(json.dumps(values))
    (folder / "keys").write_text(f"{ANN}: ann\n{BOB}: bob\n{ANN}-metrics: metrics\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    running = Running(folder, models=("text", "label", "pair"))
    yield running
    running.stop()


def test_the_openai_client_completes_streams_and_chats(server: Running) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ANN, max_retries=0)
    assert [model.id for model in client.models.list()] == ["text", "label", "pair"]
    options: dict[str, Any] = {"model": "text", "prompt": "a b c", "max_tokens": 8, "seed": 3}
    whole = client.completions.create(**options, logprobs=2)
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens
    parts = list(client.completions.create(**options, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    messages = [{"role": "user", "content": "a b c"}]
    chat = client.chat.completions.create(model="text", messages=messages, max_tokens=8, seed=3)
    assert chat.choices[0].message.content == whole.choices[0].text
    streamed = client.chat.completions.create(model="text", messages=messages, max_tokens=8, seed=3, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in streamed) == whole.choices[0].text
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError, match="unknown field"):
        client.completions.create(**options, extra_body={"nonsense": 1})
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.completions.create(model="other", prompt="a")


def test_the_async_openai_client_gets_what_each_request_gets_alone(server: Running) -> None:
    openai = pytest.importorskip("openai")

    async def ask() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=ANN, max_retries=0)

        async def one(seed: int) -> str:
            answer = await client.completions.create(model="text", prompt="a b c", max_tokens=8, seed=seed)
            return str(answer.choices[0].text)

        return list(await asyncio.gather(*(one(seed) for seed in range(16))))

    alone = [
        server.ask("/v1/completions", {"model": "text", "prompt": "a b c", "max_tokens": 8, "seed": seed})
        for seed in range(16)
    ]
    assert asyncio.run(ask()) == [answer["choices"][0]["text"] for answer in alone]


def test_lm_evaluation_harness_gets_what_it_gets_in_process(
    server: Running, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tenacity")
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", ANN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    remote = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="text",
        tokenizer_backend="remote",
        auth_token=ANN,
        batch_size=2,
        max_length=64,
    )
    local = HFLM(pretrained=str(folder / "text"), device="cpu", batch_size=1, max_length=64, dtype="float32")
    choices = [("a b c a b", " c"), ("a b c a b", " d"), ("c d", " d a"), ("h", " a b c")]

    def instances() -> list[Any]:
        return [Instance("loglikelihood", {}, given, place) for place, given in enumerate(choices)]

    found, expected = (model.loglikelihood(instances(), disable_tqdm=True) for model in (remote, local))
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_form_translates_and_a_suggestion_is_recalled(server: Running) -> None:
    data = b"q=a+cat&source=en&target=de&api_key=" + BOB.encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server.url}/translate", data, timeout=60) as answer:
        assert "translatedText" in json.load(answer)
    server.ask("/suggest", {"q": "a cat", "s": "eine Katze", "source": "en", "target": "de"})
    assert server.ask("/en/de/unit/a%20cat")[0]["quality"] == 100.0
    assert server.ask("/en/de/unit/a%20cat", key=BOB) == []


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
