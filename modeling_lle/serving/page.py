"""The page at `/`: where the mounted gradio application lies, and which of its routes can be reached.

Notable: gradio is optional and loaded only here. Of its application only what the page itself needs answers: nothing
can be uploaded, no file is read, and no function is called but through its queue.
"""

import asyncio
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .state import Serving

if TYPE_CHECKING:
    from gradio import Blocks

PATH = "/page"
MISSING = 'The page needs gradio: pip install "modeling_lle[serve]". The API works without it: see /openapi.json.\n'
OFF = "This server has no page. Its API is described in /openapi.json.\n"
STYLE = Path(__file__).with_name("page.css")
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect x="1" y="3" width="14" height="4" rx="1" '
    'fill="#1f6f78"/><rect x="1" y="9" width="8" height="4" rx="1" fill="#b8b4aa"/></svg>'
)
_API = "gradio_api"
_OPEN = frozenset({"queue", "heartbeat", "startup-events", "cancel", "reset", "theme.css"})  # after /gradio_api/
_SHOWN = frozenset({"", "assets", "static", "svelte", "config", "theme.css", "manifest.json"})
_NOT_FOUND = PlainTextResponse("there is no such file\n", 404)


def add_page(app: FastAPI, serving: Serving, wanted: bool) -> None:
    """Adds `/` to an application: the page, or one line that says why there is none.

    Args:
        app: The application, with all its other routes.
        serving: What these share.
        wanted: Whether there is to be a page.
    """
    has_gradio = importlib.util.find_spec("gradio") is not None

    @app.get("/", include_in_schema=False)
    async def page() -> Any:
        """The page."""
        if not wanted:
            return PlainTextResponse(OFF)
        return RedirectResponse("page/") if has_gradio else PlainTextResponse(MISSING)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Any:
        """The icon of the page."""
        return Response(ICON, media_type="image/svg+xml")

    if wanted and has_gradio:
        from .page_layout import make_page

        _mount(app, make_page(app, serving), serving)


def _mount(app: FastAPI, page: "Blocks", serving: Serving) -> None:
    """Mounts a page."""
    import gradio

    from .page_layout import make_theme

    options: dict[str, Any] = {"theme": make_theme(), "css": STYLE.read_text(encoding="utf-8"), "footer_links": []}
    options |= {"show_error": True, "ssr_mode": False, "enable_monitoring": False, "mcp_server": False, "pwa": False}
    lifespan = app.router.lifespan_context
    gradio.mount_gradio_app(app, page, PATH, max_file_size=0, **options)
    app.router.lifespan_context = lifespan  # the server has none: the first request starts the queue
    mounted: Any = app.routes[-1]
    mounted.app = _Guard(mounted.app, page, serving)


class _Guard:
    """Lets through what the page needs, and starts its queue when it is first asked for.

    Args:
        app: The application of gradio.
        page: The page.
        serving: Tells when the server ends, and with it what a page in a browser holds open.
    """

    def __init__(self, app: ASGIApp, page: "Blocks", serving: Serving) -> None:
        self.app, self.page, self.serving = app, page, serving
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "http" and not _is_open(str(scope["path"]).removeprefix(str(scope.get("root_path", "")))):
            await _NOT_FOUND(scope, receive, send)
            return
        if not self._started:
            self._started = True
            self.page.run_startup_events()
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.serving.draining:
                raise


def _is_open(path: str) -> bool:
    first, *rest = path.lstrip("/").split("/")
    return rest[:1] != [] and rest[0] in _OPEN if first == _API else first in _SHOWN
