"""How a service runs: everything that `searchkit serve` can set, in one record."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from searchkit.errors import InputError
from searchkit.remote.address import MilvusAddress

READ_KEYS, WRITE_KEYS = "SEARCHKIT_READ_KEYS", "SEARCHKIT_WRITE_KEYS"


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys that clients send as `Authorization: Bearer KEY`; a write key may also read."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Keys({len(self.read)} read, {len(self.write)} write)"  # they never reach a log

    def __bool__(self) -> bool:
        return bool(self.read or self.write)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one service.

    Args:
        indexes: Index folders, named without ".index", and collections in Milvus.
        host: Address to listen on.
        port: Port to listen on; 0 picks a free one.
        keys: Keys for reading and writing. Writing always needs a write key.
        no_auth: Read without a key, on any address.
        cors: Origins whose pages may call the service, such as "https://search.example.org".
        allowed_hosts: Names that clients may use in the Host header, besides the loopback ones. Empty on an address
            other than loopback allows all.
        rerank: A reranker for `/v1/rerank` and for searches that ask for it; None reranks by the indexes' own models.
        device: Where models run and vectors are searched; None picks the best for models.
        threads: Forward passes that run at the same time; None for what the model's runtime suggests.
        search_threads: Searches that run at the same time.
        max_body: Bytes of a request's body.
        deadline: Seconds after which a request is answered with 504.
        queue_tokens: Tokens that may wait for the model before further requests are answered with 429.
        queue_searches: Searches that may wait before further ones are answered with 429.
        queue_pairs: Pairs that may wait for the reranker before further requests are answered with 429.
        cache_queries: Query vectors kept.
        drain: Seconds between SIGTERM and closing the socket, in which the service answers but is not ready.
        log_texts: Write queries to the log.
    """

    indexes: tuple[Path | MilvusAddress, ...]
    host: str = "127.0.0.1"
    port: int = 8080
    keys: Keys = Keys()
    no_auth: bool = False
    cors: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    rerank: str | None = None
    device: str | None = None
    threads: int | None = None
    search_threads: int = 2
    max_body: int = 8 << 20
    deadline: float = 30.0
    queue_tokens: int = 100_000
    queue_searches: int = 128
    queue_pairs: int = 2_048
    cache_queries: int = 10_000
    drain: float = 1.0
    log_texts: bool = False

    def __post_init__(self) -> None:
        if not self.indexes:
            raise InputError("no index came; name one or more index folders to serve")
        if not (self.loopback or self.keys or self.no_auth):
            raise InputError(
                f"{self.host} can be reached from other machines, and no key is set; set {READ_KEYS} or {WRITE_KEYS}, "
                "name a file with --keys-file, or let everybody read with --no-auth"
            )
        for origin in self.cors:
            if origin == "*" or "://" not in origin:
                raise InputError(f"the origin {origin!r} cannot be allowed; expected one such as https://example.org")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_keys(file: Path | None = None, environment: Mapping[str, str] = os.environ) -> Keys:
    """Keys from the environment, separated by commas, and from a file with lines such as "read KEY" or "write KEY".

    Raises:
        InputError: A key is too short, has characters that a header cannot carry, or a line has another form.
    """
    keys = {"read": _split(environment.get(READ_KEYS, "")), "write": _split(environment.get(WRITE_KEYS, ""))}
    if file is not None:
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            kind, _, key = line.strip().partition(" ")
            if kind not in keys or not key.strip():
                raise InputError(f'{file}:{number}: expected "read KEY" or "write KEY"')
            keys[kind].append(key.strip())
    for key in (*keys["read"], *keys["write"]):
        if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError("a key is not usable; expected 8 or more printable ASCII characters without spaces")
    return Keys(_distinct(keys["read"]), _distinct(keys["write"]))


def _split(value: str) -> list[str]:
    return [key.strip() for key in value.split(",") if key.strip()]


def _distinct(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(keys))
