"""The MCP tools by the SDK's own client: in process, as a subprocess over stdio, and over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.records import Document

pytest.importorskip("mcp", reason="needs the extra serve")

import httpx
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from starlette.applications import Starlette

from searchkit.server.mcp import OpenIndex, Tools, http_routes, mcp_server
from searchkit.server.mcp_answers import CHARACTERS_PER_TOKEN, Match, size
from searchkit.server.process import Server
from searchkit.server.settings import Keys
from searchkit.server.weak import RelatedLevels, related_similarity, weak_matches

ROOT = Path(__file__).resolve().parents[3]
LONG = "".join(f"Sentence {n} of a long report about tea. " for n in range(2000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mistral: Path) -> Path:
    path = tmp_path_factory.mktemp("mcp") / "notes.index"
    documents = [
        Document(f"n{n}", f"Note about {word} and water. " * 5, f"On {word}", {"year": 2000 + n, "kind": "note"})
        for n, word in enumerate(["tea", "coffee", "rivers", "bread", "wheels", "stars", "salt", "wool"])
    ]
    with SearchEngine.create(path, model=Embedder(mistral, device="cpu", dtype="float32")) as engine:
        engine.add([*documents, Document("long", LONG, "A report", {"year": 1990, "extra": "x" * 90_000})])
    return path


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index whose model a new process loads without torch, which would take it five seconds."""
    path = tmp_path_factory.mktemp("mcp") / "light.index"
    with SearchEngine.create(path) as engine:
        engine.add([Document("tea", "Note about tea and water.", "On tea"), Document("salt", "Note about salt.")])
    return path


@pytest.fixture
def index(folder: Path) -> Any:
    with SearchEngine.open(folder) as engine:
        yield OpenIndex("notes", engine)


def talk(server: Any, script: Callable[[Client], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        async with Client(server, **options) as client:
            return await script(client)

    return anyio.run(run)


def call(server: Any, tool: str, arguments: dict[str, Any]) -> Any:
    return talk(server, lambda client: client.call_tool(tool, arguments))


def test_search_ranks_as_the_engine_does(index: OpenIndex) -> None:
    answer = call(mcp_server([index]), "search", {"query": "tea", "instruction": "Find notes", "k": 4})
    expected = index.current().search("tea", instruction="Find notes", k=4)
    matches = answer.structured_content["matches"]
    assert [match["id"] for match in matches] == [hit.id for hit in expected]
    np.testing.assert_allclose([match["score"] for match in matches], [hit.score for hit in expected], atol=1e-4)
    assert json.loads(answer.content[0].text) == answer.structured_content


def test_null_and_json_in_a_string_stand_for_what_they_mean(index: OpenIndex) -> None:
    server = mcp_server([index])
    arguments = {"query": "tea", "instruction": None, "k": None, "mode": None, "index": None}
    plain = call(server, "search", {"query": "tea", "where": {"year": 2001}})
    for where in ('{"year": 2001}', {"year": 2001}):
        assert call(server, "search", {**arguments, "where": where}) == plain
    assert [match["id"] for match in plain.structured_content["matches"]] == ["n1"]
    assert call(server, "search", {**arguments, "where": None}) == call(server, "search", {"query": "tea"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": "tea", "where": {"year": {"$about": 1}}}, "unknown operator"),
        ({"query": "  "}, "empty"),
        ({"query": "tea", "index": "nets"}, "give one of: notes"),
        ({"query": "tea", "k": 0}, "greater than or equal to 1"),
        ({}, "Field required"),
    ],
)
def test_a_mistake_is_explained(index: OpenIndex, arguments: dict[str, Any], message: str) -> None:
    answer = call(mcp_server([index]), "search", arguments)
    assert answer.is_error
    assert message in answer.content[0].text


def test_a_filter_that_can_match_nothing_says_which_keys_there_are(index: OpenIndex) -> None:
    answer = call(mcp_server([index]), "search", {"query": "tea", "where": {"yaer": 2001}})
    assert 'did you mean "year"' in answer.structured_content["notes"][0]


def test_the_description_tells_what_the_index_holds(index: OpenIndex) -> None:
    tools = {tool.name: tool for tool in talk(mcp_server([index]), lambda client: client.list_tools()).tools}
    assert set(tools) == {"search", "fetch", "list_indexes"}
    assert all(tool.annotations.read_only_hint for tool in tools.values())
    assert all(tool.output_schema for tool in tools.values())
    for part in ("9 documents", "On tea", "year (integer: 2000, 2001, 2002)", "instruction"):
        assert part in tools["search"].description
    listed = call(mcp_server([index]), "list_indexes", {}).structured_content["indexes"]
    assert [(facts["name"], facts["documents"]) for facts in listed] == [("notes", 9)]


@pytest.mark.parametrize("tokens", [500, 1000, 5000])
def test_an_answer_keeps_to_its_budget_and_says_what_it_left_out(index: OpenIndex, tokens: int) -> None:
    tools = Tools([index], tokens)
    for k in (1, 9):
        found = tools.search("a long report about tea", k=k)
        assert size(found) <= tokens * CHARACTERS_PER_TOKEN
        assert found.matches
        if len(found.matches) < k:
            assert any("did not fit" in note for note in found.notes)
    part = tools.fetch("long")
    assert size(part) <= tokens * CHARACTERS_PER_TOKEN
    assert any(f"start={part.stop}" in note for note in part.notes)


def test_the_parts_of_a_long_document_are_all_of_it(index: OpenIndex) -> None:
    tools, text, start = Tools([index]), "", 0
    while start < len(LONG):
        part = tools.fetch("long", start=start)
        text, start = text + part.text, part.stop
    assert text == LONG
    assert tools.fetch("long", start=100, length=50).text == LONG[100:150]


def test_an_unknown_document_is_an_error(index: OpenIndex) -> None:
    answer = call(mcp_server([index]), "fetch", {"id": "../n1"})
    assert answer.is_error
    assert "holds no document '../n1'" in answer.content[0].text


def test_a_hit_is_weak_when_it_shares_few_words_and_is_less_similar_than_related_texts(notes: Path) -> None:
    with SearchEngine.open(notes) as engine:
        level = related_similarity(engine.embedder)
        words = "zebra finch"  # which no document has
        hits = engine.search(words, k=40, explain=True)
        weak = weak_matches(words, hits, "english", lambda: level)
        assert weak == [(hit.explanation.dense_score or 0) < level for hit in hits if hit.explanation]
        assert any(weak)
        own = engine.search(hits[0].text, k=1, explain=True)
        assert weak_matches(hits[0].text, own, "english", lambda: 2.0) == [False]  # all of its terms are there
        assert not any(weak_matches(words, hits, "english", lambda: None))  # the level is not known yet
        by_words = engine.search("zebra finch river", k=1, explain=True, mode="lexical")
        assert weak_matches("zebra finch river", by_words, "english", lambda: 2.0) == [False]


def test_the_level_of_related_texts_lies_between_related_and_unrelated_ones() -> None:
    embedder = Embedder("builtin")
    level = RelatedLevels().of(embedder)
    assert level == related_similarity(embedder)
    questions = embedder.encode_queries(["is tea good for the heart", "how do I sharpen a chisel"])
    answers = embedder.encode_passages(
        ["Regular tea drinkers have fewer heart attacks.", "Hold the chisel flat on the stone to sharpen it."]
    )
    similar = questions @ answers.T
    assert similar.diagonal().min() > level > similar[::-1].diagonal().max()


def test_what_another_process_commits_is_found(folder: Path, index: OpenIndex) -> None:
    tools = Tools([index])
    assert len(tools.list_indexes().indexes) == 1
    with SearchEngine.open(folder, writable=True) as writer:
        writer.add([Document("new", "A note about quartz.", "On quartz")])
    assert tools.search("quartz", mode="lexical").matches[0].id == "new"
    with SearchEngine.open(folder, writable=True) as writer:
        writer.delete(["new"])


def test_documents_are_added_only_where_the_server_may_write(folder: Path) -> None:
    with SearchEngine.open(folder, writable=True) as engine:
        server = mcp_server([OpenIndex("notes", engine)], writable=True)
        new = [{"id": "w", "text": "A note about wind."}, {"id": "n0", "text": "Other content."}]
        answer = call(server, "add_documents", {"documents": new}).structured_content
        assert (answer["added"], list(answer["refused"])) == (1, ["n0"])
        assert call(server, "fetch", {"id": "w"}).structured_content["text"] == "A note about wind."
        engine.delete(["w"])


def test_several_indexes_are_told_apart(index: OpenIndex) -> None:
    tools = Tools([index, OpenIndex("others", index.current())])
    server = mcp_server([index, OpenIndex("others", index.current())])
    assert "give one of: notes, others" in call(server, "search", {"query": "tea"}).content[0].text
    assert tools.search("tea", index="others").index == "others"


def command(*arguments: str) -> list[str]:
    # A model that prints, in Python and past it, must not disturb the protocol.
    noisy = (
        "import os, sys; from searchkit.models.embedder import Embedder; encode = Embedder.encode_queries\n"
        "def noisy(self, *a, **k):\n"
        "    print('noise'); os.write(1, b'noise\\n'); os.system('echo noise'); return encode(self, *a, **k)\n"
        "Embedder.encode_queries = noisy\n"
        "from searchkit.cli.main import main; main()"
    )
    return ["-c", noisy, "mcp", *arguments]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_command_speaks_over_stdio_whatever_the_model_prints(light: Path, mode: str) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    parameters = StdioServerParameters(
        command=sys.executable, args=command(str(light)), env={**os.environ, "PYTHONPATH": path}
    )
    answer = talk(stdio_client(parameters), lambda client: client.call_tool("search", {"query": "tea"}), mode=mode)
    assert answer.structured_content["matches"][0]["id"] == "tea"


def test_standard_output_holds_nothing_but_the_protocol(light: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    search = {"name": "search", "arguments": {"query": "tea"}}
    messages = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": search},
    ]
    process = subprocess.Popen(
        [sys.executable, *command(str(light))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    for message in messages:
        process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()
    lines = [process.stdout.readline(), process.stdout.readline()]
    rest, errors = process.communicate(timeout=60)
    assert [json.loads(line)["id"] for line in lines] == [1, 2]
    assert rest == b""
    assert errors.count(b"noise") >= 3
    assert process.returncode == 0


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_http_answers_as_stdio_does(index: OpenIndex, mode: str) -> None:
    server = mcp_server([index])
    app = Starlette(routes=http_routes(server))

    async def run() -> Any:
        transport = httpx2.ASGITransport(app=app)
        async with (
            server.session_manager.run(),
            httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as http,
        ):
            refused = await http.post("/mcp", json={}, headers={"Host": "evil.example"})
            assert refused.status_code == 421
            connection = streamable_http_client("http://127.0.0.1:8080/mcp", http_client=http)
            async with Client(connection, mode=mode) as client:
                return await client.call_tool("search", {"query": "tea"})

    direct = call(mcp_server([index]), "search", {"query": "tea"})
    assert anyio.run(run).structured_content == direct.structured_content


def test_the_service_offers_the_same_tools(server: Server, notes: Path) -> None:
    script: Any = lambda client: client.call_tool("search", {"query": "river", "index": "notes"})  # noqa: E731
    answer = talk(f"{server.address}/mcp", script)
    with SearchEngine.open(notes) as engine:
        expected = [hit.id for hit in engine.search("river")]
    assert [match["id"] for match in answer.structured_content["matches"]] == expected
    names = {tool.name for tool in talk(f"{server.address}/mcp", lambda client: client.list_tools()).tools}
    assert names == {"search", "fetch", "list_indexes"}  # writing goes by HTTP, with a write key


def test_the_service_asks_mcp_clients_for_the_key(serve: Callable[..., Server]) -> None:
    server = serve(keys=Keys(("reading-key",)))
    with httpx.Client(base_url=server.address) as client:
        assert client.post("/mcp", json={}).status_code == 401
        assert client.post("/mcp", json={}, headers={"Authorization": "Bearer reading-key"}).status_code != 401


def test_the_output_schema_names_every_field() -> None:
    assert {"id", "passage", "score", "strength", "metadata"} <= set(Match.model_json_schema()["properties"])
