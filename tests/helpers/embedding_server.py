"""An OpenAI-compatible embeddings server on a real socket, which can be told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

WIDTH = 24

Fault = Callable[["Handler", dict[str, Any]], bool]
"""Gets the request's handler and the answer; returns whether the answer is still to be sent, perhaps changed."""


def vector(text: str, model: str = "") -> np.ndarray:
    """(WIDTH,) float32, another one for every text and model."""
    seed = int.from_bytes(hashlib.sha256(f"{model}|{text}".encode()).digest()[:8])
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


class EmbeddingServer(ThreadingHTTPServer):
    """Answers POST /v1/embeddings.

    Attributes:
        faults: What happens to the next requests, one each; an empty queue is a sound server.
        always: What happens to every request that `faults` has nothing for.
        bodies: The requests so far.
        headers: Their headers.
        most_at_once: Requests that were in work at the same time.
    """

    daemon_threads = True

    def __init__(self, port: int = 0, *, model: str = "") -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.pause = model, 0.0
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self.inside = 0
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that hung up is no news."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: EmbeddingServer

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": 64}]})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.inside += 1
            server.most_at_once = max(server.most_at_once, server.inside)
            fault = server.faults.popleft() if server.faults else server.always
        time.sleep(server.pause)
        vectors = [vector(text, server.model) for text in body["input"]]
        inner = body.get("encoding_format") == "base64"
        data = [
            {"index": n, "embedding": base64.b64encode(each.tobytes()).decode() if inner else each.tolist()}
            for n, each in enumerate(vectors)
        ]
        answer = {"object": "list", "data": data}
        try:
            if fault is None or fault(self, answer):
                self.send(200, answer)
        finally:
            with server.lock:
                server.inside -= 1

    def send(self, status: int, answer: Any, **headers: str) -> None:
        """Send an answer as JSON, or bytes as they are."""
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(port: int = 0, *, model: str = "") -> Iterator[EmbeddingServer]:
    """A server until the block ends."""
    server = EmbeddingServer(port, model=model)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        for connection in server.connections:  # also those that a client keeps open
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


def refusal(status: int, message: str = "no", **headers: str) -> Fault:
    """An error instead of the answer."""

    def fault(handler: Handler, _: dict[str, Any]) -> bool:
        handler.send(status, {"error": {"message": message, "type": "error"}}, **headers)
        return False

    return fault


def reset(handler: Handler, _: dict[str, Any]) -> bool:
    """The connection is cut before the answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return False


def cut_off(handler: Handler, answer: dict[str, Any]) -> bool:
    """Half of the answer, whose length is that of the whole; then the connection is cut."""
    content = json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    return reset(handler, answer)


def half(handler: Handler, answer: dict[str, Any]) -> bool:
    """Half of the answer as if it were all."""
    content = json.dumps(answer).encode()
    handler.send(200, content[: len(content) // 2])
    return False
