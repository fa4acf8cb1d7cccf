"""Requests to Milvus: limited in time, with errors that say what to do."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections import Counter
from threading import Lock
from typing import Any

from searchkit.errors import MissingExtraError, RemoteError, StoreError
from searchkit.remote.address import TOKEN, MilvusAddress

_open_files: Counter[str] = Counter()
_opening = Lock()

_UNREACHABLE = re.compile(
    r"unavailable|fail(ed)? connecting|failed to connect|connection (refused|reset)|timeout|deadline|"
    r"not ready|retry run out|server unavailable|no route|name resolution|broken pipe|closed channel",
    re.IGNORECASE,
)
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables by which grpc connects through a proxy, so that the server itself may be out of reach."""

_DENIED = re.compile(r"auth|unauthenticated|permission|privilege|password|token", re.IGNORECASE)


class Client:
    """A connection to a server of Milvus, or to a file of milvus-lite. Threads may share one.

    Args:
        address: Where it is.
        create: Whether a file that does not exist is made.

    Raises:
        RemoteError: It cannot be reached, or does not let us in.
        StoreError: There is no such file, or another process has it open.
    """

    def __init__(self, address: MilvusAddress, *, create: bool = False) -> None:
        self.address = address
        self._closed = False
        pymilvus = library()
        if address.file is not None:
            _check_file(address, create=create)
        elif not any(os.environ.get(name) for name in _PROXIES):
            self._check_reachable()
        self._counted = str(address.file.resolve()) if address.file is not None else None
        try:
            with _opening:
                self._client = pymilvus.MilvusClient(**address.connection(), timeout=address.timeout)
                if self._counted is not None:
                    _open_files[self._counted] += 1
        except Exception as error:  # pymilvus raises its own, grpc's, and ValueError
            if address.file is not None:
                raise StoreError(
                    f"{address.file} cannot be opened ({_reason(error)}); milvus-lite lets one process at a time use a "
                    "file: end the other one, such as searchkit serve, or check that it is a file of milvus-lite"
                ) from error
            raise self._explained("connecting", error) from error

    def close(self) -> None:
        """Close the connection; the last one to a file also ends what serves it, so that other processes can use it."""
        if self._closed:
            return
        self._closed = True
        self._client.close()
        if self._counted is None:
            return
        with _opening:
            _open_files[self._counted] -= 1
            if not _open_files[self._counted]:
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(self._counted)

    def call(self, method: str, *arguments: Any, timeout: float | None = None, **options: Any) -> Any:
        """Call a method of pymilvus's client.

        Args:
            method: Its name.
            arguments: Passed on.
            timeout: Seconds; None for those of the address.
            options: Passed on.

        Raises:
            RemoteError: No answer came in time, or the server refused.
        """
        if self._closed:
            raise StoreError(f"{self.address} has been closed; open it again")
        try:
            return getattr(self._client, method)(*arguments, timeout=timeout or self.address.timeout, **options)
        except Exception as error:  # pymilvus raises its own, grpc's, and ValueError
            raise self._explained(method.replace("_", " "), error) from error

    def _check_reachable(self) -> None:
        """Connect once, which tells at once where nothing listens: pymilvus tries again until its time is up."""
        address = self.address
        try:
            socket.create_connection((address.host, address.port), timeout=address.timeout).close()
        except TimeoutError as error:
            raise self._explained("connecting", error) from error
        except socket.gaierror as error:
            raise RemoteError(
                f"{address.server}: the host {address.host!r} has no address ({_reason(error)}); correct its name, or "
                "check the network"
            ) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host has such a part
            raise RemoteError(
                f"{address.server} cannot be connected to ({_reason(error)}); check that it runs, host and port"
            ) from error

    def _explained(self, doing: str, error: Exception) -> RemoteError:
        reason, server = _reason(error), self.address.server
        if _DENIED.search(reason) and not _UNREACHABLE.search(reason):
            return RemoteError(
                f"{server} does not allow {doing} ({reason}); set {TOKEN} to an API key or user:password, "
                "or write the login into the address: milvus://USER:PASSWORD@HOST/COLLECTION"
            )
        if "database not found" in reason.lower():
            return RemoteError(f"{server} has no database {self.address.database!r} ({reason}); correct ?db=")
        if _UNREACHABLE.search(reason):
            secure = "" if self.address.tls else ", that it does not expect TLS (?tls=on)"
            advice = f"check that it runs, host and port{secure}, or allow more time: ?timeout=120"
            if self.address.file is not None:
                advice = "try again when the machine is less busy"
            return RemoteError(
                f"{server} gave no answer within {self.address.timeout:g} s, {doing} ({reason}); {advice}. What was "
                "done so far is kept"
            )
        return RemoteError(f"{server} refused, {doing}: {reason}")


def library() -> Any:
    """The module pymilvus, told not to print its own errors.

    Raises:
        MissingExtraError: It is not installed.
    """
    # Read when grpc is loaded, whose core would write to standard error, past any logging.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import pymilvus
    except ModuleNotFoundError as error:
        raise MissingExtraError("Milvus needs pymilvus: pip install 'searchkit[milvus]'", name=error.name) from error
    for name in ("pymilvus", "milvus_lite", "grpc._server"):  # they log whole tracebacks of what they raise as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus


def _check_file(address: MilvusAddress, *, create: bool) -> None:
    assert address.file is not None
    try:
        import milvus_lite  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{address}: a local file needs milvus-lite: pip install milvus-lite", name=error.name
        ) from error
    if not address.file.exists() and not (create and address.file.resolve().parent.is_dir()):
        wanted = "its folder does not exist" if create else "there is no such file"
        raise StoreError(f"{address.file}: {wanted}; put an index there with: searchkit push INDEX {address}")


def _reason(error: Exception) -> str:
    """What an error says, on one line."""
    text = str(getattr(error, "message", "") or error)
    cause: BaseException | None = error
    for _ in range(8):  # what the server said is often behind a guess of pymilvus's, whose errors may cause themselves
        if callable(details := getattr(cause, "details", None)) and details():
            text = str(details())
        cause = cause and (cause.__context__ if cause.__cause__ in (None, cause) else cause.__cause__)
    line = " ".join(text.split())
    return (line if len(line) <= 300 else f"{line[:300]}...") or type(error).__name__
