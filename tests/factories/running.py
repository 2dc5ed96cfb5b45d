"""Servers that run in processes of their own, with tiny models."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import WORD_PAIRS_TOKENIZER
from tests.factories.served import ANN, BOB
from tests.factories.texts import WORD_TOKENIZER
from tests.factories.translators import TRUSTED_MEMORY, make_word_translator

COMMAND = "from modeling_lle.cli.main import main; main()"


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
