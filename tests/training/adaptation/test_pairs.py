from __future__ import annotations

import json
from pathlib import Path

import pytest
from texts import SENTENCES, TEXTS

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.readers.rejects import Rejects
from searchkit.records import Document
from searchkit.training.adaptation.pairs import as_judgements, filter_pairs, read_pairs, split
from searchkit.training.dataset import Example
from searchkit.training.texts import fingerprint

LONG = " ".join(SENTENCES * 4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> SearchEngine:
    engine = SearchEngine.create(tmp_path_factory.mktemp("pairs") / "i", model=embedder, chunk_tokens=40, overlap=0)
    engine.add([Document(str(n), text.strip(), title=f"Note {n}") for n, text in enumerate(TEXTS)])
    engine.add([Document("long", LONG)])
    return engine


def examples(count: int, queries: int = 2) -> list[Example]:
    return [Example(f"{k} of {n}", f"text {n}", positive_id=str(n)) for n in range(count) for k in range(queries)]


def reasons(file: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in file.read_text("utf-8").splitlines()]


def test_a_positive_is_known_by_its_id_or_by_its_text(engine: SearchEngine, tmp_path: Path) -> None:
    rows = [
        {"query": "a", "positive_id": "3"},
        {"query": "b", "positive": "note 4  " + TEXTS[4]},
        {"query": "c", "positive": TEXTS[5].upper()},
        {"query": "d", "positive": "from elsewhere"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_pairs([file], engine, Rejects())
    assert [example.positive_id for example in found] == ["3", "4", "5", None]
    assert found[0].positive == f"Note 3 {TEXTS[3].strip()}"


def test_repeated_leaking_and_unfound_pairs_are_set_aside_with_the_reason(engine: SearchEngine, tmp_path: Path) -> None:
    good = Example("Bread rises because yeast", f"Note 1 {TEXTS[1].strip()}", positive_id="1")
    given = [
        good,
        Example("bread  rises because YEAST", good.positive, positive_id="1"),
        Example("The bridge over", f"Note 0 {TEXTS[0].strip()}", positive_id="0"),
        Example("zzz qqq", good.positive, positive_id="1"),
        Example("anything", "a text from elsewhere"),
    ]
    with Rejects(tmp_path / "refused.jsonl") as rejects:
        kept = list(filter_pairs(given, engine, {fingerprint("the bridge OVER")}, rejects, depth=1))
    assert [example.query for example in kept] == ["Bread rises because yeast", "anything"]
    one, two, three = reasons(tmp_path / "refused.jsonl")
    assert "repeats an earlier pair" in one
    assert "those that judge" in two
    assert "not among the first 1 hits" in three


def test_of_a_long_document_the_nearest_passage_is_the_positive(engine: SearchEngine, embedder: Embedder) -> None:
    query = "Salt lowers the freezing point of water."
    (kept,) = filter_pairs([Example(query, LONG, positive_id="long")], engine, set(), Rejects(), depth=31)
    (doc,) = engine.store.documents.positions_of(["long"])
    _, document = engine.store.documents.document(doc)
    passages = [LONG[start:stop] for start, stop in document.spans]
    assert len(passages) > 3
    similar = embedder.encode_passages(passages) @ embedder.encode_queries([query])[0]
    assert kept.positive == passages[int(similar.argmax())].strip()


def test_no_query_is_in_both_parts_and_what_is_not_in_the_index_judges_nothing() -> None:
    given = [*examples(50), Example("0 OF 7", "text 8", positive_id="8"), Example("0 of 9", "from elsewhere")]
    train, held = split(given, share=0.5, most=100, seed=0)
    assert len(train) + len(held) == len(given)
    asked = [{fingerprint(example.query) for example in part} for part in (train, held)]
    assert not asked[0] & asked[1]
    assert len(asked[1]) == round(0.5 * 99)
    assert all(example.positive_id for example in held)
    assert "0 of 9" not in {example.query for example in held}


def test_what_is_held_out_is_bounded_and_drawn_by_the_seed() -> None:
    parts = [split(examples(50), share=0.5, most=10, seed=seed)[1] for seed in (0, 0, 1)]
    assert [len({example.query for example in part}) for part in parts] == [10, 10, 10]
    assert parts[0] == parts[1] != parts[2]


def test_a_query_of_two_documents_is_judged_as_one() -> None:
    held = [Example("a", "x", positive_id="1"), Example("A", "y", positive_id="2"), Example("b", "y", positive_id="2")]
    queries, qrels = as_judgements(held)
    assert [query.text for query in queries] == ["a", "b"]
    assert qrels == {"held-1": {"1": 1, "2": 1}, "held-2": {"2": 1}}
