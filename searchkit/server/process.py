"""The service as a process: a socket, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from searchkit.errors import InputError
from searchkit.server.settings import Settings

logger = logging.getLogger(__name__)

_HEAD_SECONDS = 10.0
_HEAD_BYTES = 64 << 10
_KEEP_ALIVE = 65  # longer than any Retry-After, or a client would come back on a connection just being closed


def check_address(settings: Settings) -> None:
    """Try the address, before models are loaded for it.

    Raises:
        InputError: It is in use, or not an address of this machine.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                trial.bind(address)
    except OSError as error:
        raise InputError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}; "
            "choose another --port, or 0 for a free one, and a --host of this machine"
        ) from error


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, which closes a connection whose request line and headers take too long or too much."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._head: int | None = 0
        self._timer = self.loop.call_later(_HEAD_SECONDS, transport.abort)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._timer.cancel()
        self._head, self._timer = 0, self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def on_headers_complete(self) -> None:
        """All of its headers came."""
        self._timer.cancel()
        self._head = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Some bytes came."""
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > _HEAD_BYTES:
                self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side is gone."""
        self._timer.cancel()
        super().connection_lost(exc)


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
            http=Protocol,
            log_config=None,
            access_log=False,  # it would write query strings
            server_header=False,
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE,
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            logger.info("listening", extra={"fields": {"address": self.address}})

    @property
    def address(self) -> str:
        """Where it listens, once it does."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
