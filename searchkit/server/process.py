"""The service as a process: a socket, signals, and an orderly end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

import uvicorn
from fastapi import FastAPI

from searchkit.server.settings import Settings


class Server(uvicorn.Server):
    """Uvicorn, which after SIGTERM first says that it is not ready, and ends with exit code 0.

    Args:
        app: The application.
        settings: Address and time to drain.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,  # it would write query strings
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=int(settings.deadline) + 1,
        )
        super().__init__(config)
        self._service, self._drain = app.state.service, settings.drain

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own raises the signal again at the end, so that the process would not exit with 0."""
        if current_thread() is not main_thread():  # only there can signals be handled
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts to drain, a second one stops at once."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the loop."""
        if self._service.draining:
            self._drain -= 0.1
            if self._drain <= 0:
                self.should_exit = True
        return await super().on_tick(counter)

    @property
    def address(self) -> str:
        """Where it listens, once it does."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
