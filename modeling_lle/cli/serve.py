"""Command that serves models: `lle serve`. Heavy imports are deferred until the command runs."""

import importlib.util
import ipaddress
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.terminal import say
from .options import InPrecision, Precision
from .places import check_bank, check_model

if TYPE_CHECKING:
    from ..serving.limits import Limits
    from ..serving.served import Place

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="Folders of models, or names on the Hub; NAME=FOLDER names one."),
]
Banks = Annotated[
    list[str] | None,
    typer.Option("--bank", metavar="NAME=FOLDER", help="Bank that all tenants of a model recall from, repeatable."),
]
Shared = Annotated[list[str] | None, typer.Option(help="Namespace of these banks, repeatable; by default all.")]
Histories = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the histories of the tenants lie.")]
Languages = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=en-de", help="Languages of a translator; by default those of the training."),
]
KeyFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File of lines KEY: TENANT; without it, there is one tenant.")
]
Host = Annotated[str, typer.Option(help="Address to listen at; without --keys of this machine only.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")]
Batch = Annotated[int, typer.Option(min=1, help="Texts that a model reads together.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads of a model's products; by default the cores but one, which answers requests."),
]
Queue = Annotated[int, typer.Option(min=1, help="Requests that may wait for a model.")]
Inputs = Annotated[int, typer.Option(min=1, help="Prompts, texts or rows of a request.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of a prompt or text.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens that are generated after a prompt.")]
Body = Annotated[float, typer.Option(min=0.001, help="Megabytes of a request.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds until a request must be answered.")]
Sessions = Annotated[int, typer.Option(min=0, help="Sessions of a tenant with a model.")]
SessionTimeout = Annotated[float, typer.Option(min=1, help="Seconds until an unused session expires.")]
Page = Annotated[bool, typer.Option("--page/--no-page", help="Whether there is a page at / to teach the models.")]
Grace = Annotated[float, typer.Option(min=0.0, help="Seconds for running requests when the server ends.")]


def serve(
    models: Models,
    bank: Banks = None,
    shared: Shared = None,
    histories: Histories = Path("histories"),
    languages: Languages = None,
    keys: KeyFile = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    precision: InPrecision = Precision.float32,
    threads: Threads = None,
    batch: Batch = 32,
    queue: Queue = 512,
    max_inputs: Inputs = 1_000,
    max_prompt_tokens: PromptTokens = 16_384,
    max_new_tokens: NewTokens = 4_096,
    max_body: Body = 4.0,
    timeout: Timeout = 120.0,
    sessions: Sessions = 16,
    session_timeout: SessionTimeout = 3_600.0,
    grace: Grace = 10.0,
    page: Page = True,
) -> None:
    """Serves models over HTTP, each tenant with a history of its own (docs/serving.md)."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'{", ".join(missing)} is missing: pip install "modeling_lle[serve]"')
    if keys is None and not _is_loopback(host):
        raise ValueError(
            f"without --keys everybody is one tenant, so {host} must be of this machine: give --keys FILE"
        )
    if shared and not bank:
        raise ValueError("--shared names namespaces of a bank: give one with --bank NAME=FOLDER")
    import torch

    from ..common.machine import cores
    from ..serving.limits import Limits

    limits = Limits(
        prompt_tokens=max_prompt_tokens,
        new_tokens=max_new_tokens,
        inputs=max_inputs,
        queue=queue,
        batch=batch,
        seconds=timeout,
        body_bytes=int(max_body * 2**20),
        sessions=sessions,
        session_seconds=session_timeout,
        grace_seconds=grace,
    )
    places = _places(models, bank, shared, languages, histories)
    torch.set_num_threads(threads or max(1, cores() - 1))  # before the threads of the models begin
    _run(places, limits, keys, precision.value, host, port, page)


def _places(
    models: list[str],
    bank: list[str] | None,
    shared: list[str] | None,
    languages: list[str] | None,
    histories: Path,
) -> "list[Place]":
    """Where each model and what its tenants recall from lie."""
    from ..serving.served import Place

    named = _named_models(models)
    banks, own_languages = _by_name(bank, "--bank", named), _by_name(languages, "--languages", named)
    return [
        Place(
            name,
            folder,
            histories,
            str(check_bank(Path(banks[name]))) if name in banks else None,
            tuple(shared) if shared and name in banks else None,
            _pair(own_languages[name]) if name in own_languages else None,
        )
        for name, folder in named.items()
    ]


def _run(
    places: "list[Place]", limits: "Limits", keys: Path | None, precision: str, host: str, port: int, page: bool
) -> None:
    """Loads the models, and serves them until a signal ends it."""
    from ..serving.app import LOOPBACK, create_app
    from ..serving.keys import Keys
    from ..serving.served import Models
    from ..serving.server import serve as run

    known = None if keys is None else Keys.read(keys)
    loaded = Models.load(places, limits, precision)
    _log_to_stdout()
    say(f"Serving {', '.join(loaded.of)} at http://{host}:{port}")
    hosts = LOOPBACK | {host.lower()} if known is None else None
    run(create_app(loaded, known, limits, hosts, page), host.strip("[]"), port)
    sys.stdout.flush()
    os._exit(0)  # a thread that teaches may still run, and what it has not acknowledged does not count


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _named_models(given: list[str]) -> dict[str, str]:
    """The folders of the models by their names; raises a ValueError if two have the same name."""
    found: dict[str, str] = {}
    for value in given:
        name, equals, folder = value.partition("=")
        if not equals or Path(value).exists():
            name, folder = Path(value).name or Path(value).resolve().name, value
        if name in found:
            raise ValueError(f"two models are called {name!r}: write NAME=FOLDER for one of them")
        found[name] = check_model(folder)
    return found


def _by_name(given: list[str] | None, option: str, models: dict[str, str]) -> dict[str, str]:
    """Values of an option by the names of models."""
    found: dict[str, str] = {}
    for value in given or []:
        name, equals, rest = value.partition("=")
        if not equals and len(models) == 1:
            name, rest = next(iter(models)), value
        if name not in models:
            raise ValueError(f"{option} {value}: write NAME=..., with one of the models {', '.join(models)}")
        found[name] = rest
    return found


def _pair(value: str) -> tuple[str, str]:
    source, _, target = value.partition("-")
    if not source or not target:
        raise ValueError(f"--languages {value!r}: write both of them, such as en-de")
    return source, target


def _log_to_stdout() -> None:
    """Lets the line of each request appear as it is."""
    access = logging.getLogger("modeling_lle.serving.access")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    access.propagate = False
