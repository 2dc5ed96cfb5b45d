"""Gate: what happens to every request before and after its route.

Notable: a body is read here, up to its limit and no further, before any route sees the request. One line of JSON is
logged for each request, without texts and keys.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ServingError, invalid, shaped
from .state import Serving
from .worker import STOPPED

access = logging.getLogger("modeling_lle.serving.access")
_OPEN_WHILE_DRAINING = ("/health", "/metrics")
SESSIONS = "/v1/sessions/"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # as JSON writes one
PAGE = "/page/"


class Gate:
    """Middleware around all routes.

    Args:
        app: The routes.
        serving: What they share.
        hosts: The names by which the server may be reached, against pages that point theirs at it; None: any.
    """

    def __init__(self, app: ASGIApp, serving: Serving, hosts: frozenset[str] | None = None) -> None:
        self.app, self.serving, self.hosts = app, serving, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Request(scope, send, self.serving)
        if request.path.startswith(PAGE):  # what it asks for comes here once more, as a request of its own
            await self._answer(request, scope, receive)
            return
        self.serving.metrics.running.inc()
        try:
            await self._answer(request, scope, receive)
        finally:
            self.serving.metrics.running.dec()
            request.log()

    async def _answer(self, request: "_Request", scope: Scope, receive: Receive) -> None:
        try:
            self._check(request, scope)
            body = await self._body(request, scope, receive)
        except ServingError as error:
            await request.refuse(error)
            return
        watch = asyncio.ensure_future(_watch(receive, request.gone))
        try:
            await self.app(scope, _replayed(body, request.gone), request.send)
        except Exception:
            if not request.gone.is_set():
                logging.getLogger(__name__).exception("request %s failed", request.id)
            if not request.status:
                await request.refuse(ServingError(500, "internal_error", "the server failed: see its log"))
        finally:
            watch.cancel()

    def _check(self, request: "_Request", scope: Scope) -> None:
        if self.serving.draining and request.path not in _OPEN_WHILE_DRAINING:
            raise STOPPED
        if self.hosts is not None:
            host = request.header(b"host").rpartition(":")
            name = host[0] if host[0] and host[2].isdigit() else "".join(host)
            if name.lower() not in self.hosts:
                raise ServingError(403, "wrong_host", "this server is for this machine only")

    async def _body(self, request: "_Request", scope: Scope, receive: Receive) -> bytes:
        """The body; raises a ServingError if it is too large or too slow."""
        limits = self.serving.limits
        most = limits.session_bytes if request.path.startswith(SESSIONS) else limits.body_bytes
        large = ServingError(413, "body_too_large", f"the body has more than {most:,} bytes: send less at a time")
        length = request.header(b"content-length")
        if length and (not length.isdigit() or int(length) > most):
            raise large
        parts, size = [], 0
        try:
            with anyio.fail_after(limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        request.gone.set()
                        return b""
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise large
                    parts.append(part)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise ServingError(408, "timeout", "the body has not arrived in time") from None
        body = b"".join(parts)
        _check_characters(body)
        return body


def _check_characters(body: bytes) -> None:
    """Raises a ServingError if JSON has half of a surrogate pair, which is no character and cannot be encoded."""
    if _SURROGATE.search(body):
        with contextlib.suppress(ValueError, RecursionError):  # not JSON, which the route refuses
            text = json.dumps(json.loads(body), ensure_ascii=False)
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise invalid("the body holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")


async def _watch(receive: Receive, gone: asyncio.Event) -> None:
    """Sets an event when the client goes."""
    with contextlib.suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass
    gone.set()


def _replayed(body: bytes, gone: asyncio.Event) -> Receive:
    """Gives a body that has been read, and after it that the client goes."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


class _Request:
    """What is known of a request, for its log line and the routes."""

    def __init__(self, scope: Scope, send: Send, serving: Serving) -> None:
        self.id, self.path, self.started = uuid.uuid4().hex, str(scope["path"]), time.perf_counter()
        self.scope, self.status, self.serving = scope, 0, serving
        self.gone = asyncio.Event()
        self._send = send
        state: dict[str, Any] = scope.setdefault("state", {})
        deadline = asyncio.get_running_loop().time() + serving.limits.seconds
        state |= {"id": self.id, "gone": self.gone, "deadline": deadline}

    def header(self, name: bytes) -> str:
        """The value of a header, "" without it."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), "")

    async def send(self, message: Message) -> None:
        """Sends a part of the answer, with the id of the request."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, error: ServingError) -> None:
        """Answers with an error, and closes the connection, of whose body something may be left."""
        self.scope["state"]["failed"] = error.code
        status, body, headers = shaped(error, self.path)
        data = json.dumps(body).encode()
        named = {"content-type": "application/json", "content-length": str(len(data)), "connection": "close"}
        pairs = [(name.lower().encode(), value.encode()) for name, value in {**named, **headers}.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": data})

    def log(self) -> None:
        """Counts the request, and writes its line."""
        state, seconds = self.scope["state"], time.perf_counter() - self.started
        route = self.scope.get("route")
        name = getattr(route, "path", "other")
        status = 499 if self.gone.is_set() and not self.status else self.status
        self.serving.metrics.request(name, status, seconds)
        line = {"id": self.id, "tenant": state.get("tenant"), "model": state.get("model"), "route": name}
        line["model"] = line["model"] or self.scope.get("path_params", {}).get("model")
        line |= {"method": self.scope["method"], "status": status, "ms": round(1000 * seconds, 1)}
        line |= {key: state[key] for key in ("read", "generated", "failed") if key in state}
        access.info(json.dumps(line))
