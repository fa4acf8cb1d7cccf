"""A service in a thread, behind a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from searchkit.server.app import create_app
from searchkit.server.process import Server
from searchkit.server.settings import Keys, Settings

KEYS = Keys(("reading-key",), ("writing-key",))


@contextmanager
def running(settings: Settings) -> Iterator[Server]:
    """A service that answers until the block ends."""
    server = Server(create_app(settings), settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        assert server.started
        yield server
    finally:
        server.should_exit = True
        thread.join()
