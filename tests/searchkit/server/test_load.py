from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from fastapi import Request
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.server.admission import Admission
from searchkit.server.embedding import EmbeddingQueue, Text
from searchkit.server.errors import LONGEST_PAUSE, ServerError, handle, overloaded
from searchkit.server.metrics import Metrics

SEARCH = "/indexes/notes/search?query=tea"


def counter(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_under_overload_a_client_that_retries_is_served(serve) -> None:
    server = serve(queue_tokens=200)

    async def ask(retries: int) -> list[object]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=retries) as api:
            calls = (api.embeddings.create(model="builtin", input=[f"{n} {text}" for text in TEXTS]) for n in range(20))
            return await asyncio.gather(*calls, return_exceptions=True)

    refused = [each for each in asyncio.run(ask(0)) if isinstance(each, Exception)]
    assert refused
    for error in refused:
        assert isinstance(error, openai.RateLimitError)
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
        assert int(error.response.headers["retry-after-ms"]) <= 1000 * int(error.response.headers["retry-after"])
    # Twenty callers for one place: somebody may be refused many times on a crowded machine.
    assert [each for each in asyncio.run(ask(60)) if isinstance(each, Exception)] == []
    with httpx.Client(base_url=server.address) as client:
        assert counter(client, "searchkit_refused_total") >= len(refused)
        assert counter(client, "searchkit_queued_tokens") == 0
        assert client.get("/readyz").status_code == 200  # busy is not broken


def test_a_refusal_is_held_back_so_that_refusals_do_not_fill_the_time() -> None:
    request = Request(
        {"type": "http", "method": "GET", "path": "/indexes/a/search", "headers": [], "query_string": b""}
    )
    for wait, held in ((0.2, 0.2), (60.0, LONGEST_PAUSE)):
        began = time.monotonic()
        response = asyncio.run(handle(request, overloaded(wait, "too much waits")))
        assert held <= time.monotonic() - began < held + 5
        assert response.status_code == 429


def admission(pace: float = 0.0, **options) -> Admission:
    """One for tokens that has seen answers, each of so many seconds a token."""
    made = Admission("tokens", 100, 10.0, lambda _: None, **options)
    for _ in range(8 if pace else 0):
        made._note(pace, 1)
    return made


def is_admitted(to: Admission, amount: int) -> bool:
    try:
        with to.admitted(amount):
            return True
    except ServerError:
        return False


def test_admission_takes_a_large_request_and_tells_the_wait() -> None:
    tokens = admission(0.02)
    with tokens.admitted(450):  # larger than the limit, but nothing else waits
        with pytest.raises(ServerError) as refused, tokens.admitted(1):
            pass
        assert refused.value.headers == {"Retry-After": "8", "retry-after-ms": "8000"}  # 400 of 450 tokens
    assert is_admitted(tokens, 1)
    assert tokens.waiting == 0


def test_admission_is_by_time_where_the_model_is_slow() -> None:
    for ahead, room in ((19, True), (20, False)):  # 20 tokens take the ten seconds that are allowed
        tokens = admission(0.5)
        with tokens.admitted(ahead):
            assert is_admitted(tokens, 1) == room


def test_a_slow_model_serves_a_few_callers() -> None:
    for requests, amount, room in ((7, 2, True), (8, 1, True), (8, 2, False), (5, 3, False)):  # at a second a token
        tokens = admission(1.0, longest_patience=15.0)
        with ExitStack() as stack:
            for _ in range(requests):
                stack.enter_context(tokens.admitted(amount))
            assert is_admitted(tokens, 1) == room


def test_admission_learns_from_the_answers() -> None:
    tokens = admission()
    for _ in range(8):
        with tokens.admitted(2):
            time.sleep(0.02)
    assert 0.01 <= tokens._pace < 0.05
    with pytest.raises(ZeroDivisionError), tokens.admitted(1):
        1 / 0  # noqa: B018
    assert (tokens._measured, tokens.waiting) == (8, 0)  # a failure says nothing of the pace


def test_a_small_request_is_admitted_beside_a_large_one_of_which_only_a_turn_is_ahead() -> None:
    # At half a second a token: a small one waits for 10 tokens, a large one for as many as it has itself.
    for ahead, amount, room in ((99, 5, True), (99, 25, True), (99, 40, False), (25, 40, True)):
        tokens = admission(0.5, turn=10, longest_patience=15.0)
        with tokens.admitted(ahead):
            assert is_admitted(tokens, amount) == room


def test_a_small_request_does_not_wait_for_all_of_a_large_one() -> None:
    metrics = Metrics()
    queue = EmbeddingQueue("m", Embedder("builtin"), 1, Admission("t", 10**6, 60, lambda _: None), metrics, 0)
    done: list[str] = []

    async def embed(name: str, texts: list[Text]) -> None:
        await queue.embed(texts)
        done.append(name)

    async def both() -> None:
        large = asyncio.create_task(embed("large", [Text("tea " * 100)] * 200))
        await asyncio.sleep(0.01)
        await asyncio.gather(large, embed("small", [Text("tea")]))

    asyncio.run(both())
    queue.close()
    assert done == ["small", "large"]


def test_texts_of_many_requests_share_batches_and_keep_their_vectors() -> None:
    embedder, metrics = Embedder("builtin"), Metrics()
    queue = EmbeddingQueue("m", embedder, 1, Admission("t", 10**6, 60, lambda _: None), metrics, 100)

    async def embed() -> list[np.ndarray]:
        answers = await asyncio.gather(*(queue.embed([Text(text, "")]) for text in TEXTS))
        again = await asyncio.gather(*(queue.embed([Text(text, "")]) for text in TEXTS))  # from the cache
        assert all((a.rows == b.rows).all() for a, b in zip(answers, again, strict=True))
        return [answer.rows[0] for answer in answers]

    rows = asyncio.run(embed())
    queue.close()
    np.testing.assert_allclose(np.stack(rows), embedder.encode_queries(TEXTS, ""), atol=1e-6)
    read = metrics.registry.get_sample_value
    assert read("searchkit_batch_texts_count", {"model": "m"}) < len(TEXTS)
    assert read("searchkit_query_cache_total", {"result": "hit"}) == len(TEXTS)


def test_the_same_text_under_another_instruction_is_another_vector(client) -> None:
    bodies = [{"input": "tea", "instruction": each} for each in ("Find drinks", "Find drinks ", "")]
    answers = [client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"] for body in bodies * 2]
    assert answers[:3] == answers[3:]
    assert answers[0] != answers[2]


def test_metrics_count_what_was_answered(serve) -> None:
    with httpx.Client(base_url=serve().address) as client:
        for _ in range(7):
            client.get(SEARCH)
        client.get("/indexes/none/search?query=a")
        client.patch("/coffee")
        text = client.get("/metrics").text
    assert 'searchkit_requests_total{method="GET",route="/indexes/{name}/search",status="200"} 7.0' in text
    assert 'searchkit_requests_total{method="GET",route="/indexes/{name}/search",status="404"} 1.0' in text
    assert 'searchkit_requests_total{method="other",route="other",status="404"} 1.0' in text
    assert 'searchkit_index_commit{index="notes"}' in text
    assert 'searchkit_query_cache_total{result="hit"} 6.0' in text
    assert 'searchkit_stage_seconds_count{stage="rank"} 7.0' in text


def test_readiness_fails_when_the_model_does(serve, monkeypatch) -> None:
    server = serve()
    embedder = server.config.app.state.service.models["builtin"].embedder
    with httpx.Client(base_url=server.address) as client:
        assert client.get("/readyz").status_code == 200
        monkeypatch.setattr(embedder, "encode_tokens", lambda *_: 1 / 0)
        time.sleep(1.1)  # the last check counts for a second
        response = client.get("/readyz")
        assert (response.status_code, list(response.json()["failures"])) == (503, ["model builtin"])
        assert client.get("/livez").status_code == 200


WRITER = """
import sys
from searchkit.engine import SearchEngine
from searchkit.records import Document
with SearchEngine.open(sys.argv[1], writable=True) as writer:
    for number in range(1, 101):
        writer.add([Document(str(number), f"Quince tree {number}.")])
        print(writer.snapshot.generation, flush=True)
"""


def test_every_answer_is_of_one_commit_while_another_process_commits_100_times(serve, tmp_path: Path) -> None:
    folder = tmp_path / "live.index"
    with SearchEngine.create(folder, model="builtin") as engine:
        engine.add([Document("0", "A quince tree.")])
        commits = [engine.snapshot.generation]
    address = serve(folder).address
    answers: list[tuple[int, int]] = []
    stopped = threading.Event()

    def read() -> None:
        with httpx.Client(base_url=address, timeout=30) as client:
            while not stopped.is_set():
                mode = "lexical" if len(answers) % 2 else "hybrid"
                answer = client.get(f"/indexes/live/search?query=quince&k=200&mode={mode}").json()
                answers.append((answer["commit"], len(answer["hits"])))

    command = [sys.executable, "-c", WRITER, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=address, timeout=30) as client:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
                assert writer.stdout is not None
                for line in writer.stdout:
                    commits.append(int(line))
                    newest = client.get("/indexes/live/search?query=quince&k=200").json()
                    assert len(newest["hits"]) >= len(commits)  # at once
        finally:
            stopped.set()
        for reader in readers:
            reader.result()
    assert len(commits) == 101
    assert len({commit for commit, _ in answers}) > 10
    for commit, hits in answers:
        assert hits == next(n for n, last in enumerate(commits, start=1) if commit <= last)


def test_after_sigterm_requests_are_finished_and_the_process_exits_with_0(notes) -> None:
    command = [sys.executable, "-m", "searchkit.cli.main", "serve", str(notes), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SEARCHKIT_READ_KEYS": ""}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        address = next(str(row["address"]) for row in map(json.loads, process.stderr) if row["message"] == "listening")
        answers: list[int] = []
        unready = threading.Event()

        def ask(_: int) -> None:
            with httpx.Client(base_url=address, timeout=30) as client:
                while True:
                    try:
                        answers.append(client.get(SEARCH).status_code)
                    except (httpx.ConnectError, httpx.ReadError):  # closed, or reset before the server took it
                        return

        def watch() -> None:
            while not unready.is_set():
                if httpx.get(f"{address}/readyz").status_code == 503:
                    unready.set()

        threading.Thread(target=process.stderr.read, daemon=True).start()
        with ThreadPoolExecutor(5) as pool:
            asking = [pool.submit(ask, n) for n in range(4)]
            time.sleep(0.3)
            watching = pool.submit(watch)
            process.send_signal(signal.SIGTERM)
            for each in (*asking, watching):
                each.result()
        assert process.wait(10) == 0
        watchdog.cancel()
    assert unready.is_set()
    assert set(answers) == {200}
