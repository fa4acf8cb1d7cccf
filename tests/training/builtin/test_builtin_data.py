from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from texts import SENTENCES

from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import corpus_folder, read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.readers.kinds import kinds_rows
from searchkit.training.builtin import data as builtin_data
from searchkit.training.contamination import Evaluation
from searchkit.training.dataset import Example, read_examples


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


def test_a_heading_goes_into_the_instruction_and_the_other_sections_are_wrong(rng: random.Random) -> None:
    pairs = [
        Example("Ada - Early life", "Born in London."),
        Example("Ada - Work", "Notes."),
        Example("Bob - Work", "x"),
    ]
    rows = list(builtin_data.sections(pairs, rng))
    assert {(row["query"], row["positive"], *row["negatives"]) for row in rows} == {
        ("Ada", "Born in London.", "Notes."),
        ("Ada", "Notes.", "Born in London."),
    }
    assert all(("early life" in row["instruction"]) == (row["positive"] == "Born in London.") for row in rows)


def test_the_aspect_of_a_disease_goes_into_the_instruction(rng: random.Random) -> None:
    pairs = [
        Example("What causes Gout ?", "Uric acid."),
        Example("Is Gout inherited ?", "In part."),
        Example("Gout?", "x"),
    ]
    rows = list(builtin_data.conditions(pairs, rng))
    assert sorted((row["query"], row["positive"], *row["negatives"]) for row in rows) == [
        ("Gout", "In part.", "Uric acid."),
        ("Gout", "Uric acid.", "In part."),
    ]


def test_one_query_has_two_right_answers_by_its_instruction(rng: random.Random) -> None:
    abstract = "We study how tea leaves sink in a stirred cup of water. They gather. Nobody knew why."
    asked = [Example("Why do they?", "They do."), Example("Who does?", "They do.")]
    for rows in (builtin_data.openings([Example("Tea", abstract)], rng), builtin_data.questions(asked, rng)):
        first, second = rows
        assert first["query"] == second["query"]
        assert first["instruction"] != second["instruction"]
        assert (first["positive"], first["negatives"]) == (second["negatives"][0], [second["positive"]])


def test_pairs_are_drawn_in_groups_of_near_neighbours(embedder: Embedder, rng: random.Random) -> None:
    pairs = [Example(f"{text} {n}", f"About {n}: {text}") for text in SENTENCES for n in range(8)]
    pairs += [pairs[0], Example(pairs[1].query, "Another.")]
    sample = builtin_data.neighbourhoods(pairs, 71, embedder, rng)
    assert len(sample) == 64, "whole groups only"
    assert len({each.query for each in sample}) == len({each.positive for each in sample}) == 64
    rows = embedder.encode_passages([each.query for each in sample])
    cosines = rows @ rows.T
    inside = (cosines[:32, :32].mean() + cosines[32:, 32:].mean()) / 2
    assert inside > cosines[:32, 32:].mean()
    assert builtin_data.neighbourhoods(pairs[:20], 64, embedder, rng) == []


def test_some_plain_pairs_get_an_instruction(embedder: Embedder, tmp_path: Path, rng: random.Random) -> None:
    pairs = [Example(f"q{n}", f"p{n}") for n in range(400)]
    found = list(builtin_data.plain(pairs, ["Find it", "Look it up"], rng))
    assert [row["query"] for row in found] == [pair.query for pair in pairs]
    told = [row["instruction"] for row in found if "instruction" in row]
    assert 0.45 * 400 < len(told) < 0.65 * 400
    assert set(told) == {"Find it", "Look it up"}
    with gzip.open(tmp_path / "squad_train.jsonl.gz", "wt") as out:
        out.writelines(json.dumps({"query": f"Who is {n}?", "positive": f"{n} is so."}) + "\n" for n in range(70))
    builtin_data.write(tmp_path, tmp_path / "out", embedder=embedder)
    examples = list(read_examples(tmp_path / "out" / "plain.jsonl"))
    assert len(examples) == 64
    known = json.loads(builtin_data.INSTRUCTIONS.read_text())["squad_train"]
    assert {example.instruction for example in examples} - {None} <= set(known)
    assert None in {example.instruction for example in examples}


def test_every_topic_gives_eight_examples_and_the_opposite_side_is_wrong(rng: random.Random) -> None:
    whole = kinds_rows("topics")
    rows = list(builtin_data.kinds(whole, rng))
    assert len(rows) == 8 * len(whole) == 2240
    assert len({topic["topic"] for topic in whole}) == len(whole)
    by_text = {topic[side]: topic for topic in whole for side in ("support", "refute")}
    for row in rows:
        assert row["positive"] not in row["negatives"]
        assert len(row["negatives"]) == 3
        if row["positive"] in by_text:
            topic = by_text[row["positive"]]
            assert {topic["support"], topic["refute"]} - {row["positive"]} <= set(row["negatives"])


def test_the_training_topics_share_no_text_with_the_test_collection(tmp_path: Path, rng: random.Random) -> None:
    file = tmp_path / "kinds.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in builtin_data.kinds(kinds_rows("topics"), rng)))
    folder = corpus_folder("intents")
    for split in ("dev", "test"):
        evaluation = Evaluation(read_beir_split(folder, split)[0], read_corpus(folder))
        leaks = evaluation.find_leaks(read_examples(file))
        assert (len(leaks.questions), len(leaks.documents)) == (0, 0)


def test_the_development_data_of_kinds_are_not_trained_on() -> None:
    training, dev, instructions = map(kinds_rows, ("topics", "dev", "instructions"))
    kinds = {"support", "refute", "define", "duplicate", "answer"}
    for topic in dev:
        assert kinds < topic.keys()
    texts = [
        {value for topic in each for value in topic.values() if isinstance(value, str)} for each in (training, dev)
    ]
    assert not texts[0] & texts[1]
    trained = {row["instruction"] for row in builtin_data.kinds(training, random.Random(0))}
    for row in instructions:
        assert {*row["right"]} < kinds
        assert {*row["query"]} <= {"claim", "question", "term"}
        assert row["split"] in ("train", "dev")
    by_split = [{row["instruction"] for row in instructions if row["split"] == split} for split in ("train", "dev")]
    assert len(by_split[0] | by_split[1]) == len(instructions)
    assert not trained & by_split[1]
    for split in ("dev", "test"):
        intents = corpus_folder("intents")
        queries = read_beir_split(intents, split)[0]
        known = {document.text for document in read_corpus(intents)} | {query.text for query in queries}
        assert not texts[1] & known
        assert not by_split[1] & {query.instruction for query in queries}
