"""Requests of many clients to `lle serve` and, for the language model, to `transformers serve`, in turn in one run.

Every client sends a request, waits for its answer, and sends the next one, over a connection of its own. A language
model goes on with some words of a text, greedily; a classifier classifies them; a translator translates them. Servers
and clients share this machine, and the servers that are not asked wait. A row is a head, a server and a number of
clients, and has

    requests_per_second         median over the repetitions
    p50_ms, p99_ms              latency, over all requests
    ratio                       requests per second over those of `transformers serve`, median of the pairwise ratios

and the metrics are `HEAD_requests_per_second_CLIENTS`, `HEAD_p99_ms_CLIENTS` and `requests_ratio_CLIENTS`.
"""

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from modeling_lle.data import load_texts
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.saved import languages_of

from .timing import RESULTS, Row, ratio

LANGUAGE, CLASSIFIER, TRANSLATOR = "language model", "classifier", "translator"
LLE, TRANSFORMERS = "lle serve", "transformers serve"
PROGRAMS = {
    LLE: "from modeling_lle.cli.main import main; main()",
    TRANSFORMERS: "import modeling_lle; from transformers.cli.transformers import app; app()",
}
CLIENTS = (1, 16, 64)
WORDS = 32  # of a request
STARTED = 300  # seconds in which a server must answer
SEED = 0  # of the places of the words in the texts


@dataclass(frozen=True)
class Target:
    """What is asked.

    Attributes:
        head, server: Names of the row.
        url: Address of the route.
        bodies: Bodies of different requests.
    """

    head: str
    server: str
    url: str
    bodies: Sequence[dict[str, Any]]


@contextlib.contextmanager
def started(server: str, arguments: Sequence[str]) -> Iterator[str]:
    """Runs a server at a free port, and yields its address once it is ready.

    Raises:
        RuntimeError: It ends, or does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROGRAMS[server], "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, **quiet) as process:
        try:
            _wait(process, address, server)
            yield address
        finally:
            process.terminate()


def _wait(process: "subprocess.Popen[bytes]", address: str, server: str) -> None:
    until = time.monotonic() + STARTED
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"{server} ended with status {process.returncode}: start it by hand to see why")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/health", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{server} did not answer within {STARTED} seconds")


async def _ask(target: Target, clients: int, requests: int) -> tuple[float, list[float]]:
    places, latencies = iter(range(requests)), []

    async def client(session: httpx.AsyncClient) -> None:
        for place in places:
            begin = time.perf_counter()
            answer = await session.post(target.url, json=target.bodies[place % len(target.bodies)])
            answer.raise_for_status()
            latencies.append(time.perf_counter() - begin)

    async with contextlib.AsyncExitStack() as stack:
        made = [httpx.AsyncClient(timeout=STARTED, trust_env=False) for _ in range(clients)]  # which takes a while
        sessions = [await stack.enter_async_context(session) for session in made]
        begin = time.perf_counter()
        await asyncio.gather(*(client(session) for session in sessions))
        return time.perf_counter() - begin, latencies


def ask(target: Target, clients: int, requests: int) -> tuple[float, list[float]]:
    """Sends requests from some clients at once; returns the seconds of all and of each.

    Raises:
        httpx.HTTPStatusError: A request was refused.
    """
    return asyncio.run(_ask(target, clients, requests))


def measure(targets: Sequence[Target], clients: Sequence[int], requests: int, repetitions: int) -> list[Row]:
    """A row for each target and number of clients; the targets take turns."""
    rows: list[Row] = []
    for number in clients:
        size = max(requests, 2 * number)
        seconds: dict[int, list[float]] = {place: [] for place in range(len(targets))}
        latencies: dict[int, list[float]] = {place: [] for place in range(len(targets))}
        for repetition in range(1 + repetitions):
            for place, target in enumerate(targets):
                whole, each = ask(target, number, size)
                if repetition:  # the first one warms up
                    seconds[place].append(whole)
                    latencies[place] += each
        for place, target in enumerate(targets):
            peers = [p for p, other in enumerate(targets) if (other.head, other.server) == (target.head, TRANSFORMERS)]
            rows.append(
                {
                    "head": target.head,
                    "server": target.server,
                    "clients": number,
                    "requests_per_second": size / statistics.median(seconds[place]),
                    "p50_ms": 1000 * float(np.percentile(latencies[place], 50)),
                    "p99_ms": 1000 * float(np.percentile(latencies[place], 99)),
                    "ratio": ratio(seconds[peers[0]], seconds[place]) if peers else None,
                }
            )
            typer.echo(str(rows[-1]))
    return rows


def metrics_of(rows: Sequence[Row]) -> dict[str, float]:
    """Metrics of `lle serve`."""
    found: dict[str, float] = {}
    for row in (row for row in rows if row["server"] == LLE):
        head = row["head"].replace(" ", "_")
        found |= {f"{head}_{name}_{row['clients']}": row[name] for name in ("requests_per_second", "p99_ms")}
        if row["ratio"] is not None:
            found[f"requests_ratio_{row['clients']}"] = row["ratio"]
    return found


def passages(source: str, number: int) -> list[str]:
    """Words of texts, each passage from another place."""
    words = " ".join(load_texts(source, split=("test", "validation", "train"))["text"][:200]).split()
    if len(words) <= WORDS:
        raise ValueError(f"{source} has {len(words)} words: give a text of more than {WORDS}")
    starts = np.random.default_rng(SEED).integers(len(words) - WORDS, size=number)
    return [" ".join(words[start : start + WORDS]) for start in starts]


def serving(
    language_model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a language model.")],
    source: Annotated[str, typer.Argument(metavar="TEXTS", help="Texts that the requests are made of.")],
    classifier: Annotated[Path | None, typer.Option(help="Folder of a classifier.")] = None,
    translator: Annotated[Path | None, typer.Option(help="Folder of a translator.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that the language model generates.")] = 32,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a measurement, two of each client or more.")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 5,
    clients: Annotated[list[int] | None, typer.Option(help="Clients at once, repeatable.")] = None,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "serving.json",
) -> None:
    """Load of many clients on `lle serve`, beside `transformers serve`."""
    texts = passages(source, 256)
    names = {LANGUAGE: language_model, CLASSIFIER: classifier, TRANSLATOR: translator}
    served = [f"{head.split()[0]}={path}" for head, path in names.items() if path is not None]
    completion = {"max_tokens": tokens, "temperature": 0}
    with tempfile.TemporaryDirectory() as histories, contextlib.ExitStack() as stack:
        own = stack.enter_context(started(LLE, [*served, "--no-page", "--histories", histories]))
        peer = stack.enter_context(started(TRANSFORMERS, [str(language_model), "--device", "cpu"]))
        completions = "/v1/completions"
        targets = [
            Target(
                LANGUAGE, LLE, own + completions, [{"model": "language", "prompt": t, **completion} for t in texts]
            ),
            Target(
                LANGUAGE,
                TRANSFORMERS,
                peer + completions,
                [{"model": str(language_model), "prompt": text, **completion} for text in texts],
            ),
        ]
        if classifier is not None:
            targets.append(Target(CLASSIFIER, LLE, f"{own}/predict", [{"inputs": text} for text in texts]))
        if translator is not None:
            languages = dict(zip(("source", "target"), languages_of(translator, None, None), strict=True))
            targets.append(Target(TRANSLATOR, LLE, f"{own}/translate", [{"q": text, **languages} for text in texts]))
        rows = measure(targets, clients or CLIENTS, requests, repetitions)
    write_results(output, this_command(), metrics_of(rows), rows)
