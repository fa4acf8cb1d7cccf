"""A server that is slow, busy, broken or wrong; every one is a real server on a socket."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from embedding_server import (
    WIDTH,
    EmbeddingServer,
    Fault,
    Handler,
    cut_off,
    half,
    refusal,
    reset,
    serving,
    vector,
)  # fmt: skip
from texts import TEXTS

from searchkit.errors import InputError, RemoteError
from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder
from searchkit.models.remote.address import parse_remote
from searchkit.models.remote.client import Patience
from searchkit.models.remote.runtime import RemoteRuntime

QUICK = Patience(timeout=5, backoff=0.01, longest_wait=2, busy=3)


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with serving() as server:
        yield server


def connect(server: EmbeddingServer, patience: Patience = QUICK, settings: str = "") -> RemoteRuntime:
    return RemoteRuntime(parse_remote(f"openai:tiny@{server.url}{settings}"), patience=patience)


def rows(runtime: RemoteRuntime, texts: list[str]) -> np.ndarray:
    return runtime.forward([runtime.tokenizer.encode(text).ids for text in texts], Conventions())


def expected(texts: list[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


def test_vectors_are_the_server_s(server: EmbeddingServer) -> None:
    np.testing.assert_array_equal(rows(connect(server), TEXTS), expected(TEXTS))
    assert {body["encoding_format"] for body in server.bodies} == {"base64"}
    assert {body["model"] for body in server.bodies} == {"tiny"}


def test_rows_are_normalised_here(server: EmbeddingServer) -> None:
    found = Embedder(f"openai:tiny@{server.url}").encode_passages(TEXTS)
    whole = expected(TEXTS)
    np.testing.assert_allclose(found, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)


# Failures that pass


@pytest.mark.parametrize(
    "fault", [reset, cut_off, half, refusal(500), refusal(502), refusal(503), refusal(409), refusal(408)],
    ids=["reset", "cut-off", "half", "500", "502", "503", "409", "408"],
)  # fmt: skip
def test_a_failure_is_tried_again(server: EmbeddingServer, fault: Fault) -> None:
    runtime = connect(server)
    server.faults.extend([fault, fault])
    np.testing.assert_array_equal(rows(runtime, TEXTS[:5]), expected(TEXTS[:5]))


@pytest.mark.parametrize("fault", [reset, half, refusal(500, "out of order")], ids=["reset", "half", "500"])
def test_a_failure_that_stays_is_given_up(server: EmbeddingServer, fault: Fault) -> None:
    runtime = connect(server)
    server.always, before = fault, len(server.bodies)
    with pytest.raises(RemoteError, match=r"openai:tiny@.* does not answer: .*; gave up after 6 tries"):
        rows(runtime, ["tea"])
    assert len(server.bodies) - before == 6


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with serving() as server:
        name = f"openai:tiny@{server.url}"
    with pytest.raises(RemoteError, match=r"cannot be reached: connection lost .*Is the server running\?"):
        RemoteRuntime(parse_remote(name))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("header", [{"retry_after_ms": "300"}, {"retry_after": "0.3"}])
def test_retry_after_is_obeyed(server: EmbeddingServer, status: int, header: dict[str, str]) -> None:
    runtime = connect(server)
    server.faults.append(refusal(status, "busy", **header))
    began = time.monotonic()
    np.testing.assert_array_equal(rows(runtime, TEXTS[:2]), expected(TEXTS[:2]))
    assert 0.3 <= time.monotonic() - began < 1


def test_a_server_that_asks_to_wait_too_long_is_given_up(server: EmbeddingServer) -> None:
    runtime = connect(server)
    server.faults.append(refusal(429, "busy", retry_after="7200"))
    with pytest.raises(RemoteError, match="asks to wait 3600 s"):
        rows(runtime, ["tea"])


def test_a_server_that_stays_busy_is_given_up(server: EmbeddingServer) -> None:
    runtime = connect(server, Patience(busy=0.5))
    server.always = refusal(429, "busy", retry_after_ms="200")
    with pytest.raises(RemoteError, match="does not answer: status 429: busy"):
        rows(runtime, ["tea"])


def test_a_used_up_quota_is_not_waited_for(server: EmbeddingServer) -> None:
    runtime = connect(server)
    server.faults.append(refusal(429, "insufficient_quota: pay first"))
    with pytest.raises(RemoteError, match="answered status 429: insufficient_quota"):
        rows(runtime, ["tea"])


def test_a_slow_server_gets_fewer_texts(server: EmbeddingServer) -> None:
    def slow(handler: Handler, _: dict[str, Any]) -> bool:
        time.sleep(0.1 * len(server.bodies[-1]["input"]))
        return True

    runtime = connect(server, Patience(timeout=0.5, backoff=0.01))
    server.always = slow
    np.testing.assert_array_equal(rows(runtime, TEXTS[:8]), expected(TEXTS[:8]))
    assert runtime.most_texts <= 4


def test_an_answer_that_never_ends_is_given_up_in_time(server: EmbeddingServer) -> None:
    def drip(handler: Handler, _: dict[str, Any]) -> bool:
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        for _ in range(30):  # each byte in time
            handler.wfile.write(b" ")
            time.sleep(0.05)
        return reset(handler, {})

    runtime = connect(server, Patience(timeout=0.3, backoff=0.01, retries=1))
    server.always = drip
    began = time.monotonic()
    with pytest.raises(RemoteError, match=r"does not answer: no answer within 0\.3 s"):
        rows(runtime, ["tea"])
    assert time.monotonic() - began < 1.5


# Answers that are wrong


def altered(change: Any) -> Fault:
    def fault(_: Handler, answer: dict[str, Any]) -> bool:
        change(answer["data"])
        return True

    return fault


def put(value: Any) -> Fault:
    return altered(lambda data: data[1].update(embedding=value))


def numbered(*numbers: Any) -> Fault:
    return altered(lambda data: [item.update(index=number) for item, number in zip(data, numbers, strict=True)])


ZERO = base64.b64encode(np.zeros(WIDTH, "<f4").tobytes()).decode()
NAN = base64.b64encode(np.full(WIDTH, np.nan, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (altered(lambda data: data.pop()), "2 vectors for 3 texts"),
        (altered(lambda data: data.append(data[0])), "4 vectors for 3 texts"),
        (put([0.5] * (WIDTH - 1)), f"vectors of width 23, 24, expected {WIDTH}"),
        (altered(lambda data: [item.update(embedding=[0.5]) for item in data]), f"width 1, expected {WIDTH}"),
        (put([]), "vectors of width 0, 24"),
        (put([0.5] * (WIDTH - 1) + [float("nan")]), "a vector that is not finite, for text 2 of 3"),
        (put([0.5] * (WIDTH - 1) + [1e300]), "a vector that is not finite, for text 2 of 3"),
        (put(NAN), "a vector that is not finite, for text 2 of 3"),
        (put(ZERO), "a vector that is zero, for text 2 of 3"),
        (put([0] * WIDTH), "a vector that is zero, for text 2 of 3"),
        (put(["0.5"] * WIDTH), "something else than numbers for text 2"),
        (put([None] * WIDTH), "something else than numbers"),
        (put([[0.5] * WIDTH]), "something else than numbers"),
        (put("no base64!"), "something else than numbers"),
        (put(ZERO[:-4]), "something else than numbers"),
        (put(None), "something else than numbers"),
        (numbered(0, 1, 1), r"the indexes \[0, 1, 1\] for 3 texts"),
        (numbered(0, 0, 0), r"the indexes \[0, 0, 0\]"),
        (numbered(1, 2, 3), r"the indexes \[1, 2, 3\]"),
        (numbered(None, None, None), r"the indexes \[None"),
        (numbered(0, 1.0, True), "the indexes"),
    ],
)
def test_a_wrong_answer_is_refused(server: EmbeddingServer, fault: Fault, message: str) -> None:
    runtime = connect(server)
    server.faults.append(fault)
    with pytest.raises(RemoteError, match=f"answered with .*{message}"):
        rows(runtime, TEXTS[:3])


@pytest.mark.parametrize("answer", [[1], {"data": 3}, {"data": [1]}, {"object": "list"}])
def test_an_answer_of_another_form_is_refused(server: EmbeddingServer, answer: Any) -> None:
    def other(handler: Handler, _: dict[str, Any]) -> bool:
        handler.send(200, answer)
        return False

    runtime = connect(server)
    server.faults.append(other)
    with pytest.raises(RemoteError, match="answered with no"):
        rows(runtime, ["tea"])


def test_another_order_is_put_right(server: EmbeddingServer) -> None:
    runtime = connect(server)
    server.always = altered(lambda data: data.reverse())
    np.testing.assert_array_equal(rows(runtime, TEXTS), expected(TEXTS))


# What servers do not take


def at_most(texts: int, status: int = 422) -> Fault:
    def fault(handler: Handler, _: dict[str, Any]) -> bool:
        count = len(handler.server.bodies[-1]["input"])
        return count <= texts or refusal(status, f"batch size {count} > maximum allowed batch size {texts}")(
            handler, {}
        )

    return fault


@pytest.mark.parametrize("status", [400, 413, 422])
def test_batches_shrink_to_what_the_server_takes(server: EmbeddingServer, status: int) -> None:
    runtime = connect(server)
    server.always = at_most(4, status)
    np.testing.assert_array_equal(rows(runtime, TEXTS), expected(TEXTS))
    before = len(server.bodies)
    rows(runtime, TEXTS)
    assert len(server.bodies) - before == -(-(len(TEXTS) + 1) // (runtime.most_texts + 1))  # it is remembered
    assert runtime.most_texts + 1 in (3, 4)


@pytest.mark.parametrize(
    "message",
    ["This model's maximum context length is 20 tokens. However, you requested {n} tokens in the input",
     "Input validation error: `inputs` must have less than 20 tokens. Given: {n}", "the input is too long"],
)  # fmt: skip
def test_a_text_that_is_too_long_is_cut_and_counted(server: EmbeddingServer, message: str) -> None:
    def short_only(handler: Handler, _: dict[str, Any]) -> bool:
        longest = max(len(text.split()) for text in handler.server.bodies[-1]["input"])
        return longest <= 20 or refusal(400, message.format(n=longest))(handler, {})

    model = Embedder(f"openai:tiny@{server.url}")
    server.always = short_only
    long = "word " * 90
    found = model.encode_passages([*TEXTS[:3], long, *TEXTS[3:6]])
    assert model.stats.truncated == 1
    sent = server.bodies[-1]["input"] if "word" in server.bodies[-1]["input"][0] else None
    sent = sent or next(b["input"] for b in reversed(server.bodies) if b["input"][0].startswith("word"))
    assert long.startswith(sent[0])
    assert 10 <= len(sent[0].split()) <= 20
    np.testing.assert_allclose(found[3], vector(sent[0]) / np.linalg.norm(vector(sent[0])), atol=1e-6)


def test_a_text_that_is_refused_for_another_reason_is_said(server: EmbeddingServer) -> None:
    runtime = connect(server)
    server.always = refusal(400, "I do not like it")
    with pytest.raises(RemoteError, match="refused a text of 3 characters: I do not like it"):
        rows(runtime, ["tea"])


def test_a_server_without_base64_is_asked_for_floats(server: EmbeddingServer) -> None:
    def floats_only(handler: Handler, _: dict[str, Any]) -> bool:
        wanted = "encoding_format" not in handler.server.bodies[-1]
        return wanted or refusal(400, "Unrecognized request argument supplied: encoding_format")(handler, {})

    server.always = floats_only
    runtime = connect(server)
    np.testing.assert_allclose(rows(runtime, TEXTS), expected(TEXTS), rtol=1e-6)
    assert sum("encoding_format" in body for body in server.bodies) == 1


def test_requests_at_the_same_time_are_limited(server: EmbeddingServer) -> None:
    model = Embedder(f"openai:tiny@{server.url}", threads=3)
    server.pause = 0.03
    texts = [f"{text} {n}" for n in range(10) for text in TEXTS]
    whole = expected(texts)
    found = model.encode_passages(texts)
    np.testing.assert_allclose(found, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
    assert server.most_at_once == 3
    assert max(len(body["input"]) for body in server.bodies) <= 32


# Keys


def test_the_key_is_sent_and_never_shown(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter22")
    with caplog.at_level(logging.DEBUG):
        runtime = connect(server)
        assert server.headers[-1]["Authorization"] == "Bearer sk-hunter22"
        server.faults.append(refusal(500, "at fault: sk-hunter22"))
        rows(runtime, ["tea"])
        server.faults.append(refusal(401, "wrong key sk-hunter22"))
        with pytest.raises(RemoteError, match=r"wrong key \[key\]; the key comes from OPENAI_API_KEY") as caught:
            rows(runtime, ["tea"])
    assert "hunter22" not in caplog.text + str(caught.value) + repr(runtime) + repr(runtime.model)


def test_a_redirect_is_not_followed(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter22")
    with serving() as other:
        server.always = refusal(307, location=f"{other.url}/embeddings?token=1")
        with pytest.raises(RemoteError, match=rf"redirects to {other.url}/embeddings; give that address"):
            connect(server)
        assert not other.bodies


def test_an_unknown_name_is_answered_with_the_known_ones(server: EmbeddingServer) -> None:
    server.always = refusal(404, "no such model")
    with pytest.raises(RemoteError, match=r"no such model; check the model's name.* The server has the models tiny"):
        RemoteRuntime(parse_remote(f"openai:tony@{server.url}"))


# Templates


def sent(server: EmbeddingServer, settings: str, name: str = "tiny") -> list[str]:
    model = Embedder(f"openai:{name}@{server.url}{settings}")
    model.encode_passages(["a text"])
    model.encode_queries(["a query"])
    model.encode_queries(["a query"], "Find it")
    return [body["input"][0] for body in server.bodies[-3:]]


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ("", ["a text", "a query", "Instruct: Find it\nQuery: a query"]),
        ("#family=intfloat/e5-base-v2", ["passage: a text", "query: a query", "Instruct: Find it\nQuery: a query"]),
        ("#family=qwen3-embedding,document=D ", ["D a text", None, "Instruct: Find it\nQuery:a query"]),
        ("#query=Q: ,document=D: ", ["D: a text", "Q: a query", "Instruct: Find it\nQuery: a query"]),
        ("#template={instruction}|{query}", ["a text", "a query", "Find it|a query"]),
    ],
)
def test_texts_are_put_together_here(server: EmbeddingServer, settings: str, texts: list[str | None]) -> None:
    found = sent(server, settings)
    assert [one for one, meant in zip(found, texts, strict=True) if meant] == [one for one in texts if one]


def test_the_name_tells_the_family(server: EmbeddingServer) -> None:
    assert sent(server, "", "intfloat/multilingual-e5-small")[:2] == ["passage: a text", "query: a query"]


@pytest.mark.parametrize(("settings", "warned"), [("", True), ("#family=e5-small", False), ("#query=Q ", False)])
def test_an_unknown_family_is_said(
    server: EmbeddingServer, settings: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    Embedder(f"openai:tiny@{server.url}{settings}")
    assert ("no known family of models has this name" in caplog.text) == warned


def test_the_server_s_length_limits_passages(server: EmbeddingServer) -> None:
    assert Embedder(f"openai:tiny@{server.url}").max_length == 64
    assert Embedder(f"openai:tiny@{server.url}#length=32").max_length == 32
    with pytest.raises(InputError, match="takes 8 to 64 tokens"):
        Embedder(f"openai:tiny@{server.url}", max_length=100)


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"adapter": "somewhere"}])
def test_what_only_the_server_can_set_is_refused(server: EmbeddingServer, options: dict[str, str]) -> None:
    with pytest.raises(InputError, match="what its server computes with is set there"):
        Embedder(f"openai:tiny@{server.url}", **options)  # type: ignore[arg-type]
