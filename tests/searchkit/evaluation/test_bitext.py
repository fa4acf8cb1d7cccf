"""Bitext mining: metrics equal to scikit-learn's and MTEB's, and reading parallel files."""

from __future__ import annotations

import gzip
import json
import random
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
from texts import TEXTS
from tiny_models import build_model

from searchkit.errors import CorpusError
from searchkit.evaluation.bitext import METRICS, Bitext, average, mine, nearest, read_bitexts, score
from searchkit.models.embedder import Embedder
from searchkit.tasks import get_task

PAIRS = [(text, text.upper()) for text in TEXTS[:10]]


@pytest.mark.parametrize("seed", range(10))
def test_metrics_are_scikit_learn_s_weighted_ones_as_in_mteb(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="comes with the test extra")
    rng = np.random.default_rng(seed)
    gold = np.arange(40)
    found = np.where(rng.random(40) < rng.random(), gold, rng.integers(0, rng.integers(1, 40), 40))
    expected = {
        name: getattr(metrics, f"{name}_score")(gold, found, zero_division=0, average="weighted")
        for name in ("precision", "recall", "f1")
    }
    assert score(found) == pytest.approx({**expected, "accuracy": metrics.accuracy_score(gold, found)})
    assert set(score(found)) == set(METRICS)


def test_the_nearest_is_that_of_brute_force_in_blocks(vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchkit.evaluation.bitext._BLOCK", 100)
    expected = [max(range(30), key=lambda row: float(one @ vectors[row])) for one in vectors[30:]]
    assert nearest(vectors[30:], vectors[:30]).tolist() == expected
    assert nearest(vectors[:5], vectors[:5]).tolist() == [0, 1, 2, 3, 4]


def test_mining_equals_embedding_and_comparing_by_hand(embedder: Embedder) -> None:
    bitext = Bitext("a-b", *map(tuple, zip(*PAIRS, strict=True)))
    found = mine(embedder, bitext, instruction="")
    rows = [
        np.array([embedder.encode_queries([text], "")[0] for text in side]) for side in (bitext.first, bitext.second)
    ]
    similar = rows[0] @ rows[1].T
    assert found.forward["accuracy"] == np.mean(similar.argmax(axis=1) == np.arange(10))
    assert found.backward["accuracy"] == np.mean(similar.argmax(axis=0) == np.arange(10))
    assert (found.sentences, found.repeated, found.truncated) == (10, 0, 0)
    same = Bitext("a-a", bitext.first, bitext.first)
    assert mine(embedder, same, instruction="").forward == dict.fromkeys(METRICS, 1.0)


def test_repeated_and_truncated_sentences_are_counted(embedder: Embedder) -> None:
    long = "a very long sentence " * 200
    found = mine(embedder, Bitext("a-b", ("one", "two", long), ("eins", "eins", long)), instruction="")
    assert (found.repeated, found.truncated) == (1, 2)
    assert found.forward["accuracy"] <= 2 / 3  # of two equal translations only one can be found


# Files


def test_every_format_gives_the_same_sentences(tmp_path: Path) -> None:
    (tmp_path / "de-en.tsv").write_text("".join(f"{one}\t{two}\n" for one, two in PAIRS))
    rows = [json.dumps({"sentence1": one, "sentence2": two, "id": 1}) + "\n" for one, two in PAIRS]
    (tmp_path / "de-en.jsonl.gz").write_bytes(gzip.compress("".join(rows).encode()))
    for side, name in enumerate(("de", "en")):
        (tmp_path / f"{name}.txt").write_text("".join(pair[side] + "\n" for pair in PAIRS))
    found = read_bitexts([tmp_path / name for name in ("de-en.tsv", "de.txt", "de-en.jsonl.gz", "en.txt")])
    assert [one.name for one in found] == ["de-en", "de-en", "de-en"]
    assert all(
        list(zip(one.first, one.second, strict=True)) == [(a.strip(), b.strip()) for a, b in PAIRS] for one in found
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": "one\n"}, "a.txt: plain text comes in two files with equally many lines"),
        ({"a.txt": "one\ntwo\n", "b.txt": "eins\n"}, r"has 2 lines and .*b.txt has 1; a sentence and its translation"),
        ({"a.txt": "one\n\ntwo\n", "b.txt": "eins\nzwei\n"}, "a.txt:2: the line is blank; remove it from both files"),
        ({"a.txt": "", "b.txt": ""}, "a.txt: it holds no sentences"),
        ({"a.tsv": "one\teins\ntwo\n"}, "a.tsv:2: 1 columns; expected a sentence, a tab and its translation"),
        ({"a.tsv": "\n"}, "a.tsv: it holds no sentences"),
        ({"a.jsonl": '{"de": "eins"}\n'}, 'a.jsonl:1: "sentence1" and "sentence2" is missing|a.jsonl:1: .*is missing'),
        ({"a.jsonl": '{"sentence1": "x", "sentence2": 3}\n'}, "a.jsonl:1: sentence2 is .*; expected a sentence"),
        ({"a.jsonl": '{"sentence1": " ", "sentence2": "x"}\n'}, "a.jsonl:1: sentence1 is blank; expected a sentence"),
    ],
)
def test_files_that_do_not_pair_up_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_bitexts([tmp_path / name for name in files])


# The command


call = partial(commands.call, "bitext", "--device", "cpu", env={"COLUMNS": "120"})


def test_the_command_prints_every_language_pair_and_the_average(tmp_path: Path, mistral: Path) -> None:
    pick = random.Random(0)
    for name in ("de-en", "fr-en"):
        rows = [f"{one}\t{pick.choice(PAIRS)[0]} {two}\n" for one, two in PAIRS]
        (tmp_path / f"{name}.tsv").write_text("".join(rows))
    files = sorted(tmp_path.glob("*.tsv"))
    found = json.loads(call(*files, "--model", mistral, "--format", "json").stdout)
    assert found["instruction"] is None  # the model was trained without instructions
    values = [pair["forward"]["f1"] for pair in found["pairs"]]
    assert found["average"]["forward"]["f1"] == pytest.approx(sum(values) / 2)
    shown = [
        [cell.strip() for cell in line.split("\u2502")] for line in call(*files, "--model", mistral).stdout.splitlines()
    ]
    assert [row[0] for row in shown if len(row) > 1] == ["de-en", "fr-en", "average of 2"]
    assert [row[3] for row in shown if len(row) > 1] == [f"{value:.4f}" for value in (*values, sum(values) / 2)]


def test_instructed_models_get_the_paper_s_instruction_on_both_sides(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "e5-mistral-tiny-instruct")
    (tmp_path / "a.tsv").write_text("".join(f"{one}\t{two}\n" for one, two in PAIRS))
    found = json.loads(call(tmp_path / "a.tsv", "--model", folder, "--format", "json").stdout)
    assert found["instruction"] == get_task("bitext").instruction == "Retrieve parallel sentences."
    model = Embedder(folder, device="cpu", dtype="float32")
    (bitext,) = read_bitexts([tmp_path / "a.tsv"])
    assert found["pairs"][0]["forward"] == mine(model, bitext, instruction=found["instruction"]).forward
    assert average([mine(model, bitext, instruction=found["instruction"])]) == found["average"]
