"""What the routes share: the models, the keys, and how they wait for the threads of the models."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from .errors import ServingError
from .keys import METRICS, Keys
from .limits import Limits
from .metrics import Metrics
from .served import Models, Served
from .worker import Task, Worker, call

Result = TypeVar("Result")

TIMEOUT = ServingError(504, "timeout", "the answer took too long: shorten the request, or try later", retry=True)
GONE = ServingError(499, "client_closed_request", "the client has closed the connection")
NO_KEY = ServingError(401, "invalid_api_key", "send the key of a tenant: Authorization: Bearer KEY")


@dataclass
class Serving:
    """All that the routes need.

    Attributes:
        models, keys, limits, metrics: See their classes.
        draining: Whether the server is shutting down, so that requests are refused.
    """

    models: Models
    keys: Keys
    limits: Limits
    metrics: Metrics
    draining: bool = False


def serving_of(request: Request) -> Serving:
    """What the routes share."""
    found: Serving = request.app.state.serving
    return found


bearer = HTTPBearer(auto_error=False, description="The key of a tenant; needed if the server was started with keys.")


def tenant_of(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)] = None) -> str:
    """The tenant that a request speaks for; raises a ServingError for a missing or wrong key."""
    return owner(request, None if given is None else given.credentials)


def owner(request: Request, key: str | None) -> str:
    """The tenant that a key names; raises a ServingError for a missing or wrong one."""
    tenant = serving_of(request).keys.owner(key)
    if tenant is None:
        raise NO_KEY
    if tenant == METRICS:
        raise ServingError(403, "metrics_only", "this key reads /metrics only")
    request.state.tenant = tenant
    return tenant


def count(request: Request, serving: Serving, served: Served, read: int, made: int) -> None:
    """Counts the tokens of a prediction, for the metrics and for the log line of the request."""
    serving.metrics.tokens(served.name, read, made)
    request.state.model, request.state.read, request.state.generated = served.name, read, made


Tenant = Annotated[str, Depends(tenant_of)]
Shared = Annotated[Serving, Depends(serving_of)]


async def waited(request: Request, awaitable: Awaitable[Result]) -> Result:
    """What an awaitable gives, which is cancelled when the time is over or the client has gone.

    Raises:
        ServingError: One of these happened.
    """
    task = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(request.state.gone.wait())
    left = request.state.deadline - asyncio.get_running_loop().time()
    try:
        await asyncio.wait({task, gone}, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise GONE if gone.done() else TIMEOUT
    finally:
        for own in (task, gone):
            own.cancel()


async def done_by(request: Request, worker: Worker, *tasks: Task) -> list[Any]:
    """The results of tasks, one after another, from the thread of a model."""
    worker.submit(*tasks)
    futures = [asyncio.wrap_future(task.future) for task in tasks]
    try:
        return [result for future in futures for result in await waited(request, future)]
    finally:
        for future in futures:
            future.cancel()


async def called(request: Request, worker: Worker, function: Callable[[], Result]) -> Result:
    """The result of a function, called in the thread of a model."""
    (result,) = await done_by(request, worker, call(function))
    return result


async def threaded(request: Request, function: Callable[[], Result]) -> Result:
    """The result of a function that needs no model, called in a thread of the server."""
    return await waited(request, run_in_threadpool(function))
