from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest

from searchkit.chunking import chunk
from searchkit.cli.passkey import _plot
from searchkit.engine import SearchEngine
from searchkit.evaluation.passkey import (
    DOCUMENTS,
    QUESTIONS,
    PasskeyResult,
    default_lengths,
    measure_passkeys,
    passkey_documents,
    people,
    report,
    shortest_length,
)
from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions
from searchkit.records import Document

DENSE = SearchOptions(mode="dense")


@pytest.fixture(scope="module")
def builtin() -> Embedder:
    return Embedder()


@pytest.fixture
def oracle() -> Embedder:
    """The built-in model's tokenizer, and vectors that tell whose name is in the input."""
    model = Embedder()
    names = [person.name.lower() for person in people()]

    def forward(batch: list[list[int]], conventions: Conventions) -> np.ndarray:
        texts = [model.runtime.tokenizer.decode(ids) for ids in batch]
        rows = np.array([[name in text for name in names] for text in texts], dtype=np.float32)
        return np.column_stack([rows, ~rows.any(axis=1)])  # the last dimension: nobody

    model.runtime.forward = forward  # type: ignore[method-assign]
    model.dim = len(names) + 1
    return model


def tokens(model: Embedder, text: str) -> int:
    """Tokens as counted by the tokenizer itself, special tokens included."""
    return len(model.runtime.tokenizer.encode(model.conventions.document_prefix + text).ids)


# The documents


@pytest.mark.parametrize("length", [32, 64, 256, 600])
def test_documents_have_the_requested_length(builtin: Embedder, length: int) -> None:
    counts = [tokens(builtin, document.text) for document in passkey_documents(builtin, length)]
    assert len(counts) == DOCUMENTS
    assert length - 4 <= min(counts) <= max(counts) <= length


@pytest.mark.parametrize("prefix", ["", "passage: "])
def test_tokens_are_those_of_the_model_under_test(embedder: Embedder, prefix: str) -> None:
    embedder = Embedder(
        embedder.folder, device="cpu", conventions=replace(embedder.conventions, document_prefix=prefix)
    )
    counts = [tokens(embedder, document.text) for document in passkey_documents(embedder, 200)]
    assert 180 <= min(counts) <= max(counts) <= 200  # half a word of this tokenizer is a letter
    assert np.mean(counts) > 192


def test_every_document_has_its_own_person_once_and_nobody_else(builtin: Embedder) -> None:
    named = people()
    for person, document in zip(named, passkey_documents(builtin, 300), strict=True):
        assert document.text.count(person.sentence()) == 1
        assert sum(other.name in document.text or other.key in document.text for other in named) == 1


def test_nobody_shares_a_name_or_a_key() -> None:
    named = people()
    assert len({person.key for person in named}) == DOCUMENTS
    for part in (0, 1):
        assert len({person.name.split()[part] for person in named}) == DOCUMENTS
    assert all(len(person.key) == 5 and person.key in person.sentence() for person in named)


def test_passkeys_are_spread_over_the_whole_text(builtin: Embedder) -> None:
    documents = passkey_documents(builtin, 512)
    places = [
        document.text.index(person.sentence()) / (len(document.text) - len(person.sentence()))
        for person, document in zip(people(), documents, strict=True)
    ]
    assert np.histogram(places, bins=5, range=(0, 1))[0].min() >= 10
    assert np.abs(np.array(places) - [person.position for person in people()]).max() < 0.05


def test_fillers_differ_and_a_longer_one_continues_a_shorter_one(builtin: Embedder) -> None:
    short, long = ([document.text for document in passkey_documents(builtin, length)] for length in (128, 512))
    assert len(set(short)) == DOCUMENTS
    for person, brief, full in zip(people(), short, long, strict=True):
        brief, full = (text.replace(person.sentence(), "").replace("  ", " ").strip() for text in (brief, full))
        assert full.startswith(brief.rstrip("."))


def test_a_seed_decides_everything(builtin: Embedder) -> None:
    assert passkey_documents(builtin, 64, seed=3) == passkey_documents(builtin, 64, seed=3)
    first, second = people(3), people(4)
    assert {person.key for person in first} != {person.key for person in second}
    assert [person.position for person in first] != [person.position for person in second]
    changed = zip(passkey_documents(builtin, 64, seed=3), passkey_documents(builtin, 64, seed=4), strict=True)
    assert all(one.text != other.text for one, other in changed)


# The lengths


def test_lengths_double_up_to_the_models_own(builtin: Embedder) -> None:
    assert default_lengths(builtin) == [32, 64, 128, 256]
    for longest, expected in ((100, [32, 64, 100]), (32, [32]), (20, [20])):
        assert default_lengths(Embedder(max_length=longest)) == expected


def test_a_length_begins_where_a_passkey_fits(builtin: Embedder) -> None:
    shortest = shortest_length(builtin)
    assert shortest == max(tokens(builtin, person.sentence()) for person in people())
    assert all(p.sentence() in d.text for p, d in zip(people(), passkey_documents(builtin, shortest), strict=True))
    with pytest.raises(ValueError, match=rf"length is {shortest - 1}, but a passkey alone takes {shortest} tokens"):
        passkey_documents(builtin, shortest - 1)
    with pytest.raises(ValueError, match="cannot be measured"):
        default_lengths(Embedder(max_length=shortest - 1))


def test_nothing_is_measured_when_a_length_is_wrong(builtin: Embedder) -> None:
    begun: list[int] = []
    for lengths, message in (([64, 5], "length is 5"), ([64, -1], "length is -1"), ([], "no length")):
        with pytest.raises(ValueError, match=message):
            measure_passkeys(builtin, lengths, on_length=begun.append)
    assert begun == []


# The measurement


def test_an_oracle_finds_every_person_in_its_input(oracle: Embedder) -> None:
    begun: list[int] = []
    results = measure_passkeys(oracle, on_length=begun.append)
    assert [item.length for item in results] == begun == [32, 64, 128, 256]
    for item in results:
        assert item.whole == item.indexed == [True] * QUESTIONS
        assert (item.truncated, item.passages) == (0, DOCUMENTS)


@pytest.mark.parametrize("length", [300, 500])
def test_text_past_the_input_is_lost_to_whole_texts_and_kept_by_passages(oracle: Embedder, length: int) -> None:
    (item,) = measure_passkeys(oracle, [length])
    room = oracle.max_length - oracle.special_tokens
    seen = []
    for person, document in zip(people()[:QUESTIONS], passkey_documents(oracle, length), strict=False):
        stop = oracle.offsets(document.text)[room - 1][1]
        seen.append(person.name in document.text[:stop])
    assert item.whole == seen
    assert 0 < sum(seen) < QUESTIONS
    assert item.truncated == DOCUMENTS
    assert item.indexed == [True] * QUESTIONS


def test_passages_are_those_of_an_index(embedder: Embedder, tmp_path: Path) -> None:
    documents = passkey_documents(embedder, 300)
    with SearchEngine.create(tmp_path / "keys.index", model=embedder) as engine:
        passages = engine.add(documents).passages
        found = engine.search_many([person.question() for person in people()[:QUESTIONS]], k=1, options=DENSE)
    (item,) = measure_passkeys(embedder, [300])
    assert item.passages == passages
    assert item.indexed == [hits[0].id == documents[n].id for n, hits in enumerate(found)]


def test_passage_settings_can_be_overridden(oracle: Embedder) -> None:
    (item,) = measure_passkeys(oracle, [300], chunk_tokens=50, overlap=10)
    texts = [document.text for document in passkey_documents(oracle, 300)]
    assert item.passages == sum(len(chunk(text, oracle.offsets, tokens=50, overlap=10)) for text in texts)
    (item,) = measure_passkeys(oracle, [300], chunk_tokens=0)
    assert (item.passages, item.indexed) == (DOCUMENTS, item.whole)
    with pytest.raises(ValueError, match="chunk_tokens is 4"):
        measure_passkeys(oracle, [300], chunk_tokens=4)


def test_a_model_with_equal_vectors_finds_nobody(oracle: Embedder) -> None:
    oracle.runtime.forward = lambda batch, _: np.ones((len(batch), oracle.dim), np.float32)  # type: ignore[method-assign]
    (item,) = measure_passkeys(oracle, [64])
    assert item.whole == [False] * QUESTIONS  # a tie is not an answer


def test_the_built_in_model_reads_short_texts(builtin: Embedder) -> None:
    (item,) = measure_passkeys(builtin, [32])
    assert item.summary()["whole_text"] > 0.9


def test_the_instruction_is_put_before_every_question(mistral: Path) -> None:
    model = Embedder(mistral, device="cpu")
    given: list[str] = []
    forward = model.runtime.forward

    def listen(batch: list[list[int]], conventions: Conventions) -> np.ndarray:
        given.extend(model.runtime.tokenizer.decode(ids) for ids in batch)
        return forward(batch, conventions)

    model.runtime.forward = listen  # type: ignore[method-assign]
    measure_passkeys(model, [128], instruction="Find the note with the key asked for")
    assert sum("Find the note with the key asked for" in text for text in given) == QUESTIONS
    assert len(given) == QUESTIONS + DOCUMENTS


def test_an_instruction_that_leaves_no_room_is_refused(mistral: Path) -> None:
    model = Embedder(mistral, device="cpu", max_length=96)
    with pytest.raises(ValueError, match="questions are longer than the 96 tokens"):
        measure_passkeys(model, [64], instruction="find " * 20)
    with pytest.raises(ValueError, match="leaves no room for a query"):
        measure_passkeys(model, [64], instruction="find " * 90)


def test_the_report_lists_every_person_and_length(builtin: Embedder) -> None:
    results = [
        PasskeyResult(length, 0, DOCUMENTS, [n < right for n in range(QUESTIONS)], [True] * QUESTIONS)
        for length, right in ((32, 50), (64, 20))
    ]
    written = json.loads(json.dumps(report(builtin, results)))
    assert [row["whole_text"] for row in written["lengths"]] == [1.0, 0.4]
    assert written["model"]["model"] == "builtin"
    assert [question["whole_text"]["64"] for question in written["questions"]] == results[1].whole
    assert written["questions"][0]["question"] == people()[0].question()
    assert all(set(question["as_indexed"]) == {"32", "64"} for question in written["questions"])


# The command


call = partial(commands.call, "passkey")


def test_the_built_in_model_needs_no_index() -> None:
    result = call("--lengths", 32)
    assert all(word in result.stdout for word in ("tokens", "whole text", "as indexed", "truncated"))
    assert "measuring 32 tokens" in result.stderr
    assert "of 100" not in result.stdout
    assert "were cut" not in result.stderr


def test_truncated_documents_are_marked(mistral: Path) -> None:
    result = call("--model", mistral, "--device", "cpu", "--lengths", "300, 80")
    rows = result.stdout.splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["80", "300"]
    assert [row.endswith("100 of 100 │      200") for row in rows] == [False, True]
    assert "reads at most 256 tokens: longer texts were cut there" in result.stderr


def test_json_and_the_report_hold_the_same_numbers(tmp_path: Path, mistral: Path) -> None:
    file = tmp_path / "new" / "report.json"
    run = ("--model", mistral, "--device", "cpu", "--lengths", "80,70", "--instruction", "Find it")
    printed = json.loads(call(*run, "--format", "json", "--report", file).stdout)
    assert [row["length"] for row in printed] == [70, 80]
    keys = {"length", "whole_text", "as_indexed", "truncated", "documents", "passages", "questions"}
    assert all(row.keys() == keys for row in printed)
    written = json.loads(file.read_text("utf-8"))
    assert written["lengths"] == printed
    assert (written["index"], written["instruction"], written["chunk_tokens"]) == (None, "Find it", 254)


def test_an_index_decides_the_model_and_the_passages(tmp_path: Path, mistral: Path) -> None:
    index = tmp_path / "notes.index"
    with SearchEngine.create(index, model=Embedder(mistral, device="cpu"), chunk_tokens=60, overlap=8) as engine:
        engine.add([Document("1", "tea")])
    result = call(index, "--lengths", 90, "--device", "cpu", "--report", tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (written["index"], written["model"]["model"]) == (str(index), str(mistral))
    assert (written["chunk_tokens"], written["overlap"]) == (60, 8)
    assert written["lengths"][0]["passages"] >= 2 * DOCUMENTS
    assert " 90 " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--modes", "dense"), "No such option"),
        (("--keep-self",), "No such option"),
        (("--rrf-k", "60"), "No such option"),
        (("--runs", "x"), "No such option"),
        (("--lengths", "32,many"), "'32,many' is not a list of whole numbers such as 256,512,4096"),
        (("--lengths", ""), "'' is empty; expected a list such as 256,512,4096"),
        (("--lengths", "32,-1"), "not a list of whole numbers"),
        (("--task", "web", "--instruction", "x"), "--task cannot be combined with --instruction"),
    ],
)
def test_misuse_is_reported_with_its_reason(arguments: tuple[str, ...], message: str) -> None:
    assert message in " ".join(call(*arguments, code=2).stderr.split())


def test_failures_are_reported_in_a_sentence() -> None:
    assert "choose 19 or more" in call("--lengths", "3,64", code=1).stderr
    assert "no model folder" in call("--model", "nothing-here", code=1).stderr


def test_the_chart_is_drawn_as_png_and_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "new" / "passkey.png"
    result = call("--lengths", 32, "--plot", file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert "whole text, as indexed" in file.with_suffix(".svg").read_text("utf-8")
    assert f"wrote {file} and " in result.stderr


def test_the_chart_says_that_texts_were_cut(tmp_path: Path, builtin: Embedder) -> None:
    pytest.importorskip("matplotlib")
    results = [PasskeyResult(256, 0, DOCUMENTS, [True], [True]), PasskeyResult(512, 100, 300, [False], [True])]
    _plot(tmp_path / "passkey.png", builtin, results)
    drawn = (tmp_path / "passkey.svg").read_text("utf-8")
    assert all(words in drawn for words in ("builtin (whole texts cut at 256 tokens)", "as indexed"))


def test_a_chart_that_cannot_be_drawn_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    result = call("--lengths", 32, "--plot", tmp_path / "passkey.png", code=1)
    assert result.stdout == ""
    assert "measuring" not in result.stderr
    assert "searchkit[plots]" in result.stderr
