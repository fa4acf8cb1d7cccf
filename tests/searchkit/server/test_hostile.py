from __future__ import annotations

import json
import socket
import time
from urllib.parse import quote, urlsplit

import httpx
import pytest
from serving import KEYS

from searchkit.engine import SearchEngine
from searchkit.records import Document

JSON = {"Content-Type": "application/json"}
BODIES = {
    "no JSON": b"{",
    "nothing": b"",
    "NUL": json.dumps({"query": "a\0b"}).encode(),
    "a lone surrogate": b'{"query": "\\ud800", "input": "\\ud800", "documents": ["\\ud800"], "text": "\\ud800"}',
    "a key with one": b'{"query": "tea", "\\ud800": 1}',
    "a filter with one": b'{"query": "tea", "where": {"\\ud800": "\\udfff"}}',
    "not UTF-8": b'{"query": "\xff"}',
    "deep": b'{"query": "tea", "where": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a deep filter": b'{"query": "tea", "where": ' + b'{"$not":' * 900 + b"{}" + b"}" * 900 + b"}",
    "a wide filter": json.dumps({"query": "tea", "where": {"$or": [{"n": n} for n in range(50_000)]}}).encode(),
    "NaN": b'{"query": "tea", "k": NaN}',
    "a long number": b'{"query": "tea", "k": ' + b"9" * 10_000 + b"}",
    "huge floats": b'{"query": "tea", "where": {"n": 1e999}}',
    "a list": b"[]",
    "a string": b'"tea"',
    "null": b"null",
    "true": b'{"query": true, "input": true, "documents": true, "k": true}',
    "a megabyte": json.dumps({"query": "x" * 1_000_000, "input": "x" * 1_000_000}).encode(),
    "task names": json.dumps({"query": "tea", "task": "\0", "input": "x"}).encode(),
    "facets": json.dumps({"query": "tea", "facets": ["\ud800", "a" * 10_000, "$x"]}).encode(),
}
PATHS = ("/indexes/notes/search", "/v1/embeddings", "/v1/rerank", "/v2/rerank", "/indexes/notes/documents")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", BODIES)
def test_no_body_makes_the_service_fail(client, path, name) -> None:
    response = client.post(path, content=BODIES[name], headers=JSON)
    assert response.status_code < 500, response.text
    assert response.status_code == 200 or response.json()["error"]["message"]
    assert client.get("/livez").status_code == 200


LINKS = (
    "query=%00", "query=%ff", "query=%ed%a0%80", "query=tea&where=%7B", "query=tea&k=1e9", "query=tea&where=[]",
    "query=tea&facets=,,", "similar_to=%00", "query=tea&x=1", "query=tea&where=" + "[" * 9_000,
    "query=tea&query=coal", "query", "",
)  # fmt: skip


@pytest.mark.parametrize("query", LINKS)
def test_no_link_makes_the_service_fail(client, query) -> None:
    response = client.get(f"/indexes/notes/search?{query}")
    assert response.status_code < 500, response.text


ESCAPES = (
    "/indexes/%00", "/indexes/..%2f..%2fetc/documents/passwd", "//etc/passwd",
    "/indexes/notes/documents/..%2f..%2f..%2fetc%2fpasswd", "/indexes/notes/documents/%00", "/static/../app.py",
    "/static/..%2f..%2fapp.py", "/static/%2e%2e/settings.py", "/indexes/notes.index", "/indexes//search",
    "/indexes/notes/documents/" + "a" * 8_000,
)  # fmt: skip


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_to_a_file(server, path) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404"), answer


POST = b"POST /indexes/notes/search HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
AMBIGUOUS = {
    "no HTTP": b"nonsense\r\n\r\n",
    "a version to come": b"GET / HTTP/9.9\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\nhello",
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "a bare line feed": GET + b"X-Request-Id: a\nSet-Cookie: b\r\n\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_requests_are_refused(server, name) -> None:
    answer = raw(server, AMBIGUOUS[name])
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1  # nothing behind it was taken for another request
    assert b"Set-Cookie" not in answer


def test_half_requests_do_not_keep_others_waiting(server, client) -> None:
    halves = []
    for number in range(200):
        half = socket.create_connection(address(server))
        head = b"POST /indexes/notes/search HTTP/1.1\r\nHost: localhost\r\n"
        half.sendall(head if number % 2 else head + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        halves.append(half)
    began = time.monotonic()
    assert client.get("/indexes/notes/search?query=tea").status_code == 200
    assert time.monotonic() - began < 5
    for half in halves:
        half.close()


def test_slow_readers_do_not_keep_others_waiting(server, client) -> None:
    readers = []
    for _ in range(200):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # so that an answer does not fit
        reader.connect(address(server))
        reader.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        readers.append(reader)
    time.sleep(0.5)
    began = time.monotonic()
    assert client.get("/indexes/notes/search?query=tea").status_code == 200
    assert time.monotonic() - began < 5
    assert readers[0].recv(12) == b"HTTP/1.1 200"
    for reader in readers:
        reader.close()


def test_a_body_that_does_not_arrive_gets_408(serve) -> None:
    server = serve(deadline=0.3)
    answer = raw(server, POST + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the body did not arrive in time" in answer


def test_ten_megabytes_are_told_the_limit_and_the_next_request_is_served(client) -> None:
    for path in PATHS[:4]:
        response = client.post(path, content=b'{"query": "' + b"x" * 10_000_000 + b'"}', headers=JSON)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        assert str(8 << 20) in response.json()["error"]["message"]
    assert client.get("/indexes/notes/search?query=tea").status_code == 200


WRITE = {**JSON, "Authorization": f"Bearer {KEYS.write[0]}"}


def test_no_document_makes_the_writer_fail(serve, tmp_path) -> None:
    folder = tmp_path / "live.index"
    with SearchEngine.create(folder, model="builtin") as engine:
        engine.add([Document("1", "Old tea.")])
    with httpx.Client(base_url=serve(folder, keys=KEYS).address, timeout=30) as client:
        for name, body in BODIES.items():
            for method, path in (("PUT", "documents/x"), ("POST", "documents"), ("POST", "delete")):
                response = client.request(method, f"/indexes/live/{path}", content=body, headers=WRITE)
                assert response.status_code < 500, (name, path, response.text)
        for bad in ("\0", "a" * 10_000, "%ff", "..%2f..%2fetc"):
            path = f"/indexes/live/documents/{quote(bad, safe='%')}"
            assert client.put(path, json={"text": "tea"}, headers=WRITE).status_code < 500
        nested = b'{"text": "tea", "metadata": {"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}}"
        assert client.put("/indexes/live/documents/y", content=nested, headers=WRITE).status_code < 500
        assert client.get("/indexes/live/documents/1").status_code == 401
        read = {"Authorization": WRITE["Authorization"]}
        assert client.get("/indexes/live/documents/1", headers=read).json()["text"] == "Old tea."
        assert client.get("/indexes/live/search?query=tea", headers=read).status_code == 200


@pytest.mark.parametrize(
    "address", ["/indexes/notes/documents/caf%E9", "/indexes/notes/search?query=caf%E9", "/indexes/%ff/search"]
)
def test_an_address_in_another_encoding_is_refused(client, address) -> None:
    """All of its bytes would become the same replacement character: documents of two ids would overwrite each other."""
    for method in ("GET", "PUT", "DELETE"):
        response = client.request(method, address, json={"text": "x"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "not_utf8")


def test_endless_headers_are_cut_off(server) -> None:
    with socket.create_connection(address(server)) as connection:
        connection.settimeout(10)
        connection.sendall(GET)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_endless_headers(connection)


def send_endless_headers(connection: socket.socket) -> None:
    for number in range(100):
        connection.sendall(b"X-%d: " % number + b"a" * 10_000 + b"\r\n")
        time.sleep(0.001)


def address(server) -> tuple[str, int]:
    url = urlsplit(server.address)
    return str(url.hostname), int(url.port or 0)


def raw(server, request: bytes) -> bytes:
    """What the service answers to some bytes until it closes the connection or has nothing more to say."""
    with socket.create_connection(address(server)) as connection:
        connection.sendall(request)
        connection.settimeout(1)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except TimeoutError:
            pass
        return answer
