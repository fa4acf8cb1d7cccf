"""What every request passes: its id, its log line and its counters; who may come in; how much and how long."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
from time import perf_counter
from urllib.parse import unquote_to_bytes
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from searchkit.server.errors import ServerError, as_server_error, error_response
from searchkit.server.service import Service
from searchkit.server.settings import Settings

logger = logging.getLogger("searchkit.server.requests")

OPEN = ("/", "/livez", "/readyz")
OPEN_BELOW = "/static/"
WITHOUT_DEADLINE = "/mcp"
"""Its answers may be streams."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}


class Observer:
    """Outermost: gives each request an id, counts it and logs it, whatever becomes of it.

    Args:
        app: What answers.
        service: Has the counters, and says when the service stops.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics = self._service.metrics
        sent_id = HTTPConnection(scope).headers.get("x-request-id", "")
        scope["request_id"] = request_id = sent_id if _ID.fullmatch(sent_id) else uuid4().hex
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if self._service.draining:  # so that clients come back to a service that stays
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        began = perf_counter()
        with metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, observed)
            finally:
                seconds = perf_counter() - began
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                metrics.requests.labels(route, method, str(status)).inc()
                metrics.duration.labels(route).observe(seconds)
                if status == 429:
                    metrics.refused.inc()
                fields = {
                    "request_id": request_id,
                    "method": method,
                    "route": route,
                    "status": status,
                    "ms": round(1000 * seconds, 2),
                    **scope.get("log", {}),
                }
                logger.info("request", extra={"fields": fields})


class Gate:
    """Lets a request in: by its Host, its key, the size of its body and the time it takes.

    Args:
        app: What answers.
        settings: The limits and the keys.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        if settings.loopback:
            self._hosts |= _LOOPBACK
        # Digests: equally long, so that comparing them tells nothing of a key's length.
        self._read = [_digest(key.encode()) for key in settings.keys.read]
        self._write = [_digest(key.encode()) for key in settings.keys.write]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or say why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        body = _Body(receive, self._settings.max_body)
        deadline = None if scope["path"].startswith(WITHOUT_DEADLINE) else self._settings.deadline
        try:
            connection = HTTPConnection(scope)
            self._check_host(connection)
            self._check_key(connection, scope["path"])
            _check_encoding(scope)
            body.check_head(connection.headers)
            async with asyncio.timeout(deadline):
                await self._app(scope, body.receive, noting)
        except Exception as error:
            if started:
                raise
            failure = as_server_error(error)
            if failure.status_code == 504 and not body.complete:
                failure = ServerError(408, "body_timeout", "the body did not arrive in time")
            if not body.complete:  # what is still to come is not read
                failure.headers = {**(failure.headers or {}), "Connection": "close"}
            await error_response(failure, scope["path"], scope["request_id"])(scope, receive, send)

    def _check_host(self, connection: HTTPConnection) -> None:
        """Against DNS rebinding: a page elsewhere may reach this address under its own name, but not under ours."""
        if self._hosts:
            host = connection.headers.get("host", "").lower()
            name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
            if name not in self._hosts:
                raise ServerError(421, "unknown_host", "the Host header names another host; see --allowed-host")

    def _check_key(self, connection: HTTPConnection, path: str) -> None:
        if path in OPEN or path.startswith(OPEN_BELOW):
            return
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        digest = _digest(key.strip().encode("utf-8", "replace")) if scheme.lower() == "bearer" else b""
        writes = _matches(digest, self._write)
        reads = _matches(digest, self._read) or writes
        connection.scope["may_write"] = writes  # see `require_write_key`
        if reads or self._settings.no_auth or not self._settings.keys:
            return
        raise ServerError(
            401,
            "wrong_key" if digest else "no_key",
            "the key is unknown" if digest else "no key came; send it as Authorization: Bearer KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _check_encoding(scope: Scope) -> None:
    """Bytes that are not UTF-8 would all become the same character, and two documents' ids one."""
    try:
        unquote_to_bytes(scope.get("raw_path", b"") + b"?" + scope["query_string"]).decode()
    except UnicodeDecodeError as error:
        raise ServerError(
            400, "not_utf8", "the address holds %-escapes of another encoding; write its text in UTF-8"
        ) from error


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _matches(digest: bytes, keys: list[bytes]) -> bool:
    """Whether a digest is among some, in the same time whichever it is."""
    return bool(sum([hmac.compare_digest(digest, key) for key in keys]))


class _Body:
    """The body of a request, up to a limit."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._size = receive, limit, 0
        self.complete = False

    def check_head(self, headers: Headers) -> None:
        """Raise ServerError where the announced length is too much already."""
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise ServerError(400, "bad_length", "Content-Length is not a number")
        self.complete = length == "0" and "transfer-encoding" not in headers
        self._check(int(length[:19]))

    async def receive(self) -> Message:
        """The next part."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._check(self._size)
            self.complete = not message.get("more_body", False)
        return message

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise ServerError(
                413,
                "body_too_large",
                f"the body has more than {self._limit} bytes, which is the limit; send less at once",
            )
