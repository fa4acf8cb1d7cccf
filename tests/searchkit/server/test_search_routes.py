from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from searchkit.engine import SearchEngine
from searchkit.records import Document, Hit


def rows(hits: list[Hit]) -> list[tuple[str, float]]:
    return [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]


def shown(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(hit["id"], hit["score"]) for hit in answer["hits"]]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"mode": "dense", "k": 3},
        {"mode": "lexical"},
        {"instruction": "Given a claim, find documents that refute the claim"},
        {"task": "scifact", "k": 40},
        {"where": {"even": True}},
    ],
)
def test_the_service_finds_what_the_engine_finds(client, notes, parameters) -> None:
    query = "which wine goes with cheese"
    answer = client.post("/indexes/notes/search", json={"query": query, **parameters}).json()
    with SearchEngine.open(notes) as engine:
        assert shown(answer) == rows(engine.search(query, **parameters))
        assert answer["commit"] == engine.snapshot.generation


def test_a_link_finds_what_a_request_finds(client) -> None:
    body = {"query": "tea", "k": 3, "where": {"n": {"$lt": 9}}, "facets": ["tags"], "explain": True}
    link = {**body, "where": '{"n": {"$lt": 9}}', "facets": "tags", "explain": "true"}
    by_link = client.get("/indexes/notes/search", params=link).json()
    by_body = client.post("/indexes/notes/search", json=body).json()
    assert by_link["hits"] == by_body["hits"]
    assert by_link["facets"] == by_body["facets"]
    assert by_link["hits"][0]["explanation"]["dense_rank"] >= 1


def test_several_queries_keep_their_own_instructions(client, notes) -> None:
    instruction = "Given a claim, find documents that refute the claim"
    queries = ["tea", {"text": "tea", "instruction": instruction}]
    results = client.post("/indexes/notes/search", json={"queries": queries}).json()["results"]
    with SearchEngine.open(notes) as engine:
        assert [shown(result) for result in results] == [
            rows(engine.search("tea")), rows(engine.search("tea", instruction=instruction))
        ]  # fmt: skip


def test_similar_documents(client, notes) -> None:
    answer = client.post("/indexes/notes/search", json={"similar_to": "3", "k": 4}).json()
    with SearchEngine.open(notes) as engine:
        assert shown(answer) == rows(engine.similar("3", k=4))


def test_facets_count_the_values_of_all_hits(client) -> None:
    answer = client.post("/indexes/notes/search", json={"query": "tea", "k": 1, "facets": True, "mode": "dense"}).json()
    total = client.get("/indexes/notes").json()["documents"]
    assert answer["facets"]["tags"][0] == {"value": "a", "count": total}
    assert sum(each["count"] for each in answer["facets"]["even"]) == total


def test_facets_are_over_every_match_and_a_wrong_key_is_named(client) -> None:
    body = {"queries": ["bread", "the bridge over water"], "k": 1, "facets": ["n", "nn"], "mode": "lexical"}
    answer = client.post("/indexes/notes/search", json=body).json()
    every = [client.post("/indexes/notes/search", json={"query": query, "k": 1000, "mode": "lexical"}).json()["hits"]
             for query in body["queries"]]  # fmt: skip
    for result, hits in zip(answer["results"], every, strict=True):
        assert result["facets_over"] == len(hits) > 1
        assert sum(each["count"] for each in result["facets"]["n"]) == min(20, len(hits))
    assert 'no document has the key "nn" (did you mean "n"?)' in answer["warnings"][0]


def test_indexes_are_described(client) -> None:
    listed = client.get("/indexes").json()["indexes"]
    assert [index["name"] for index in listed] == ["notes", "others"]
    assert {index["model"] for index in listed} == {"builtin"}
    described = client.get("/indexes/notes").json()
    assert described["metadata"]["n"] == {"types": {"integer": described["documents"]}, "examples": [0, 1, 2]}


def test_indexes_of_one_model_share_it(server) -> None:
    first, second = server.config.app.state.service.indexes
    assert first.current().embedder is second.current().embedder


@pytest.mark.parametrize("id", ["a/b", "..%2Fc"])
def test_documents_come_back_whole(client, id) -> None:
    answer = client.get(f"/indexes/others/documents/{id}").json()
    assert answer["text"] in {"A document whose id has a slash.", "And one with dots."}
    assert answer["commit"] == client.get("/indexes/others").json()["commit"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "none of query, queries and similar_to came"),
        ({"query": "tea", "similar_to": "1"}, "query and similar_to"),
        ({"query": " "}, "empty"),
        ({"query": "tea", "instructon": "x"}, "instructon"),
        ({"query": "tea", "task": "nonesuch"}, "known tasks"),
        ({"query": "tea", "k": 0}, "greater than or equal to 1"),
        ({"query": "tea", "k": 10**9}, "less than or equal to 1000"),
        ({"query": "tea", "where": {"n": {"$near": 1}}}, "$near"),
        ({"query": "tea", "where": {"$and": []}}, "$and"),
        ({"query": "x" * 50_000}, "at most"),
        ({"queries": ["tea"] * 101}, "1 to 100"),
        ({"similar_to": "none"}, "no document"),
        ({"query": 7}, "string"),
        ([], "dictionary"),
    ],
)
def test_mistakes_are_explained(client, body, message) -> None:
    response = client.post("/indexes/notes/search", json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_wrong_filter_is_named_as_the_parameter_that_is_wrong(client) -> None:
    wrong = {"n": {"$near": 1}}
    by_body = client.post("/indexes/notes/search", json={"query": "tea", "where": wrong})
    by_link = client.get("/indexes/notes/search", params={"query": "tea", "where": '{"n": '})
    for response in (by_body, by_link):
        assert (response.status_code, response.json()["error"]["param"]) == (400, "where")


def test_a_filter_that_can_match_nothing_is_explained(client) -> None:
    answer = client.post("/indexes/notes/search", json={"query": "tea", "where": {"m": 1}}).json()
    assert answer["hits"] == []
    assert 'no document has the key "m"' in answer["warnings"][0]


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/indexes/none",
        "/indexes/%2e%2e%2fnotes",
        "/indexes/none/search?query=a",
        "/indexes/notes/documents/none",
    ],
)
def test_what_does_not_exist_is_not_found(client, path) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert "not_found" in response.json()["error"]["code"]


def test_what_another_process_commits_is_found_at_once(serve, tmp_path: Path, notes) -> None:
    folder = tmp_path / "live.index"
    with SearchEngine.create(folder, model="builtin") as engine:
        engine.add([Document("1", "Old tea.")])
    with httpx.Client(base_url=serve(folder).address) as client:
        before = client.get("/indexes/live/search", params={"query": "quince"}).json()
        with SearchEngine.open(folder, writable=True) as writer:
            writer.add([Document("2", "A quince tree.")])
            commit = writer.snapshot.generation
        after = client.get("/indexes/live/search", params={"query": "quince"}).json()
    assert [hit["id"] for hit in before["hits"]] == ["1"]
    assert after["hits"][0]["id"] == "2"
    assert after["commit"] == commit > before["commit"]


def test_a_link_takes_several_queries_and_the_other_spelling(client) -> None:
    link = client.get("/indexes/notes/search?queries=tea&queries=coal&k=2").json()
    body = client.post("/indexes/notes/search", json={"queries": ["tea", "coal"], "k": 2}).json()
    assert link["results"] == body["results"]
    similar = [
        client.get("/indexes/notes/search", params={"similar-to": "3"}),
        client.post("/indexes/notes/search", json={"similar-to": "3"}),
        client.post("/indexes/notes/search", json={"similar_to": "3"}),
    ]
    assert len({json.dumps(answer.json()["hits"]) for answer in similar}) == 1


def test_a_body_that_is_not_said_to_be_json_gets_the_remedy(client) -> None:
    for path in ("/indexes/notes/search", "/v1/embeddings"):
        response = client.post(path, content=b'{"query": "tea"}')
        assert (response.status_code, response.json()["error"]["code"]) == (415, "not_json")
        assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_an_unknown_field_is_named(client) -> None:
    for response in (
        client.get("/indexes/notes/search?query=tea&top-k=3"),
        client.post("/indexes/notes/search", json={"query": "tea", "top-k": 3}),
    ):
        assert (response.status_code, response.json()["error"]["param"]) == (400, "top-k")
        assert "top-k is unknown" in response.json()["error"]["message"]
