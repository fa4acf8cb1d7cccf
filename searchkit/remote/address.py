"""Where a collection in Milvus is: ``milvus://HOST:PORT/COLLECTION``, or ``milvus:FILE.db/COLLECTION``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from searchkit.errors import InputError

PREFIX = "milvus:"
TOKEN = "SEARCHKIT_MILVUS_TOKEN"
TIMEOUT = 30.0
"""Seconds for one request."""

_PORT = 19530
_FORM = "milvus://HOST:19530/COLLECTION, or milvus:FILE.db/COLLECTION for a local file"
_OPTIONS = ("db", "tls", "ca", "cert", "key", "timeout")


@dataclass(frozen=True, slots=True)
class MilvusAddress:
    """A collection, and how its server is reached. As a string it has no password.

    Args:
        collection: Its name.
        file: The file of milvus-lite; None for a server.
        host: The server.
        port: Its port.
        token: API key, or "user:password"; empty for none.
        database: Database of the server; empty for its default.
        tls: Whether the connection is encrypted.
        ca: PEM file of the authority that the server's certificate is checked by; None for the system's.
        cert: PEM file of the client's certificate, where the server asks for one.
        key: PEM file of its key.
        timeout: Seconds for one request, and for connecting.
    """

    collection: str
    file: Path | None = None
    host: str = ""
    port: int = _PORT
    token: str = ""
    database: str = ""
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    timeout: float = TIMEOUT

    def __str__(self) -> str:
        return f"{self.server}/{self.collection}" + (f"?db={self.database}" if self.database else "")

    def __repr__(self) -> str:
        return f"MilvusAddress({str(self)!r})"  # the token never reaches a log

    @property
    def server(self) -> str:
        """The server, or the file, without the collection."""
        if self.file is not None:
            return f"{PREFIX}{self.file}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{PREFIX}//{host}:{self.port}"

    def connection(self) -> dict[str, Any]:
        """What pymilvus connects with."""
        if self.file is not None:
            # In the same process, where a ping tells nothing; its server takes pymilvus's for too many.
            return {"uri": str(self.file), "grpc_options": {"grpc.keepalive_time_ms": 3_600_000}}
        host = f"[{self.host}]" if ":" in self.host else self.host
        # pymilvus takes an authority under one name alone, and under another with a certificate of the client.
        if self.cert:
            certificates = {"ca_pem_path": self.ca, "client_pem_path": self.cert, "client_key_path": self.key}
        else:
            certificates = {"server_pem_path": self.ca}
        return {
            "uri": f"{'https' if self.tls else 'http'}://{host}:{self.port}",
            "token": self.token,
            "db_name": self.database,
            "secure": self.tls,
            **{name: path for name, path in certificates.items() if path},
        }


def is_milvus(place: object) -> bool:
    """Whether something names a collection in Milvus, and not a folder."""
    return isinstance(place, MilvusAddress) or (isinstance(place, str) and place.startswith(PREFIX))


def parse_milvus(text: str, environment: Mapping[str, str] = os.environ) -> MilvusAddress:
    """Read ``milvus://USER:PASSWORD@HOST:PORT/COLLECTION?db=...&tls=on&ca=...&timeout=...``.

    Without a login in the address, the environment's SEARCHKIT_MILVUS_TOKEN is sent: an API key, or "user:password".

    Raises:
        InputError: It has another form, or names an unknown option. Messages do not repeat what may be a password.
    """
    rest, _, query = text.removeprefix(PREFIX).partition("?")
    if not text.startswith(PREFIX) or "#" in text:
        raise InputError(f"the address of a collection has another form; expected {_FORM}")
    local = re.fullmatch(r"(?P<file>.+\.db)/(?P<name>[^/]+)/?", rest.removeprefix("//") if rest[:3] == "///" else rest)
    if local and not re.match(r"//[^/]", rest):
        if query:
            raise InputError(f"{text}: a local file takes no options; expected {PREFIX}FILE.db/COLLECTION")
        return MilvusAddress(_checked_name(local["name"]), file=Path(local["file"]))
    try:
        parts = urlsplit(f"milvus:{rest}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or not rest.startswith("//"):
        raise InputError(f"the address of a collection has no usable host; expected {_FORM}")
    login = [unquote(part) for part in (parts.username, parts.password) if part]
    token = ":".join(login) or environment.get(TOKEN, "").strip()
    return MilvusAddress(
        _checked_name(unquote(parts.path.strip("/"))), host=host, port=port or _PORT, token=token, **_options(query)
    )


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        raise InputError(
            f"{name!r} cannot name a collection; expected letters, digits and underscores, not a digit first: {_FORM}"
        )
    return name


def _options(query: str) -> dict[str, Any]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(given.keys() - set(_OPTIONS)):
        raise InputError(f"Milvus addresses have no option {unknown[0]!r}; expected some of {', '.join(_OPTIONS)}")
    options: dict[str, Any] = {"database": given.get("db", "")}
    options |= {name: given[name] for name in ("ca", "cert", "key") if given.get(name)}
    for name in ("ca", "cert", "key"):
        if name in options and not Path(options[name]).is_file():
            raise InputError(f"{name}={options[name]}: there is no such file; expected a certificate or key as PEM")
    if options.keys() & {"cert", "key"} and not options.keys() >= {"ca", "cert", "key"}:
        raise InputError("a client's certificate goes with its key and the authority: ?ca=...&cert=...&key=...")
    tls = given.get("tls", "on" if options.keys() & {"ca", "cert", "key"} else "off").lower()
    if tls not in ("on", "off", "true", "false", "1", "0"):
        raise InputError(f"tls is {tls!r}; expected on or off")
    options["tls"] = tls in ("on", "true", "1")
    if "timeout" in given:
        try:
            options["timeout"] = float(given["timeout"])
        except ValueError:
            options["timeout"] = math.nan
        if not 0 < options["timeout"] <= 86_400:
            raise InputError(f"timeout is {given['timeout']!r}; expected seconds, such as timeout=60")
    return options
