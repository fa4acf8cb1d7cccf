from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import httpx
import pytest
from serving import KEYS

from searchkit.errors import InputError
from searchkit.server.logs import JsonFormatter
from searchkit.server.process import check_address
from searchkit.server.settings import Keys, Settings, read_keys

SEARCH = ("GET", "/indexes/notes/search?query=tea")
WRITES = [
    ("POST", "/indexes/notes/documents"),
    ("PUT", "/indexes/notes/documents/1"),
    ("PUT", "/indexes/notes/documents/search"),
    ("DELETE", "/indexes/notes/documents/search"),
    ("POST", "/indexes/notes/delete"),
]
READS = [SEARCH, ("GET", "/indexes"), ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/openapi.json")]


def status(client: httpx.Client, method: str, path: str, key: str | None = None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"json": {}} if method in ("PUT", "POST") else {}
    return client.request(method, path, headers=headers, **body).status_code


def test_keys_open_what_they_are_for(serve) -> None:
    with httpx.Client(base_url=serve(keys=KEYS).address) as client:
        for path in ("/livez", "/readyz"):
            assert status(client, "GET", path) == 200
        for request in READS:
            assert status(client, *request) == 401
            assert status(client, *request, "wrong-key") == 401
            assert status(client, *request, KEYS.read[0]) == 200
            assert status(client, *request, KEYS.write[0]) == 200
        for request in WRITES:
            assert status(client, *request) == 401
            assert status(client, *request, "wrong-key") == 401
            assert status(client, *request, KEYS.read[0]) == 403
            assert status(client, *request, KEYS.write[0]) in (400, 404)  # let in, and then a mistake
        response = client.get(SEARCH[1])
        assert response.headers["www-authenticate"] == "Bearer"
        assert status(client, "GET", f"{SEARCH[1]}&key={KEYS.read[0]}&api_key={KEYS.read[0]}") == 401
        for value in ("Basic " + KEYS.read[0], KEYS.read[0], "Bearer", "Bearer \xff", f"Bearer {KEYS.read[0]}x"):
            assert client.get(SEARCH[1], headers={"Authorization": value.encode("latin-1")}).status_code == 401


def test_without_keys_a_service_reads_only(client) -> None:
    assert status(client, *SEARCH) == 200
    for request in WRITES:
        assert status(client, *request) == 403
        assert status(client, *request, "some-key") == 403


def test_no_auth_lets_everybody_read_and_nobody_write(serve) -> None:
    with httpx.Client(base_url=serve(keys=KEYS, no_auth=True).address) as client:
        assert status(client, *SEARCH) == 200
        assert status(client, *WRITES[0]) == 401
        assert status(client, *WRITES[0], KEYS.write[0]) == 400


def test_other_addresses_need_a_key() -> None:
    with pytest.raises(InputError, match="SEARCHKIT_READ_KEYS"):
        Settings((Path("a"),), host="0.0.0.0")
    assert Settings((Path("a"),), host="0.0.0.0", no_auth=True)
    assert Settings((Path("a"),), host="::", keys=KEYS)
    assert Settings((Path("a"),), host="::1").loopback


def test_an_address_that_cannot_be_used_is_told_before_models_load(server) -> None:
    port = server.servers[0].sockets[0].getsockname()[1]
    with pytest.raises(InputError, match=rf"127\.0\.0\.1 port {port}: .*choose another --port"):
        check_address(Settings((Path("a"),), port=port))
    check_address(Settings((Path("a"),), port=0))


def test_load_balancers_may_ask_for_the_head_alone(client) -> None:
    for path in ("/livez", "/readyz"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")


def test_keys_come_from_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nread filed-key\nwrite secret-key-2\n")
    keys = read_keys(file, {"SEARCHKIT_READ_KEYS": "first-key, second-key", "SEARCHKIT_WRITE_KEYS": ""})
    assert keys == Keys(("first-key", "second-key", "filed-key"), ("secret-key-2",))
    assert "secret" not in repr(Settings((Path("a"),), keys=keys))
    with pytest.raises(InputError, match="8 or more"):
        read_keys(None, {"SEARCHKIT_READ_KEYS": "short"})
    file.write_text("admin key-of-an-admin\n")
    with pytest.raises(InputError, match=":1: expected"):
        read_keys(file, {})


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""])
def test_another_host_s_name_is_refused_on_loopback(client, host) -> None:
    response = client.get("/indexes", headers={"Host": host})
    assert response.status_code in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:80"])
def test_loopback_s_names_are_accepted(client, host) -> None:
    assert client.get("/indexes", headers={"Host": host}).status_code == 200


def test_cors_is_for_listed_origins(serve) -> None:
    origin = "https://search.example"
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    with httpx.Client(base_url=serve(keys=KEYS, cors=(origin,)).address) as client:
        answer = client.options("/indexes/notes/search", headers={"Origin": origin, **preflight})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert "Authorization" in answer.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        assert client.get("/indexes", headers={"Origin": origin}).headers["access-control-allow-origin"] == origin
        evil = {"Origin": "https://evil.example"}
        assert "access-control-allow-origin" not in client.get("/indexes", headers=evil).headers
        assert client.options("/indexes", headers={**evil, **preflight}).status_code == 400
    with pytest.raises(InputError, match="origin"):
        Settings((Path("a"),), cors=("*",))


@pytest.mark.parametrize("sent", ["abc-1.2_3", "x" * 65, "a b", 'a"b', "", "é"])
def test_a_request_s_id_comes_back_if_it_is_harmless(client, sent) -> None:
    answer = client.get("/livez", headers={"X-Request-Id": sent.encode("utf-8")}).headers["x-request-id"]
    assert (answer == sent) == (sent == "abc-1.2_3")
    assert answer.isascii()


def test_a_body_over_the_limit_is_told_the_limit(serve) -> None:
    with httpx.Client(base_url=serve(max_body=1000).address) as client:

        def parts():
            yield b'{"query": "' + b"x" * 2000

        for content in (b"x" * 2000, parts()):
            response = client.post(
                "/indexes/notes/search", content=content, headers={"Content-Type": "application/json"}
            )
            assert response.status_code == 413
            assert "1000 bytes" in response.json()["error"]["message"]
        assert client.get(SEARCH[1]).status_code == 200


def test_a_request_past_its_deadline_gets_504(serve, monkeypatch) -> None:
    server = serve(deadline=0.2)
    index = server.config.app.state.service.indexes["notes"]
    whole = index.current

    def slow():
        time.sleep(0.5)
        return whole()

    monkeypatch.setattr(index, "current", slow)
    with httpx.Client(base_url=server.address) as client:
        response = client.get(SEARCH[1])
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        monkeypatch.undo()
        assert client.get(SEARCH[1]).status_code in (200, 504)


def _lines(caplog: pytest.LogCaptureFixture) -> str:
    records = (record for record in caplog.records if record.name.startswith("searchkit"))
    return "\n".join(map(JsonFormatter().format, records))


def test_log_lines_hold_no_texts_and_no_keys_unless_wanted(serve, caplog) -> None:
    caplog.set_level(logging.INFO)
    for log_texts in (False, True):
        caplog.clear()
        with httpx.Client(base_url=serve(keys=KEYS, log_texts=log_texts).address) as client:
            status(client, "GET", "/indexes/notes/search?query=juniper%0Aforged", KEYS.read[0])
        began = time.monotonic()
        while '"message": "request"' not in (lines := _lines(caplog)) and time.monotonic() - began < 20:
            time.sleep(0.01)  # the line is written after the answer
        assert ("juniper" in lines) == log_texts
        assert KEYS.read[0] not in lines
        row = next(json.loads(line) for line in lines.splitlines() if '"message": "request"' in line)
        assert (row["route"], row["status"], row["index"]) == ("/indexes/{name}/search", 200, "notes")
