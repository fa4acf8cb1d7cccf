"""Which training examples are read, and which of them share a batch."""

from __future__ import annotations

import gzip
import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from searchkit.errors import CorpusError
from searchkit.readers.rejects import Rejects
from searchkit.tasks import get_task
from searchkit.training.batches import Batch, Batches, Source
from searchkit.training.dataset import Example, read_examples

PAIR = {"query": "hot tea", "positive": "Tea is hot."}
FILE = Source(Path("pairs.jsonl"))


def write(path: Path, *rows: object) -> Path:
    content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def examples(count: int, *, source: str = "a", instruction: str | None = None) -> list[Example]:
    return [Example(f"{source} query {n}", f"{source} text {n}", (), instruction, source) for n in range(count)]


def drawn(batches: Batches, epoch: int = 0) -> Counter[Example]:
    return Counter(example for batch in batches.epoch(epoch) for example in batch.examples)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR, Example("hot tea", "Tea is hot.", source="pairs")),
        ({"query": " hot tea ", "positive": "\tTea is hot.\n"}, Example("hot tea", "Tea is hot.", source="pairs")),
        ({**PAIR, "negatives": ["b", "c", " b"]}, Example("hot tea", "Tea is hot.", ("b", "c"), source="pairs")),
        ({**PAIR, "negative": "b", "id": 7}, Example("hot tea", "Tea is hot.", ("b",), source="pairs")),
        ({**PAIR, "negatives": [], "source": "tea"}, Example("hot tea", "Tea is hot.", source="tea")),
        ({**PAIR, "task": "FiQA-2018"}, Example("hot tea", "Tea is hot.", (), get_task("fiqa").instruction, "pairs")),
        ({**PAIR, "task": "my own", "instruction": "Find."}, Example("hot tea", "Tea is hot.", (), "Find.", "pairs")),
        ({**PAIR, "instruction": " "}, Example("hot tea", "Tea is hot.", (), "", "pairs")),
        (
            {**PAIR, "positive_id": 1, "negatives": None, "task": None},
            Example("hot tea", "Tea is hot.", source="pairs"),
        ),
    ],
)
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_a_row_is_an_example(tmp_path, name, row, expected):
    assert list(read_examples(write(tmp_path / name, row, "", row))) == [expected, expected]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("nonsense", "the row is not JSON"),
        ([1], "the row is a list"),
        ({"positive": "x"}, 'no "query" among "positive"'),
        ({"query": "x", "pos": "y"}, 'no "positive" and no "positive_id" among "query", "pos"'),
        ({"query": "x", "positive": None}, 'no "positive" and no "positive_id"'),
        ({"query": " \n", "positive": "y"}, "query is blank"),
        ({"query": "x", "positive": ""}, "positive is blank"),
        ({"query": 3, "positive": "y"}, "query is a number; it must be a string"),
        ({"query": "x", "positive": ["y"]}, "positive is a list; it must be a string"),
        ('{"query": "x\\ud800", "positive": "y"}', "query holds the lone surrogate"),
        ({"query": "hot  TEA", "positive": " Hot tea"}, "the query is its own positive"),
        ({**PAIR, "negatives": ["b", "tea IS  hot."]}, "a negative is the positive itself"),
        ({**PAIR, "negative": "Tea is hot."}, "a negative is the positive itself"),
        ({**PAIR, "negatives": "b"}, "negatives is a string; it must be a list"),
        ({**PAIR, "negatives": ["b", " "]}, "a negative is blank"),
        ({**PAIR, "negatives": [None]}, "a negative is null; it must be a string"),
        ({**PAIR, "negatives": ["b"], "negative": "c"}, 'both "negatives" and "negative"'),
        ({**PAIR, "task": "unheard of"}, 'no task is called "unheard of"; write its sentence as "instruction"'),
        ({**PAIR, "instruction": 1}, "instruction is a number"),
        ({**PAIR, "source": " "}, "source is blank"),
    ],
)
def test_a_bad_row_is_named_or_set_aside_with_its_reason(tmp_path, row, reason):
    path = write(tmp_path / "pairs.jsonl", PAIR, "", row, PAIR)
    with pytest.raises(CorpusError, match=r"pairs.jsonl:3: ") as error:
        list(read_examples(path))
    assert reason in str(error.value)
    with Rejects(tmp_path / "rejects.jsonl") as rejects:
        assert len(list(read_examples(path, rejects=rejects))) == 2
    (entry,) = map(json.loads, (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert rejects.count == 1
    assert entry["place"] == f"{path}:3"
    assert reason in entry["reason"]
    assert entry["row"] == (row if isinstance(row, str) else json.dumps(row))


def test_bytes_that_are_not_utf_8_are_one_bad_row(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"query": "th\xe9", "positive": "x"}\n' + json.dumps(PAIR).encode())
    with Rejects(tmp_path / "rejects.jsonl") as rejects:
        assert len(list(read_examples(path, rejects=rejects))) == 1
    with pytest.raises(CorpusError, match=r"pairs.jsonl:1: not utf-8"):
        list(read_examples(path))


def test_a_file_of_another_kind_is_not_an_empty_training_set(tmp_path):
    with pytest.raises(CorpusError, match="no such file"):
        read_examples(tmp_path / "missing.jsonl")
    with pytest.raises(CorpusError, match=r"no examples in it$"):
        list(read_examples(write(tmp_path / "empty.jsonl", "")))
    documents = write(tmp_path / "corpus.jsonl", {"_id": "1", "text": "x"}, {"_id": "2", "text": "y"})
    with (
        Rejects(tmp_path / "rejects.jsonl") as rejects,
        pytest.raises(
            CorpusError, match=r'every row was rejected, the first because: .*corpus.jsonl:1: no "query" among "_id", '
        ),
    ):
        list(read_examples(documents, rejects=rejects))


def test_refused_rows_never_overwrite_the_examples(tmp_path):
    path = write(tmp_path / "pairs.jsonl", PAIR)
    with pytest.raises(CorpusError, match="would overwrite the examples"):
        read_examples(path, rejects=Rejects(path))


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    rows = [{"_id": "1", "title": "Tea", "text": "is hot."}, {"_id": "2", "text": "Ice is cold."}]
    write(tmp_path / "beir" / "corpus.jsonl", *rows, {"_id": "3", "title": "", "text": ""})
    return tmp_path / "beir"


def test_ids_are_looked_up_in_the_corpus(tmp_path, beir):
    path = write(tmp_path / "s.jsonl", {"query": "tea", "positive_id": 1, "negative_ids": ["2"], "kind": "short"})
    assert list(read_examples(path, corpus=beir)) == [Example("tea", "Tea is hot.", ("Ice is cold.",), source="s")]


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ({"positive_id": "9"}, 'positive_id: no document "9" in '),
        ({"positive_id": "3"}, 'positive_id: no document "3" in '),  # it has no text
        ({"positive_id": 1.5}, "positive_id: id is a decimal number"),
        ({"positive_id": "1", "negative_ids": "2"}, "negative_ids is a string; it must be a list"),
        ({"positive_id": "1", "negative_ids": ["2", "9"]}, 'negative_ids: no document "9"'),
        ({"positive_id": "1", "negative_ids": [{}]}, "negative_ids: id is an object"),
        ({"positive_id": "1", "negative_ids": ["1"]}, "a negative is the positive itself"),
    ],
)
def test_an_id_that_names_no_document_is_a_bad_row(tmp_path, beir, ids, reason):
    with pytest.raises(CorpusError, match=f"s.jsonl:1: {reason}"):
        list(read_examples(write(tmp_path / "s.jsonl", {"query": "what", **ids}), corpus=beir))


def test_ids_without_a_corpus_stop_even_a_lenient_run(tmp_path):
    path = write(tmp_path / "s.jsonl", PAIR, {"query": "tea", "positive_id": "1"})
    with pytest.raises(CorpusError, match=r's.jsonl:2: names document "1", but there is no corpus'):
        list(read_examples(path, rejects=Rejects(tmp_path / "rejects.jsonl")))


def test_one_id_for_two_texts_is_refused(tmp_path):
    corpus = write(tmp_path / "c.jsonl", {"id": "1", "text": "Tea."}, {"id": "1", "text": "Ice."})
    path = write(tmp_path / "s.jsonl", {"query": "what is hot", "positive_id": "1"})
    with pytest.raises(CorpusError, match=r'c.jsonl:2: document id "1" is repeated with another text'):
        list(read_examples(path, corpus=corpus))


@pytest.mark.parametrize(
    ("text", "path", "ratio", "mixed"),
    [
        ("a.jsonl", "a.jsonl", 1, False),
        ("a.jsonl.gz@0.5", "a.jsonl.gz", 0.5, False),
        ("me@home/a.jsonl@2", "me@home/a.jsonl", 2, False),
        ("me@home/a.jsonl", "me@home/a.jsonl", 1, False),
        ("a.jsonl@mixed", "a.jsonl", 1, True),
        ("a.jsonl@0.5,mixed", "a.jsonl", 0.5, True),
        ("me@home/a.jsonl@mixed", "me@home/a.jsonl", 1, True),
        ("a.jsonl@mixed,0.5", "a.jsonl@mixed,0.5", 1, False),
        ("a.jsonl@kept,0.5", "a.jsonl@kept,0.5", 1, False),
        ("a.jsonl@kept,kept", "a.jsonl@kept,kept", 1, False),
        ("a.jsonl@0.5mixed", "a.jsonl@0.5mixed", 1, False),
        ("a.jsonl@0.5,mixed,mixed", "a.jsonl@0.5,mixed,mixed", 1, False),
        ("a.jsonl@", "a.jsonl@", 1, False),
        ("mixed", "mixed", 1, False),
        ("2", "2", 1, False),
    ],
)
def test_a_source_is_a_path_and_maybe_a_ratio_and_mixed(text, path, ratio, mixed):
    assert Source.parse(text) == Source(Path(path), ratio, mixed=mixed)


def test_a_source_may_be_kept_and_its_batches_know():
    assert Source.parse("a.jsonl@0.5,mixed,kept") == Source(Path("a.jsonl"), 0.5, mixed=True, kept=True)
    sources = [(Source(Path(name), kept=name == "b"), [Example(f"{name}{n}", f"text {name}{n}") for n in range(6)])
               for name in "ab"]  # fmt: skip
    batches = list(Batches(sources, 3).epoch(0))
    assert [batch.kept for batch in batches] == [batch.examples[0].query[0] == "b" for batch in batches]
    assert {batch.part([0]).kept for batch in batches} == {True, False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jsonl@0", "the sample ratio is 0; expected a number above 0"),
        ("a.jsonl@-1", "ratio is -1"),
        ("a.jsonl@nan", "ratio is nan"),
        ("a.jsonl@inf", "ratio is inf"),
        ("a.jsonl@0,mixed", "the sample ratio is 0"),
        ("@0.5", "names no file"),
        ("@mixed", "names no file"),
        ("", "names no file"),
    ],
)
def test_a_source_without_file_or_share_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Source.parse(text)


@pytest.mark.parametrize("seed", range(5))
def test_an_epoch_holds_every_example_once(seed):
    random.seed(seed)
    texts = [f"text {random.randrange(60)}" for _ in range(400)]  # a positive comes about seven times
    rows = [Example(f"query {random.randrange(300)}", text, source="ab"[n % 2]) for n, text in enumerate(texts)]
    batches = Batches([(FILE, rows)], 16, seed=seed)
    epoch = batches.epoch(seed)
    counts = drawn(batches, seed)
    assert counts <= Counter(rows)
    assert counts.total() + epoch.dropped == len(rows)
    assert counts.total() == epoch.examples
    assert epoch.dropped <= 8
    assert len(epoch) == len(list(epoch)) == len(list(epoch))  # it can be iterated over again
    for batch in epoch:
        assert 2 <= len(batch) <= 16
        for texts in ("query", "positive", "source"):
            distinct = {getattr(example, texts) for example in batch.examples}
            assert len(distinct) == (1 if texts == "source" else len(batch))


def test_examples_without_anything_in_common_fill_their_batches():
    sizes = [len(batch) for batch in Batches([(FILE, examples(100))], 16).epoch(0)]
    assert sorted(sizes) == [4, *[16] * 6]


def test_white_space_does_not_hide_a_shared_positive():
    rows = [Example("a", "one text"), Example("b", "one  text\n"), *examples(6)]
    for batch in Batches([(FILE, rows)], 8).epoch(0):
        assert not {"a", "b"} <= {example.query for example in batch.examples}


def test_a_batch_holds_one_task():
    own = [*examples(20, instruction="Find."), *examples(20, instruction="Refute."), *examples(20)]
    sources = [(FILE, own), (FILE, examples(20)), (Source(Path("b")), examples(20, source="b", instruction="Refute."))]
    batches = list(Batches(sources, 16).epoch(0))
    assert len(batches) == 10  # two a task: the second file with source "a" is a task of its own
    assert all(len({(row.source, row.instruction) for row in batch.examples}) == 1 for batch in batches)
    assert {row.instruction for batch in batches for row in batch.examples if row.source == "b"} == {"Refute."}
    tasks = [(batch.examples[0].source, batch.examples[0].instruction) for batch in batches]
    assert tasks != sorted(tasks, key=tasks.index), "the tasks come one after the other"


def test_a_mixed_source_shares_batches_across_instructions():
    rows = [Example(f"query {n}", f"text {n}", (), f"Instruction {n}") for n in range(10)]
    assert drawn(Batches([(Source(Path("synthetic"), mixed=True), rows)], 4)) == Counter(rows)
    with pytest.raises(ValueError, match="epoch 0 has no batch: of 10 examples 10 were sampled"):
        Batches([(FILE, rows)], 4).epoch(0)


def test_what_has_no_partner_is_dropped_and_counted():
    same = [Example(f"query {n}", "one text") for n in range(5)]
    alone = [Example("lonely", "text", source="lonely")]
    epoch = Batches([(FILE, [*same, *examples(4), *alone])], 4).epoch(0)
    # examples() has source "a", the others "" and "lonely": one task of a single positive, one of a single example.
    assert (epoch.examples, epoch.dropped) == (4, 6)


def test_batches_below_the_smallest_are_dropped_and_counted():
    often = [Example(f"query {n}", "one text") for n in range(20)]
    rows = [*often, *(Example(f"other {n}", f"text {n % 40}") for n in range(80))]
    loose, strict = (Batches([(FILE, rows)], 20, smallest_batch=least).epoch(0) for least in (2, 10))
    assert min(map(len, loose)) < 10 <= min(map(len, strict))
    assert strict.examples + strict.dropped == len(rows)
    assert strict.dropped > loose.dropped


def test_labels_make_batches_as_wide_as_there_are_labels():
    labels = [Example(f"review {n}", ("good", "bad", "so so")[n % 3]) for n in range(3000)]
    epoch = Batches([(FILE, labels)], 64).epoch(0)
    assert (len(epoch), epoch.dropped) == (1000, 0)


def test_the_same_seed_and_epoch_give_the_same_batches():
    rows = [Example(f"q{n}", f"p{n % 90}", tuple(f"n{n}.{i}" for i in range(4))) for n in range(200)]
    make = [(Source(Path("a"), 0.7), rows), (Source(Path("b"), 1.5), examples(50))]
    first = list(Batches(make, 8, seed=3).epoch(1))
    assert first == list(Batches(make, 8, seed=3).epoch(1))
    for seed, epoch in ((3, 2), (4, 1)):
        other = list(Batches(make, 8, seed=seed).epoch(epoch))
        assert [batch.examples for batch in other] != [batch.examples for batch in first]


def test_the_negatives_drawn_change_with_the_seed_and_with_the_epoch():
    rows = [Example("q", "p", tuple(f"n{n}" for n in range(50))), Example("other", "text")]

    def chosen(seed, epoch):
        return next(
            text for batch in Batches([(FILE, rows)], 2, seed=seed).epoch(epoch) for text in batch.passages()[2:]
        )

    assert len({chosen(seed, 0) for seed in range(5)}) > 1
    assert len({chosen(0, epoch) for epoch in range(5)}) > 1


def test_batches_do_not_depend_on_the_process(tmp_path):
    code = (
        "from pathlib import Path; from searchkit.training.batches import *; from searchkit.training.dataset import *;"
        "rows = [Example(f'q{n % 40}', f'p{n % 30}', (f'm{n}', f'n{n}')) for n in range(100)];"
        "print([(b.examples, b.negatives) for b in Batches([(Source(Path('a'), 1.5), rows)], 8).epoch(1)])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "01"
    }
    assert len(runs) == 1


@pytest.mark.parametrize("skip", [0, 1, 17, 25])
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(skip):
    rows = [Example(f"q{n}", f"p{n}", tuple(f"n{n}.{i}" for i in range(4))) for n in range(200)]
    batches = Batches([(FILE, rows)], 8, negatives_per_query=2)
    whole, rest = list(batches.epoch(3)), batches.epoch(3, skip=skip)
    assert list(rest) == whole[skip:]
    assert len(rest) == 25 - skip
    with pytest.raises(ValueError, match="epoch 3 has 25 batches but 26 are to be skipped"):
        batches.epoch(3, skip=26)


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.25, 0, 1), (1, 1, 1), (2, 2, 2), (2.5, 2, 3), (0.9, 0, 1)])
def test_a_ratio_is_the_share_drawn(ratio, least, most):
    rows = examples(40)
    batches = Batches([(Source(Path("a"), ratio), rows)], 10, seed=1)
    counts = drawn(batches)
    assert counts.total() == round(40 * ratio)
    assert {counts[row] for row in rows} == {least, most}
    assert (counts == drawn(batches, 1)) == (least == most)  # another sample every epoch


def test_hard_negatives_are_drawn_again_every_epoch():
    rows = [Example(f"q{n}", f"p{n}", tuple(f"n{n}.{i}" for i in range(n % 5))) for n in range(50)]
    seen: set[str] = set()
    for epoch in range(12):
        for batch in Batches([(FILE, rows)], 8, negatives_per_query=2).epoch(epoch):
            for example, negatives in zip(batch.examples, batch.negatives, strict=True):
                assert len(negatives) == len(set(negatives)) == min(2, len(example.negatives))
                assert set(negatives) <= set(example.negatives)
                seen.update(negatives)
    assert seen == {text for row in rows for text in row.negatives}
    plain = next(iter(Batches([(FILE, rows)], 8, negatives_per_query=0).epoch(0)))
    assert plain.passages() == [example.positive for example in plain.examples]


def test_passages_are_the_positives_and_then_the_negatives():
    batch = Batch(tuple(examples(3)), (("x", "y"), (), ("z",)))
    assert batch.passages() == ["a text 0", "a text 1", "a text 2", "x", "y", "z"]


def test_duplicates_are_the_other_copies_of_a_querys_positive():
    texts = ["tea", "ice", "tea ", "milk"]
    negatives = (("ice", "cold  tea"), ("\ttea",), ("Tea",), ("milk", "milk"))
    batch = Batch(tuple(Example(f"q{n}", text) for n, text in enumerate(texts)), negatives)
    passages = batch.passages()
    expected = np.zeros((4, len(passages)), dtype=bool)
    for i, text in enumerate(texts):
        for j, passage in enumerate(passages):
            expected[i, j] = i != j and text.split() == passage.split()
    found = batch.duplicates()
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected)
    assert expected.sum() == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1; expected 2 or more"),
        ({"negatives_per_query": -1}, "negatives_per_query is -1"),
        ({"smallest_batch": 1}, "smallest_batch is 1; expected 2 to batch_size, 2"),
        ({"smallest_batch": 3}, "smallest_batch is 3"),
        ({"seed": -1}, "seed is -1"),
        ({"sources": []}, "0 sources without any examples"),
        ({"sources": [(FILE, [])]}, "1 sources without any examples"),
    ],
)
def test_batches_that_cannot_be_made_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        Batches(**{"sources": [(FILE, examples(4))], "batch_size": 2, **options})


def test_an_epoch_before_the_first_is_refused():
    with pytest.raises(ValueError, match="epoch is -1 and skip is 0; expected 0 or more"):
        Batches([(FILE, examples(4))], 2).epoch(-1)


def test_planning_an_epoch_is_linear_in_the_examples():
    labels = [Example(f"review {n}", f"label {int(math.sqrt(n % 100))}") for n in range(30_000)]
    epoch = Batches([(FILE, labels)], 1024).epoch(0)  # 2 s of budget are gone at once if it were quadratic
    assert epoch.examples + epoch.dropped == 30_000


def test_near_neighbours_share_a_batch_and_others_in_every_epoch():
    rng = np.random.default_rng(0)
    centres = np.eye(8, dtype=np.float32)
    vectors = np.concatenate([centre + 0.1 * rng.standard_normal((12, 8)).astype(np.float32) for centre in centres])
    rows = examples(len(vectors), source="b")
    others = examples(10)
    sources = [(Source(Path("a.jsonl")), others), (Source(Path("b.jsonl"), kept=True), rows)]
    batches = Batches(sources, 6, near={1: vectors})
    number = {each.query: n for n, each in enumerate(rows)}
    epochs = []
    for epoch in range(2):
        groups = [[number[each.query] for each in batch.examples] for batch in batches.epoch(epoch) if batch.kept]
        assert sorted(n for group in groups for n in group) == list(range(len(rows)))
        mixed = np.mean([len({n // 12 for n in group}) for group in groups])
        assert mixed < 2.5, "of eight clusters, a random batch of six holds more than four"
        epochs.append({frozenset(group) for group in groups})
    assert epochs[0] != epochs[1]
    assert sum(len(batch) for batch in batches.epoch(0) if not batch.kept) == 10
