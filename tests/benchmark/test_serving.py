"""The load of many clients: latencies are counted, refusals are errors, and real servers are asked in turn."""

import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from modeling_lle.evaluation import read_results
from scripts.benchmark import serving
from scripts.benchmark.__main__ import app
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER

NEEDED = ("fastapi", "uvicorn", "openai", "prometheus_client")


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers what was asked; refuses a prompt "no"."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(given["prompt"])  # type: ignore[attr-defined]
        self.send_response(400 if given["prompt"] == "no" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def answering() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.seen = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def target(server: Any, name: str, *prompts: str) -> serving.Target:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1/completions"
    return serving.Target(serving.LANGUAGE, name, url, [{"prompt": prompt} for prompt in prompts])


def test_all_requests_are_sent_and_timed(answering: Any) -> None:
    seconds, latencies = serving.ask(target(answering, serving.LLE, "a", "b", "c"), clients=4, requests=10)
    assert sorted(answering.seen) == sorted("abcabcabca")
    assert len(latencies) == 10
    assert 0 < max(latencies) <= seconds


def test_a_refusal_is_an_error(answering: Any) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        serving.ask(target(answering, serving.LLE, "a", "no"), clients=1, requests=3)


def test_rows_have_the_ratio_to_the_peer_of_the_same_head(answering: Any) -> None:
    targets = [target(answering, serving.LLE, "a"), target(answering, serving.TRANSFORMERS, "a")]
    other = serving.Target(serving.CLASSIFIER, serving.LLE, targets[0].url, targets[0].bodies)
    rows = serving.measure([*targets, other], (1, 3), requests=4, repetitions=2)
    assert [(row["head"], row["server"], row["clients"]) for row in rows[:3]] == [
        (serving.LANGUAGE, serving.LLE, 1),
        (serving.LANGUAGE, serving.TRANSFORMERS, 1),
        (serving.CLASSIFIER, serving.LLE, 1),
    ]
    assert len(answering.seen) == 3 * 3 * (4 + 6)  # targets, with a warm-up, twice the clients or more
    assert [row["ratio"] is None for row in rows[:3]] == [False, False, True]
    assert rows[1]["ratio"] == 1
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows)
    metrics = serving.metrics_of(rows)
    assert metrics["requests_ratio_3"] == rows[3]["ratio"]
    assert metrics["classifier_p99_ms_1"] == rows[2]["p99_ms"]


def test_a_server_that_ends_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(serving.PROGRAMS, serving.LLE, "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="lle serve ended with status 3"), serving.started(serving.LLE, []):
        pass


@pytest.mark.server
@pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDED)), reason="the extra serve is missing")
def test_both_servers_answer(tmp_path: Path) -> None:
    model = make_language_model()
    model.save_pretrained(tmp_path / "model")
    WORD_TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").write_text(yaml.safe_dump({"task": "language-modeling"}))
    (tmp_path / "texts.txt").write_text("a b c d e f g h " * 20)
    arguments = ["serving", str(tmp_path / "model"), str(tmp_path / "texts.txt"), "--tokens", "3", "--requests", "2"]
    options = ["--repetitions", "1", "--clients", "1", "--clients", "2", "--output", str(tmp_path / "serving.json")]
    result = CliRunner().invoke(app, [*arguments, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = read_results(tmp_path / "serving.json")
    assert found["metrics"]["requests_ratio_2"] > 0
    assert {row["server"] for row in found["rows"]} == {serving.LLE, serving.TRANSFORMERS}
