"""The server: uvicorn, with an end that finishes what is running or refuses it.

Notable: after SIGTERM new requests get 503 while running ones have their grace time; then the models stop, whose
requests get 503 too. What a bank has not acknowledged then is not there: a bank is written as a whole.
"""

import logging
import signal
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from .state import Serving

logger = logging.getLogger(__name__)
JOINED = 2.0  # seconds in which the threads of the models end


class Server(uvicorn.Server):
    """uvicorn's server, which refuses new requests before it ends.

    Args:
        config: Its configuration.
        serving: What the routes share.
    """

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self.serving = serving
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to refuse requests; a second signal ends the server at once."""
        if self.serving.draining:
            super().handle_exit(signal.SIGINT, frame)
            return
        self.serving.draining = True
        self._until = time.monotonic() + self.serving.limits.grace_seconds

    async def on_tick(self, counter: int) -> bool:
        """Ends the server when nothing runs any more, or the grace time is over."""
        if self._until is not None and not self.should_exit:
            running = self.serving.metrics.running._value.get()
            if running <= 0 or time.monotonic() > self._until:
                self.serving.models.close(JOINED)
                self.should_exit = True
        return await super().on_tick(counter)


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serves an application until a signal ends it.

    Args:
        app: What `create_app` made.
        host: Name or address to listen at.
        port: Port to listen at; 0 for a free one.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        lifespan="off",
    )
    server = Server(config, app.state.serving)
    server.run()
    if not app.state.serving.models.close(JOINED):
        logger.warning("a model has not stopped in time: its work is given up")
