from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

import pytest

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
    "/indexes/%00", "/indexes/%ff/search?query=a", "/indexes/..%2f..%2fetc/documents/passwd", "//etc/passwd",
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
