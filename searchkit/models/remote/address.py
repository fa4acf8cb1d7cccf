"""Where a model over the wire is: ``openai:NAME@URL#settings``, and which key may go there."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from searchkit.errors import InputError

PREFIX = "openai:"
OPENAI = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"

_FORM = "openai:NAME@http://HOST:PORT/v1, or openai:NAME for OpenAI's own models"
_SETTINGS = ("family", "query", "document", "template", "length", "key", "timeout")


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model behind an OpenAI-compatible embeddings API, as the user names it.

    Args:
        name: The model's name on its server.
        url: Base address, without login, query or trailing slash; "/embeddings" is appended to it.
        family: A model name whose conventions apply, where `name` says nothing; None looks up `name`.
        query: Prefix of queries without an instruction; None leaves it to the family.
        document: Prefix of documents; None leaves it to the family.
        template: Query template with ``{instruction}`` and ``{query}``; None leaves it to the family.
        length: Longest input in tokens; None leaves it to the server or the family.
        key: Environment variable that holds the key; None is :data:`KEY_VARIABLE`. Never stored.
        timeout: Seconds for one request; None is the default. Not stored.
        stored: The name comes from an index and not from the caller, who may not know the address (see `api_key`).
    """

    name: str
    url: str
    family: str | None = None
    query: str | None = None
    document: str | None = None
    template: str | None = None
    length: int | None = None
    key: str | None = None
    timeout: float | None = None
    stored: bool = False

    def __str__(self) -> str:
        """The name as an index stores it: without key and timeout."""
        texts = {"family": self.family, "query": self.query, "document": self.document, "template": self.template,
                 "length": None if self.length is None else str(self.length)}  # fmt: skip
        settings = ",".join(f"{name}={_quoted(text)}" for name, text in texts.items() if text is not None)
        return f"{PREFIX}{self.name}@{self.url}" + (f"#{settings}" if settings else "")

    @property
    def short_name(self) -> str:
        """The last part of the model's name."""
        return self.name.rpartition("/")[2]

    def api_key(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The key to send, None for none.

        A key named in `key` is sent. :data:`KEY_VARIABLE` is sent to an address that the caller named. To an address
        that only an index names it is sent if that is OpenAI's, the one in OPENAI_BASE_URL, or in the local network:
        opening an index that somebody else made must not give the key away.

        Raises:
            InputError: The variable in `key` is not set, or its value cannot be a key.
        """
        variable = self.key or KEY_VARIABLE
        key = environment.get(variable, "").strip()
        if self.key and not key:
            raise InputError(f"the environment variable {self.key}, named for the key of {self}, is not set")
        if not key or (self.stored and not self.key and not self._is_trusted(environment)):
            return None
        if not re.fullmatch(r"[!-~]+", key):  # an HTTP library would print it in its own error
            raise InputError(f"the key in {variable} holds spaces, line breaks or characters outside ASCII; correct it")
        return key

    def _is_trusted(self, environment: Mapping[str, str]) -> bool:
        known = environment.get("OPENAI_BASE_URL", "").rstrip("/")
        return self.url in (OPENAI, known) or _is_local(urlsplit(self.url).hostname or "")


def is_remote(model: str) -> bool:
    """Whether a model's name is that of a model over the wire."""
    return model.startswith(PREFIX)


def parse_remote(model: str, *, stored: bool = False) -> RemoteModel:
    """Read ``openai:NAME@URL#settings``.

    Args:
        model: The whole name. Settings are separated by commas and may be percent-encoded, as in
            ``#query=search_query: ,document=search_document: ``.
        stored: It was read from an index.

    Raises:
        InputError: It has another form, holds a login or a query, or names an unknown setting.
    """
    rest, _, settings = model.removeprefix(PREFIX).partition("#")
    match = re.fullmatch(r"(?P<name>.+?)@(?P<url>[a-z]+://.*)", rest, re.IGNORECASE)
    name, url = (match["name"], match["url"]) if match else (rest, OPENAI)
    if not name or name != name.strip() or not name.isprintable() or "://" in name:
        raise InputError(f"the model over the wire has no usable name; expected {_FORM}")
    return RemoteModel(name, _checked_url(url), **_settings(settings), stored=stored)


def _checked_url(url: str) -> str:
    """The address without a trailing slash; messages do not repeat what may be a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InputError(f"the address of the model's server is malformed; expected {_FORM}") from None
    if "@" in parts.netloc:
        raise InputError(
            f"the address of the model's server holds a login, which an index would store; set {KEY_VARIABLE}, or name "
            "a variable with #key=VARIABLE"
        )
    if parts.query or "?" in url:
        raise InputError("the address of the model's server has a query (?...), which may hold a secret; leave it out")
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"\s", url):
        raise InputError(f"{url!r} is not the address of a model's server; expected {_FORM}")
    return f"{parts.scheme.lower()}://{parts.netloc}{parts.path.rstrip('/')}"


def _settings(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        name, value = name.strip(), unquote(value)
        if not equals or name not in _SETTINGS:
            raise InputError(f"{name!r} is no setting of a model over the wire; expected {', '.join(_SETTINGS)}")
        if name == "length":
            if not value.isdecimal() or not 8 <= int(value) <= 10**7:
                raise InputError(f"length is {value!r}; expected the longest input in tokens, 8 or more")
            found[name] = int(value)
        elif name == "timeout":
            if not re.fullmatch(r"\d+(\.\d+)?", value) or not 0 < float(value) <= 86400:
                raise InputError(f"timeout is {value!r}; expected seconds, up to 86400")
            found[name] = float(value)
        elif name == "key" and not re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII):
            raise InputError("key is not the name of an environment variable; never write the key itself there")
        elif name == "template" and ("{query}" not in value or "{instruction}" not in value):
            raise InputError(f"template is {value!r}; expected {{instruction}} and {{query}} in it")
        else:
            found[name] = value
    return found


def _quoted(text: str) -> str:
    return quote(text, safe=" :/{}<>()[];!?'|")


def _is_local(host: str) -> bool:
    """Whether a host is this machine or in its own network, as far as its name says."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".lan", ".home.arpa"))
    return address.is_loopback or address.is_private or address.is_link_local
