"""`transformers serve` with the LLE classes: a saved folder answers over HTTP."""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modeling_lle import LLETokenizer
from tests.factories.language_models import make_language_model

NEEDED = ("fastapi", "uvicorn", "openai", "pydantic")  # of transformers[serving]
SERVE = "import modeling_lle; from transformers.cli.transformers import app; app()"  # as docs/deployment.md has it

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDED)), reason="transformers[serving] is missing"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "model"
    tokenizer = LLETokenizer.train(["the cat sat on the mat"], kind="word")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    make_language_model(vocab_size=len(tokenizer), **ids).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen([*command, "--device", "cpu"], env={**os.environ, "HF_HUB_OFFLINE": "1"}) as server:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def ready(address: str) -> str:
    for _ in range(240):
        with contextlib.suppress(urllib.error.URLError):
            ask(f"{address}/health")
            return address
        time.sleep(0.5)
    raise TimeoutError("the server does not answer")


def test_a_text_is_completed(ready: str, folder: Path) -> None:
    body = {"model": str(folder), "prompt": "the cat", "max_tokens": 4, "temperature": 0}
    found = ask(f"{ready}/v1/completions", body)
    assert found["usage"]["completion_tokens"] in range(1, 5)
    assert isinstance(found["choices"][0]["text"], str)


def test_a_message_is_answered(ready: str, folder: Path) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    body = {"model": str(folder), "messages": messages, "max_tokens": 4, "temperature": 0, "stream": False}
    found = ask(f"{ready}/v1/chat/completions", body)
    assert found["choices"][0]["message"]["role"] == "assistant"
