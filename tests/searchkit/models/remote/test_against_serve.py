"""A model over the wire is the model: `searchkit serve` on one side, an index on the other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from commands import call, write_lines
from embedding_server import refusal, serving
from serving import KEYS, running
from texts import TEXTS
from tiny_models import build_model

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, RemoteError, StoreError
from searchkit.models import torch_runtime
from searchkit.models.conventions import conventions_of
from searchkit.models.embedder import Embedder
from searchkit.models.remote import runtime as module
from searchkit.models.remote.client import Patience
from searchkit.records import Document, join_title
from searchkit.server.process import Server
from searchkit.server.settings import Settings

LONG = " ".join(TEXTS)
PHRASE = " ".join(TEXTS[:6])  # once it fits twice, but not three times


def documents(count: int = len(TEXTS)) -> list[Document]:
    return [Document(str(n), f"{TEXTS[n % len(TEXTS)]} {n}") for n in range(count)]


def small_index(folder: Path, model: Embedder) -> Path:
    with SearchEngine.create(folder, model=model) as engine:
        engine.add(documents(5))
    return folder


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """A model that puts prefixes before queries and documents, under a name that says nothing."""
    folder = build_model(tmp_path_factory.mktemp("models") / "tiny", "bert")
    conventions = replace(conventions_of(folder, "e5-base-v2", decoder=False), max_length=64)
    assert conventions.document_prefix
    return Embedder(folder, device="cpu", dtype="float32", conventions=conventions)


@pytest.fixture(scope="module")
def server(prefixed: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    indexes = (small_index(folder / "a.index", Embedder()), small_index(folder / "b.index", prefixed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_runtime, "choose_dtype", lambda _: "float32")  # 16 bits depend on the batch
        with running(Settings(indexes, port=0)) as server:
            yield server


def remote(server: Server, name: str = "builtin") -> str:
    return f"openai:{name}@{server.address}/v1"


@pytest.mark.parametrize("name", ["builtin", "tiny"])
def test_vectors_are_those_of_the_model_in_this_process(server: Server, prefixed: Embedder, name: str) -> None:
    here, there = Embedder() if name == "builtin" else prefixed, Embedder(remote(server, name))
    texts = [*TEXTS, LONG]
    np.testing.assert_allclose(there.encode_passages(texts), here.encode_passages(texts), atol=1e-6)
    assert there.stats.truncated == here.stats.truncated == 1
    for instruction in (None, "", "Given a claim, find documents that refute the claim"):
        queries = [*TEXTS[:6], PHRASE, LONG]
        np.testing.assert_allclose(
            there.encode_queries(queries, instruction), here.encode_queries(queries, instruction), atol=1e-6
        )
    np.testing.assert_allclose(there.encode_symmetric(TEXTS), here.encode_symmetric(TEXTS), atol=1e-6)
    assert there.conventions == here.conventions


def test_prefixes_and_templates_of_the_name_replace_the_server_s(server: Server) -> None:
    own = Embedder(remote(server, "tiny") + "#query=Q: ,document=D: ,template={instruction} / {query}")
    plain = Embedder(remote(server, "tiny") + "#query=,document=")
    np.testing.assert_allclose(own.encode_passages(TEXTS), plain.encode_passages([f"D: {t}" for t in TEXTS]), atol=1e-6)
    np.testing.assert_allclose(own.encode_queries(["tea"]), plain.encode_passages(["Q: tea"]), atol=1e-6)
    np.testing.assert_allclose(own.encode_queries(["tea"], "Find"), plain.encode_passages(["Find / tea"]), atol=1e-6)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_an_index_ranks_as_one_built_in_this_process(server: Server, tmp_path: Path, mode: str) -> None:
    found = []
    for n, model in enumerate(("builtin", remote(server))):
        with SearchEngine.create(tmp_path / f"{n}.index", model=model) as engine:
            engine.add(documents(70))
            for instruction in (None, "Find what contradicts it"):
                hits = engine.search_many(
                    ["how do bees talk", "bread", "1876"], k=20, mode=mode, instruction=instruction
                )
                found.append([[(hit.id, round(hit.score, 5)) for hit in one] for one in hits])
    assert found[:2] == found[2:]


def test_the_same_index_three_ways(server: Server, tmp_path: Path) -> None:
    """By the model in this process, by the model over the wire, and by vectors that were made before."""
    embedder, told = Embedder(), "Find what contradicts it"
    made, queries = documents(70), [*TEXTS[:5], "bees"]
    vectors = embedder.encode_passages([join_title(document.title, document.text) for document in made])
    asked = embedder.encode_queries(queries, told)
    rankings: dict[str, list[list[str]]] = {}
    scores: list[list[list[float]]] = []
    for way, settings in (
        ("process", {"model": "builtin"}),
        ("wire", {"model": remote(server)}),
        ("own", {"dim": 384}),
    ):
        with SearchEngine.create(tmp_path / f"{way}.index", **settings) as engine:  # type: ignore[arg-type]
            engine.add(made, vectors=vectors if way == "own" else None)
            hits = engine.search_many(
                queries, instruction=None if way == "own" else told, vectors=asked if way == "own" else None,
                mode="dense", k=70,
            )  # fmt: skip
            rankings[way] = [[hit.id for hit in found] for found in hits]
            scores.append([[hit.score for hit in found] for found in hits])
    assert rankings["process"] == rankings["wire"] == rankings["own"]
    np.testing.assert_allclose(scores[1:], [scores[0]] * 2, atol=1e-6)


def test_the_model_may_move_and_may_not_change(tmp_path: Path) -> None:
    with serving() as first, SearchEngine.create(tmp_path / "x.index", model=f"openai:tiny@{first.url}") as engine:
        engine.add(documents(40))
        hits = engine.search("bees", mode="dense")
    with serving() as moved, SearchEngine.open(tmp_path / "x.index", model=f"openai:tiny@{moved.url}") as engine:
        assert engine.search("bees", mode="dense") == hits
        port = moved.server_address[1]
    with serving(port, model="another") as swapped:
        for model in (f"openai:tiny@{swapped.url}", Embedder(f"openai:tiny@{swapped.url}")):
            with pytest.raises(StoreError, match=r"is another model by now: .* cosine of -?0\.\d+ to those of before"):
                SearchEngine.open(tmp_path / "x.index", model=model).embedder  # noqa: B018
        with pytest.raises(RemoteError, match="cannot be reached"):  # the address of the index is gone
            SearchEngine.open(tmp_path / "x.index").embedder  # noqa: B018
        with SearchEngine.open(tmp_path / "x.index") as engine:
            assert engine.search("bees", mode="lexical")  # needs no model
    with pytest.raises(StoreError, match="differs from builtin"):
        SearchEngine.open(tmp_path / "x.index", model=Embedder())


def test_a_model_in_this_process_is_not_replaced_unseen_by_one_over_the_wire(server: Server, tmp_path: Path) -> None:
    folder = small_index(tmp_path / "x.index", Embedder())
    with pytest.raises(StoreError, match="was built with builtin, which differs from openai:builtin"):
        SearchEngine.open(folder, model=remote(server)).embedder  # noqa: B018


def test_a_server_that_comes_back_with_another_model_is_refused(tmp_path: Path) -> None:
    with serving() as first:
        engine = SearchEngine.create(tmp_path / "x.index", model=f"openai:tiny@{first.url}")
        engine.add(documents(10))
        port = first.server_address[1]
    with serving(port, model="another"), engine:
        with pytest.raises(RemoteError, match="is another model by now"):
            engine.add(documents(30))
        assert len(engine) == 10


def test_a_wrong_answer_leaves_what_was_committed(tmp_path: Path) -> None:
    def nothing(_: object, answer: dict[str, list[object]]) -> bool:
        answer["data"].clear()
        return True

    with serving() as server, SearchEngine.create(tmp_path / "x.index", model=f"openai:tiny@{server.url}") as engine:
        server.faults.extend([None, None, nothing])  # type: ignore[list-item]  # two batches are answered
        with pytest.raises(RemoteError, match="0 vectors for"):
            engine.add(documents(40), commit_every=10)
        assert len(engine) == 20
        report = engine.add(documents(40), commit_every=10)
        assert (report.documents, report.unchanged) == (20, 20)


def start(index: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "searchkit.cli.main", "serve", str(index), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the service did not start")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_a_killed_server_costs_nothing_that_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Patience", partial(Patience, backoff=0.01))
    served = small_index(tmp_path / "served.index", Embedder())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(served, port)
    killed = []

    def kill(_: float, passages: int) -> None:
        if passages >= 20 and not killed:
            killed.append(passages)
            process.send_signal(signal.SIGKILL)
            process.wait()

    name = f"openai:builtin@http://127.0.0.1:{port}/v1"
    with SearchEngine.create(tmp_path / "x.index", model=name) as engine:
        with pytest.raises(RemoteError, match="does not answer: connection lost"):
            engine.add(documents(60), commit_every=10, on_progress=kill)
        assert killed
        kept = len(engine)
        assert 10 <= kept < 60
        with running(Settings((served,), port=port)):
            report = engine.add(documents(60), commit_every=10)
            there = engine.search_many(TEXTS[:5], k=30, mode="dense")
    assert report.unchanged == kept
    with SearchEngine.create(tmp_path / "here.index") as engine:
        engine.add(documents(60), commit_every=10)
        here = engine.search_many(TEXTS[:5], k=30, mode="dense")
    assert [[hit.id for hit in hits] for hits in there] == [[hit.id for hit in hits] for hits in here]


# Commands


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "notes.jsonl", [{"id": d.id, "text": d.text} for d in documents()])


def test_commands_take_a_model_over_the_wire(server: Server, corpus: Path, tmp_path: Path) -> None:
    index, name = tmp_path / "notes.index", remote(server)
    write_lines(tmp_path / "q.jsonl", [{"_id": "q", "text": "how do bees talk"}])
    (tmp_path / "qrels.tsv").write_text("q\t5\t1\n")
    judged = ("--queries", tmp_path / "q.jsonl", "--qrels", tmp_path / "qrels.tsv")
    call("index", corpus, "--index", index, "--model", name)
    call("index", corpus, "--index", tmp_path / "local.index")
    assert call("search", index, "bread", "-k", 3, "--format", "json").stdout.count('"id"') == 3
    call("search", index, "bread", "--model", name)
    call("evaluate", index, *judged)
    call("compare", index, tmp_path / "local.index", *judged)
    call("add", index, corpus)
    call("check", index)
    call("index", corpus, "--index", index, "--model", name)
    told = call("info", index).stdout
    assert name in told
    assert "4 vectors of probe texts" in told
    with running(Settings((index,), port=0)) as chained:  # a service whose model is another service's
        found = httpx.get(f"{chained.address}/indexes/notes/search", params={"query": "bread", "k": 2}, timeout=30)
        assert len(found.json()["hits"]) == 2
        assert httpx.get(f"{chained.address}/v1/models").json()["data"][0]["id"] == "builtin"


def test_a_service_says_that_its_model_is_away_and_not_where_it_was(tmp_path: Path) -> None:
    with serving() as server:
        small_index(tmp_path / "x.index", Embedder(f"openai:tiny@{server.url}"))
        with running(Settings((tmp_path / "x.index",), port=0)) as service:
            body = {"input": ["tea", "bread"]}
            assert httpx.post(f"{service.address}/v1/embeddings", json=body).status_code == 200
            server.always = refusal(403, "go away")
            answer = httpx.post(f"{service.address}/v1/embeddings", json=body, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
    assert str(server.server_address[1]) not in answer.text


def test_commands_that_need_the_weights_refuse_it(server: Server, corpus: Path, tmp_path: Path) -> None:
    name = remote(server)
    call("index", corpus, "--index", tmp_path / "x.index", "--model", name)
    write_lines(tmp_path / "pairs.jsonl", [{"query": f"bees {n}", "positive_id": str(n % 20)} for n in range(60)])
    write_lines(tmp_path / "train.jsonl", [{"query": f"q {n}", "positive": TEXTS[n % 9]} for n in range(9)])
    for command in (
        ("export", name, tmp_path / "out"),
        ("train", tmp_path / "train.jsonl", "--base", name, "--out", tmp_path / "trained"),
        ("adapt", tmp_path / "x.index", "--pairs", tmp_path / "pairs.jsonl", "--out", tmp_path / "adapted"),
    ):
        assert "server" in call(*command, code=1).output


def test_a_key_is_in_no_file_of_the_index(
    prefixed: Embedder, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = small_index(tmp_path / "served.index", prefixed)
    index = tmp_path / "x.index"
    with running(Settings((served,), port=0, keys=KEYS)) as server:
        told = call("index", corpus, "--index", index, "--model", remote(server, "tiny"), code=1).output
        assert "status 401" in told
        assert "#key=VARIABLE" in told
        monkeypatch.setenv("OPENAI_API_KEY", "reading-key")
        call("index", corpus, "--index", index, "--model", remote(server, "tiny"))
        call("search", index, "bees")
        monkeypatch.delenv("OPENAI_API_KEY")
        monkeypatch.setenv("ANOTHER", "reading-key")
        call("search", index, "bees", "--model", remote(server, "tiny") + "#key=ANOTHER")
    files = [file.read_bytes() for file in index.rglob("*") if file.is_file()]
    assert files
    assert not any(secret in content for content in files for secret in (b"reading-key", b"ANOTHER"))


def test_a_login_in_the_address_is_refused_by_the_command(corpus: Path, tmp_path: Path) -> None:
    model = "openai:x@http://me:hunter22@host/v1"
    told = call("index", corpus, "--index", tmp_path / "x.index", "--model", model, code=1).output
    assert "holds a login" in told
    assert "hunter22" not in told
    assert not (tmp_path / "x.index").exists()


def test_the_remote_extra_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ImportError, match=r"pip install 'searchkit\[remote\]'"):
        Embedder("openai:x@http://127.0.0.1:1/v1")


def test_a_lone_surrogate_is_refused(server: Server) -> None:
    with pytest.raises(InputError, match="lone surrogate"):
        Embedder(remote(server)).encode_passages(["a \ud800 b"])
