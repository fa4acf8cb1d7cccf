"""A server that is away, silent, lost or closed to us costs a clear error, and never a hang."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus import VARIABLE

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, RemoteError, StoreError
from searchkit.records import Document
from searchkit.remote.address import parse_milvus
from searchkit.remote.client import Client
from searchkit.remote.engine import MilvusEngine
from searchkit.remote.push import push

grpc = pytest.importorskip("grpc")
pytest.importorskip("pymilvus")


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    for options in ("", "?tls=on"):
        expected = rf"milvus://127.0.0.1:{port} cannot be connected to \(.*refused\); check that it runs, host and port"
        with pytest.raises(RemoteError, match=expected):
            Client(parse_milvus(f"milvus://127.0.0.1:{port}/papers{options}"))
    assert time.monotonic() - began < 5  # and not the 30 s of a request


def test_a_server_behind_a_proxy_is_left_to_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"milvus://127.0.0.1:9 gave no answer within 0.5 s.*check that it runs"):
        Client(parse_milvus("milvus://127.0.0.1:9/papers?timeout=0.5"))


@pytest.mark.parametrize("host", ["nowhere.invalid", f"{'x' * 70}.example"])
def test_a_host_without_an_address(host: str) -> None:
    with pytest.raises(RemoteError, match=rf"milvus://{host}:19530.*(has no address|cannot be connected to) \("):
        Client(parse_milvus(f"milvus://{host}/papers"))


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(RemoteError, match=r"gave no answer within 0.5 s.*TLS.*\?timeout=120"):
            Client(parse_milvus(f"milvus://127.0.0.1:{port}/papers?timeout=0.5"))
        assert time.monotonic() - began < 10


class Denying(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every request with one status."""

    def __init__(self, status: Any, text: str) -> None:
        self._status, self._text = status, text

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(self._status, self._text))


@pytest.fixture(params=[(grpc.StatusCode.UNAUTHENTICATED, "auth check failure"), (grpc.StatusCode.UNAVAILABLE, "busy")])
def refusing(request: pytest.FixtureRequest) -> Iterator[tuple[int, Any]]:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([Denying(*request.param)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, request.param[0]
    server.stop(None)


def test_a_server_that_refuses(refusing: tuple[int, Any]) -> None:
    port, status = refusing
    expected = "SEARCHKIT_MILVUS_TOKEN" if status is grpc.StatusCode.UNAUTHENTICATED else "refused, connecting: busy"
    began = time.monotonic()
    with pytest.raises(RemoteError, match=expected) as caught:
        MilvusEngine.open(parse_milvus(f"milvus://ann:secret@127.0.0.1:{port}/papers?timeout=1"))
    assert "secret" not in str(caught.value)
    assert time.monotonic() - began < 20


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_by_an_authority_of_our_own(tmp_path: Path) -> None:
    for name in ("ours", "others"):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1"]
        command += ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.pem")]
        subprocess.run(command, check=True, capture_output=True)
    key, certificate = ((tmp_path / f"ours.{kind}").read_bytes() for kind in ("key", "pem"))
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([Denying(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")])
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key, certificate)]))
    server.start()
    for name, part in (("ours", "SEARCHKIT_MILVUS_TOKEN"), ("others", "gave no answer")):
        with pytest.raises(RemoteError, match=part):
            Client(parse_milvus(f"milvus://localhost:{port}/papers?timeout=2&ca={tmp_path / name}.pem"))
    server.stop(None)


@pytest.mark.skipif(VARIABLE in os.environ, reason="a server is not stopped for a test")
def test_a_connection_that_is_lost(tmp_path: Path) -> None:
    address = parse_milvus(f"milvus:{tmp_path / 'lite.db'}/papers")
    with SearchEngine.create(tmp_path / "x.index", dim=2) as engine:
        engine.add([Document("a", "tea")], vectors=np.ones((1, 2)))
        push(engine, address)
    with MilvusEngine.open(address) as engine:
        object.__setattr__(address, "timeout", 1.0)
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(str(address.file))
        began = time.monotonic()
        with pytest.raises(RemoteError, match="gave no answer within 1 s, search"):
            engine.search(vector=[1, 0])
        assert time.monotonic() - began < 20
    assert MilvusEngine.open(address).get("a") == Document("a", "tea")


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none.db: there is no such file; put an index there with: searchkit push"):
        MilvusEngine.open(f"milvus:{tmp_path / 'none.db'}/papers")
    assert not (tmp_path / "none.db").exists()


def test_a_collection_that_is_not_there(tmp_path: Path) -> None:
    address = parse_milvus(f"milvus:{tmp_path / 'lite.db'}/papers")
    Client(address, create=True).close()
    with pytest.raises(StoreError, match=r"there is no collection milvus:.*/papers; put an index there"):
        MilvusEngine.open(address)


def test_arguments_of_a_wrong_type_are_named_before_anybody_is_asked() -> None:
    with pytest.raises(InputError, match="threads is '2'"):
        MilvusEngine.open("milvus://127.0.0.1:1/c", threads="2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="device is 5"):
        MilvusEngine.open("milvus://127.0.0.1:1/c", device=5)  # type: ignore[arg-type]
