from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM, Reply, Script, written

from searchkit.errors import BusyError
from searchkit.training.synthesis.answers import schema_of
from searchkit.training.synthesis.journal import Journal
from searchkit.training.synthesis.journal import Reply as Kept
from searchkit.training.synthesis.llm import Client
from searchkit.training.synthesis.pacing import Budget
from searchkit.training.synthesis.protocol import Endpoint, Refusal, Request, answer_of, meaning_of


def request(n: int, text: str = "Say something") -> Request:
    return Request("sts@1", "triple", ({"role": "user", "content": f"{text} {n}"},), n)


ANSWER = {"S1": "one", "S2": "two", "S3": "three"}


def ask(
    server: FakeLLM, folder: Path, requests: list[Request], budget: Budget | None = None, **changes: Any
) -> tuple[Client, dict[str, Kept | None]]:
    """Ask, and give the client with what the journal holds for each question."""
    endpoint = Endpoint(**{"model": "m", "base_url": server.url, "backoff": 0.01, "timeout": 5, **changes})

    async def run() -> tuple[Client, dict[str, Kept | None]]:
        with Journal(folder) as journal:
            async with Client(endpoint, "sk-12345678", journal, budget or Budget(), lambda: None) as client:
                await client.ask_all(requests)
            return client, {one.messages[0]["content"]: journal.get(one.key(endpoint)) for one in requests}

    return asyncio.run(run())


def always(reply: Reply) -> Script:
    return lambda asked, seen, headers: reply


def test_no_more_questions_at_once_than_allowed(tmp_path: Path) -> None:
    with FakeLLM(always(Reply(json.dumps(ANSWER), delay=0.15))) as server:
        ask(server, tmp_path, [request(n) for n in range(40)], concurrency=7)
    assert server.peak == 7
    assert len(server.delivered) == 40


def test_a_server_is_left_alone_for_as_long_as_it_asks(tmp_path: Path) -> None:
    times: list[float] = []

    def busy_once(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        times.append(time.monotonic())
        if len(times) == 1:
            return Reply("later", status=429, headers={"Retry-After": "1"})
        return Reply(json.dumps(ANSWER), delay=0.1)

    with FakeLLM(busy_once) as server:
        client, found = ask(server, tmp_path, [request(n) for n in range(6)], concurrency=2)
    assert all(found.values())
    assert not [one for one in times if times[0] + 0.25 < one < times[0] + 1]  # one was on its way already
    assert not client.failed


def test_concurrency_adapts_to_a_server_that_accepts_few_requests(tmp_path: Path) -> None:
    now = 0

    def narrow(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        nonlocal now
        now = server._now
        if now > 3:
            return Reply("too many", status=429, headers={"Retry-After-Ms": "60"})
        return Reply(json.dumps(ANSWER), delay=0.02)

    with FakeLLM(narrow) as server:
        _, found = ask(server, tmp_path, [request(n) for n in range(50)], concurrency=16, retries=0)
    assert all(found.values())
    assert sum(server.asked.values()) < 200


def test_a_question_is_given_up_in_the_end_and_the_reason_kept(tmp_path: Path) -> None:
    def one_bad(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        return Reply("x", status=500) if asked["messages"][0]["content"].endswith(" 3") else Reply(json.dumps(ANSWER))

    with FakeLLM(one_bad) as server:
        client, found = ask(server, tmp_path, [request(n) for n in range(6)], retries=2)
    assert [text for text, reply in found.items() if reply is None] == ["Say something 3"]
    assert list(client.failed.values()) == ["given up after 3 tries: status 500: x"]
    assert max(server.asked.values()) == 3


def test_a_dead_server_ends_the_run(tmp_path: Path) -> None:
    with FakeLLM() as server:
        pass  # its port is closed now
    client, found = ask(server, tmp_path, [request(0)], retries=1, concurrency=16)  # one question is enough
    assert client.stopped.startswith("the server does not answer (given up after 2 tries: connection lost)")
    assert not any(found.values())


def test_a_model_that_never_gives_a_usable_answer_ends_the_run(tmp_path: Path) -> None:
    with FakeLLM(always(Reply("Sure! Here you go."))) as server:
        client, _ = ask(server, tmp_path, [request(n) for n in range(100)], concurrency=4)
    assert client.stopped == "none of the first 20 answers was usable: not JSON (20); try another model"
    assert sum(server.asked.values()) < 30


@pytest.mark.parametrize(
    "takes",
    [{"type", "json_schema"}, {"type", "schema"}, {"type"}, set()],
    ids=["json_schema", "schema", "json", "text"],
)
def test_formats_that_a_server_does_not_accept_are_dropped(tmp_path: Path, takes: set[str]) -> None:
    def picky(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        if asked.get("response_format", {}).keys() != takes:
            return Reply("response_format is not supported", status=400)
        return Reply(f"<think>Let me see {{}}</think>```json\n{json.dumps(ANSWER)}\n```")

    with FakeLLM(picky) as server:
        client, found = ask(server, tmp_path, [request(n) for n in range(20)])
    assert not client.stopped
    assert [answer_of(request(0), reply).model_dump() for reply in found.values() if reply] == [ANSWER] * 20


# As llama-cpp-python's server answers: status 500 for what it does not accept, and for what it fails at.
INVALID = (
    "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), "
    "'msg': \"Input should be 'text' or 'json_object'\", 'input': 'json_schema'}]"
)


def failing(message: str) -> Reply:
    error = {"message": message, "type": "internal_server_error", "param": None, "code": None}
    return Reply(raw=json.dumps({"error": error}).encode(), status=500)


def test_a_parameter_rejected_with_status_500_is_dropped_and_not_retried(tmp_path: Path) -> None:
    def llama(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        accepted = asked["response_format"]["type"] == "json_object"
        return Reply(json.dumps(ANSWER)) if accepted else failing(INVALID)

    with FakeLLM(llama) as server:
        client, found = ask(server, tmp_path, [request(n) for n in range(5)], concurrency=1, retries=0)
    assert (client.stopped, client.failed) == ("", {})
    assert [reply.status for reply in found.values() if reply] == ["ok"] * 5
    assert sum(server.asked.values()) == 6  # one in vain, whatever the number of requests
    assert server.bodies[-1]["response_format"]["schema"] == schema_of("triple")  # which that server obeys


def test_status_500_without_such_a_message_is_a_failure_to_retry(tmp_path: Path) -> None:
    def moody(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        return Reply(json.dumps(ANSWER)) if seen else failing("llama_decode returned 1")

    with FakeLLM(moody) as server:
        _, found = ask(server, tmp_path, [request(n) for n in range(3)], concurrency=1, retries=1)
    assert [reply.status for reply in found.values() if reply] == ["ok"] * 3
    assert {body["response_format"]["type"] for body in server.bodies} == {"json_schema"}


def test_what_the_server_said_is_shown(tmp_path: Path) -> None:
    with FakeLLM(always(failing(INVALID))) as server:
        client, _ = ask(server, tmp_path, [request(0)], retries=6)
        assert sum(server.asked.values()) == 4  # each way to request JSON once
    assert client.stopped.startswith("the server answered 500: [{'type': 'literal_error', 'loc': ('body', 'response_f")
    with FakeLLM(always(failing("out of memory"))) as server:
        client, _ = ask(server, tmp_path, [request(n) for n in range(3)], retries=1, concurrency=3)
    assert client.stopped == (
        "the server keeps failing (given up after 2 tries: status 500: out of memory); "
        "run the same command again to resume"
    )


@pytest.mark.parametrize(
    ("status", "message", "refusal"),
    [
        (500, INVALID, Refusal.FORM),
        (500, "1 validation error: response_format.type", Refusal.FORM),
        (501, "response_format json_schema is not supported", Refusal.FORM),
        (500, "top_p and temperature: CUDA error, device-side assert", Refusal.RETRY),
        (500, "invalid memory access", Refusal.RETRY),
        (503, "busy", Refusal.RETRY),
        (429, "slow down", Refusal.RETRY),
        (429, "insufficient_quota", Refusal.FATAL),
        (422, "Extra inputs are not permitted: top_p", Refusal.FORM),
        (400, "This model's maximum context length is 10 tokens", Refusal.CONTENT),
        (401, "wrong key", Refusal.FATAL),
    ],
)
def test_a_refusal_is_told_from_a_failure_by_status_and_body(status: int, message: str, refusal: Refusal) -> None:
    assert meaning_of(status, message) is refusal


def test_a_further_draw_of_a_request_has_a_seed_where_the_server_takes_one(tmp_path: Path) -> None:
    def same(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        """llama-cpp-python's server starts each answer from the same seed."""
        return Reply(json.dumps(ANSWER | {"S1": f"of seed {asked.get('seed', 0)}"}))

    draws = [Request("p", "triple", request(0).messages, draw) for draw in (0, 1, (1 << 32) + 5)]
    endpoint = Endpoint("m")
    with FakeLLM(same) as server:
        ask(server, tmp_path / "taken", draws, concurrency=1)
        assert [body.get("seed") for body in server.bodies] == [None, 1, 5]
    with Journal(tmp_path / "taken") as journal:
        kept = [journal.get(draw.key(endpoint)) for draw in draws]
    assert len({reply.text for reply in kept if reply}) == 3

    def strict(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        return Reply("Extra inputs are not permitted: seed", status=422) if "seed" in asked else same(asked, seen, {})

    with FakeLLM(strict) as server:
        client, _ = ask(server, tmp_path / "refused", draws, concurrency=1)
        assert sum(server.asked.values()) == 4
    assert not client.stopped


def test_newer_models_get_the_names_they_want(tmp_path: Path) -> None:
    def new(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        if "max_tokens" in asked:
            return Reply("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", status=400)
        if "temperature" in asked:
            return Reply("Unsupported value: 'temperature' does not support 0.5", status=400)
        return Reply(json.dumps(ANSWER))

    with FakeLLM(new) as server:
        _, found = ask(server, tmp_path, [request(n) for n in range(9)], temperature=0.5, max_output_tokens=77)
    assert all(found.values())
    assert server.bodies[-1]["max_completion_tokens"] == 77
    assert server.bodies[-1]["response_format"]["type"] == "json_schema"


def test_one_question_that_is_refused_stops_no_other(tmp_path: Path) -> None:
    def filtered(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        bad = asked["messages"][0]["content"].endswith(" 0")
        return Reply("content_filter: no", status=400) if bad else Reply(json.dumps(ANSWER))

    with FakeLLM(filtered) as server:
        _, found = ask(server, tmp_path, [request(n) for n in range(9)])
    first, *others = (reply.status for reply in found.values() if reply)
    assert first == "refused"
    assert others == ["ok"] * 8


def test_an_error_that_another_time_may_not_come_is_not_kept(tmp_path: Path) -> None:
    reloading = True

    def sometimes(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        last = int(asked["messages"][0]["content"].rpartition(" ")[2])
        if last and last % 5 == 0 and reloading:
            return Reply("the model is being reloaded, try later", status=400)
        if last == 7:
            return Reply("This model's maximum context length is 10 tokens", status=400)
        return Reply(json.dumps(ANSWER))

    with FakeLLM(sometimes) as server:
        questions = [request(n) for n in range(11)]
        client, found = ask(server, tmp_path, questions, concurrency=1)
        assert list(client.failed.values()) == ["the server answered 400: the model is being reloaded, try later"] * 2
        assert [text for text, reply in found.items() if reply is None] == ["Say something 5", "Say something 10"]
        reloading = False
        client, found = ask(server, tmp_path, questions)
    assert [text for text, reply in found.items() if reply and reply.status != "ok"] == ["Say something 7"]
    assert sorted(server.asked.values()) == [1] * 9 + [2, 2]


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_of_an_odd_shape_ends_nothing(tmp_path: Path, status: int) -> None:
    odd = {"choices": [{"message": {"content": json.dumps(ANSWER)}, "finish_reason": ["stop"]}],
           "usage": {"prompt_tokens": -1000, "completion_tokens": 10**30}}  # fmt: skip
    if status == 400:
        odd = {"error": {"message": "no \ud800 content_filter"}}

    def once(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        if asked["messages"][0]["content"].endswith(" 3"):
            return Reply(raw=json.dumps(odd).encode(), status=status)
        return Reply(json.dumps(ANSWER))

    with FakeLLM(once) as server:
        client, found = ask(server, tmp_path, [request(n) for n in range(9)], concurrency=1)
    assert not client.stopped
    reply = found["Say something 3"]
    assert reply is not None
    assert reply.status == ("ok" if status == 200 else "refused")
    assert reply.text == (json.dumps(ANSWER) if status == 200 else "no ? content_filter")
    assert (reply.estimated, 0 < reply.tokens_in < 500) == ((True, True) if status == 200 else (False, False))


def test_a_server_that_counts_no_tokens_cannot_overdraw_the_budget(tmp_path: Path) -> None:
    body = {"choices": [{"message": {"content": json.dumps(ANSWER)}}],
            "usage": {"prompt_tokens": -500, "completion_tokens": 1}}  # fmt: skip
    with FakeLLM(always(Reply(raw=json.dumps(body).encode()))) as server:
        limit = Budget(max_tokens=2000)
        client, found = ask(server, tmp_path, [request(n) for n in range(200)], limit, max_output_tokens=40)
    assert client.stopped == "the budget is used up"
    assert 1000 < sum(reply.tokens_in + reply.tokens_out for reply in found.values() if reply) <= 2000


def test_answers_are_reused_and_draws_of_the_same_request_are_distinct(tmp_path: Path) -> None:
    with FakeLLM(lambda asked, seen, headers: Reply(json.dumps(written(asked) | {"S1": f"time {seen}"}))) as server:
        same = [Request("p", "triple", request(0).messages, draw) for draw in range(3)]
        ask(server, tmp_path, same, concurrency=1)
        ask(server, tmp_path, same)
    assert sum(server.asked.values()) == 3


def test_a_budget_is_never_overdrawn(tmp_path: Path) -> None:
    with FakeLLM(always(Reply(json.dumps(ANSWER), delay=0.01))) as server:
        budget = Budget(max_tokens=900)
        client, _ = ask(server, tmp_path, [request(n) for n in range(500)], budget, max_output_tokens=40)
        spent = sum(usage["total_tokens"] for usage in server.delivered)
    assert client.stopped == "the budget is used up"
    assert 400 < spent <= 900


def test_tokens_that_the_server_does_not_count_are_guessed_and_marked(tmp_path: Path) -> None:
    with FakeLLM(always(Reply(json.dumps(ANSWER), usage=False))) as server:
        _, found = ask(server, tmp_path, [request(1)])
    (reply,) = found.values()
    assert reply is not None
    assert reply.estimated
    assert 0 < reply.tokens_out < 30


def test_one_process_writes_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(BusyError):
        Journal(tmp_path)


def test_an_answer_counts_once(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for _ in range(2):
            journal.put(b"key", "p", "m", Kept("ok", "text", 3, 4))
            journal.count("timeout")
        assert (journal.answers, journal.tokens_in, journal.tokens_out) == (1, 3, 4)
    with Journal(tmp_path) as journal:
        assert journal.get(b"key") == Kept("ok", "text", 3, 4)
        assert (journal.answers, journal.totals()) == (1, {"timeout": 2})


def test_a_model_that_thinks_gets_the_whole_limit_and_short_answers_a_low_one(tmp_path: Path) -> None:
    """As vLLM and Ollama without a reasoning parser: the thoughts come first, within the answer."""

    def thinking(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        if asked["max_tokens"] < 2000:
            return Reply("<think>The passage is about", finish="length")
        return Reply('<think>The {passage} is about bees.</think>\n{"keywords": "bee dance"}')

    asked = [
        Request("queries@2", "queries", ({"role": "user", "content": str(n)},), kinds=("keywords",)) for n in range(5)
    ]
    with FakeLLM(thinking) as server:
        client, found = ask(server, tmp_path / "thinking", asked, concurrency=1)
    assert [body["max_tokens"] for body in server.bodies] == [256] + [4096] * 5
    assert [reply.status for reply in found.values() if reply] == ["ok"] * 5
    assert client.examples == 5
    with FakeLLM(always(Reply('{"keywords": "bee bee bee bee', finish="length"))) as server:
        ask(server, tmp_path / "rambling", asked, concurrency=1)
    assert {body["max_tokens"] for body in server.bodies} == {256}  # a rambling model gets no more


def test_a_reply_whose_thoughts_are_apart_is_read(tmp_path: Path) -> None:
    """As vLLM, Ollama and llama.cpp with a reasoning parser; where the answer was cut there is no content at all."""

    def apart(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        thoughts = {"reasoning_content": "It is about bees.", "tool_calls": []}
        if asked["max_tokens"] < 2000:
            return Reply(None, raw=json.dumps({
                "choices": [{"message": {"content": None, **thoughts}, "finish_reason": "length"}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 256},
            }).encode())  # fmt: skip
        return Reply('{"keywords": "bee dance"}', message=thoughts)

    asked = Request("queries@2", "queries", ({"role": "user", "content": "x"},), kinds=("keywords",))
    with FakeLLM(apart) as server:
        client, _ = ask(server, tmp_path, [asked])
    assert (client.examples, sum(server.asked.values())) == (1, 2)


def test_a_server_that_answers_one_request_at_a_time_is_not_sent_more_than_it_answers_in_time(tmp_path: Path) -> None:
    """Requests wait in its queue; 16 at once would time out there, be paid for, and be sent again."""
    free_at = time.monotonic()

    def one_slot(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        nonlocal free_at
        free_at = max(free_at, time.monotonic()) + 0.3
        return Reply(json.dumps(ANSWER), delay=free_at - time.monotonic())

    with FakeLLM(one_slot) as server:
        client, found = ask(server, tmp_path, [request(n) for n in range(12)], concurrency=16, timeout=2.4)
    assert all(found.values())
    assert sum(server.asked.values()) == 12
    assert server.peak <= 4
    assert not client.failed


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",  # vLLM
        "Requested tokens (5021) exceed context window of 4096",  # llama-cpp-python
        "the request exceeds the available context size (4096 tokens), try increasing it",  # llama.cpp
        "input length exceeds the context length",  # Ollama
    ],
)
@pytest.mark.parametrize("status", [400, 500])
def test_a_passage_too_long_for_the_model_is_left_out_and_not_sent_again(
    tmp_path: Path, message: str, status: int
) -> None:
    def short(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        too_long = asked["messages"][0]["content"].endswith(" 1")
        return Reply(message, status=status) if too_long else Reply(json.dumps(ANSWER))

    with FakeLLM(short) as server:
        client, found = ask(server, tmp_path, [request(n) for n in range(4)], concurrency=1)
    assert not client.stopped
    assert [reply.status for reply in found.values() if reply] == ["ok", "refused", "ok", "ok"]
    assert sum(server.asked.values()) == 4


def test_a_model_that_is_still_being_loaded_is_waited_for(tmp_path: Path) -> None:
    """Ollama answers late, llama.cpp's server with status 503; no other request is sent to wait there meanwhile."""
    loading = [Reply(json.dumps(ANSWER), delay=1.5), Reply("Loading model", status=503)]

    def at_first(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        return loading.pop(0) if loading else Reply(json.dumps(ANSWER))

    with FakeLLM(at_first) as server:
        client, found = ask(server, tmp_path, [request(n) for n in range(8)], concurrency=8, timeout=1)
    assert all(found.values())
    assert (sum(server.asked.values()), client.failed) == (10, {})


def test_a_timeout_says_what_to_do(tmp_path: Path) -> None:
    with FakeLLM(always(Reply(json.dumps(ANSWER), delay=2))) as server:
        client, _ = ask(server, tmp_path, [request(0)], timeout=0.3, retries=0)
    assert "timeout: no answer within 0.3 s; allow more with --timeout" in client.stopped
