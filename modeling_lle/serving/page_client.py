"""PageClient: how the page asks the server, by requests of the API that never leave the process.

Notable: the page has no other way to predict, teach or forget, so every limit, key, queue and counter of the API holds
for it too.
"""

from typing import Any

import httpx
from starlette.types import ASGIApp


class PageError(Exception):
    """What the server answers instead of what the page has asked for, in words for people."""


class PageClient:
    """Asks an application.

    Args:
        app: The application, with its gate.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)

    async def ask(self, method: str, path: str, key: str = "", **options: Any) -> Any:
        """The JSON of an answer.

        Args:
            method, path: Of the route; the path's parts must be quoted.
            key: The key of a tenant; "": none.
            options: `json` for the body, `params` for the query.

        Raises:
            PageError: The server has refused it.
        """
        key = key.strip()
        headers = {b"Authorization": b"Bearer " + key.encode("utf-8", "replace")} if key else {}
        client = httpx.AsyncClient(transport=self._transport, base_url="http://localhost", timeout=None)
        async with client:
            answer = await client.request(method, path, headers=headers, **options)
        try:
            values = answer.json()
        except ValueError:
            values = {}
        if answer.is_success:
            return values
        error = values.get("error", "the server failed: see its log")
        message = str(error.get("message") if isinstance(error, dict) else error)
        if answer.status_code == 401:
            message = "this server needs a key: enter yours above" if not key else "this key is not known here"
        raise PageError(message)
