"""An index built by actors of Ray is the one that a plain run makes, whatever is killed meanwhile.

The cluster is the tests' own, and ends with them: `ray stop` would end everybody's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from commands import call
from texts import TEXTS

from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.errors import InputError, StoreError
from searchkit.ingest import AddReport
from searchkit.merging import Part
from searchkit.ray_build import Crew, build_parts, connected, crew
from searchkit.records import Document

ray = pytest.importorskip("ray", reason="the cluster needs ray: pip install 'searchkit[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

SMALL = {"object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes on this machine; the first has no CPU for workers."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        made.add_node(num_cpus=0, include_dashboard=False, **SMALL)
        for _ in range(2):
            made.add_node(num_cpus=1, **SMALL)
    except Exception as error:
        made.shutdown()
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("Ray gives a node 30 seconds to start, and this machine is too busy for that")
    made.wait_for_nodes(60)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [{"id": f"d{n:03}", "text": f"{TEXTS[n % 30]} {TEXTS[n * 7 % 29]} {n}", "n": n} for n in range(240)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"id": "empty", "text": " "}\n')
    return file


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    index = tmp_path_factory.mktemp("plain") / "plain.index"
    call("index", corpus, "--index", index, "--recipe", "fp16", "--on-error", "skip")
    return index


def check_equal(folder: Path, plain: Path) -> None:
    with SearchEngine.open(folder) as one, SearchEngine.open(plain) as other:
        assert {document.id: document for document in one} == {document.id: document for document in other}
        assert one.storage.plan == other.storage.plan
        for mode in ("dense", "lexical", "hybrid"):
            for query in ("why does bread rise", "the oboe", "12"):
                mine, theirs = (engine.search(query, mode=mode, k=12) for engine in (one, other))
                assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=1e-3)
                sure = theirs[-1].score + 1e-3
                assert {hit.id for hit in mine if hit.score > sure} == {hit.id for hit in theirs if hit.score > sure}


def committed(folder: Path) -> int:
    """Documents in all parts, read without any of our code."""
    total = 0
    for file in folder.glob("part-*/index.db"):
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as db:
            total += db.execute("SELECT count(*) FROM documents").fetchone()[0]
    return total


def test_a_killed_driver_is_run_again_and_makes_what_a_plain_run_makes(
    cluster: Any, corpus: Path, plain: Path, tmp_path: Path
) -> None:
    index = tmp_path / "made.index"
    arguments = ["index", corpus, "--index", index, "--ray", cluster.address, "--parts", 3, "--recipe", "fp16"]
    arguments += ["--on-error", "skip"]
    command = [sys.executable, "-c", "from searchkit.cli.main import main; main()", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
        until = time.monotonic() + 300
        while not committed(tmp_path / "made.index.parts") and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
    assert 0 < committed(tmp_path / "made.index.parts") < 240
    result = call(*arguments, "--format", "json")
    report = json.loads(result.stdout)
    assert report["unchanged"] > 0  # what was committed is not made again
    assert (report["total"], report["documents"] + report["unchanged"], report["refused"]) == (240, 240, 1)
    check_equal(index, plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.index", "made.index.rejects.jsonl"]
    again = call(*arguments, code=1)
    assert "exists; --ray makes a new index" in again.output


def slow(corpus: int, notes: Path) -> Any:
    """Makes parts of documents with vectors slowly; the class is local, so that workers need not import it."""

    class Slow:
        def load(self, threads: int) -> None:
            (notes / str(os.getpid())).write_text("0")

        def make(self, part: Part, place: str, embedder: None, on_progress: Callable[[float, int], None]) -> AddReport:
            def documents() -> Iterator[Document]:
                every = (Document(f"d{n}", f"text {n}", vector=[1.0, n]) for n in range(corpus))
                for count, document in enumerate(filter(part.holds, every)):
                    (notes / str(os.getpid())).write_text(str(count))
                    time.sleep(0.02)
                    yield document

            with SearchEngine.create(place, dim=2, exist_ok=True) as engine:
                return engine.add(documents(), on_progress=on_progress, commit_every=4)

    return Slow()


def test_killed_workers_and_raylets_cost_what_was_not_committed(cluster: Any, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    places = [str(tmp_path / f"part-{n}.index") for n in range(4)]
    done = []

    def kill(documents: float, passages: int) -> None:
        amid = [note.name for note in notes.iterdir() if 12 <= int(note.read_text() or 0) <= 40]
        if amid and not done:  # a worker in the middle of its 50 or so documents
            done.append(documents)
            os.kill(int(amid[0]), signal.SIGKILL)
        elif len(done) == 1 and documents >= (60 if len(list(notes.iterdir())) > 2 else 120):  # once one is replaced
            done.append(documents)
            cluster.remove_node(sorted(cluster.worker_nodes, key=str)[0], allow_graceful=False)
            cluster.add_node(num_cpus=1, **SMALL)

    with connected(cluster.address):
        made = crew(threads=1)
        assert made == Crew(2, 1, 0)
        reports = build_parts(slow(200, notes), places, made, on_progress=kill)
    assert len(done) == 2
    assert sum(report.documents + report.unchanged for report in reports) == 200
    assert sum(report.unchanged for report in reports) > 0
    held = []
    for place in places:
        with SearchEngine.open(place) as engine:
            held += [document.id for document in engine]
    assert sorted(held) == sorted(f"d{n}" for n in range(200))


def test_all_of_it_may_lie_in_object_storage(cluster: Any, corpus: Path, plain: Path, tmp_path: Path) -> None:
    from searchkit.object_storage import fetch_index

    bucket = f"file://{tmp_path}/bucket"  # what all processes see and is read by fsspec
    (tmp_path / "bucket").mkdir()
    shutil.copy(corpus, tmp_path / "bucket" / "corpus.jsonl")
    where = (f"{bucket}/corpus.jsonl", "--index", f"{bucket}/made.index", "--ray", cluster.address, "--parts", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        call("index", *where, "--recipe", "fp16", "--on-error", "skip")
    fetch_index(f"{bucket}/made.index", tmp_path / "fetched.index")
    check_equal(tmp_path / "fetched.index", plain)
    assert sorted(path.name for path in (tmp_path / "bucket").iterdir()) == ["corpus.jsonl", "made.index"]


def test_what_every_worker_would_refuse_is_not_tried_again(cluster: Any, corpus: Path, tmp_path: Path) -> None:
    result = call("index", corpus, "--index", tmp_path / "i", "--ray", cluster.address, "--parts", 2, code=1)
    assert "corpus.jsonl:241" in result.output  # the row without text
    with connected(cluster.address), pytest.raises(InputError, match="no node of the cluster has 64 CPUs"):
        crew(threads=64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "nonsense"], "expected local, auto, HOST:PORT or ray://HOST:PORT"),
        (["--ray", "127.0.0.1:1"], "no cluster of Ray can be reached at 127.0.0.1:1"),
        (["--ray", "local", "--part", "1/2"], "--part cannot be combined with --ray"),
        (["--parts", "3"], "--parts and --workers need --ray"),
        (["--ray", "local", "--recipe", "zip"], "recipe is 'zip'"),
        (["--ray", "local", "--vectors", __file__], "neither standard input nor --vectors FILE"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], message: str, corpus: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["index", str(corpus), "--index", str(tmp_path / "i"), *arguments])
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_parts_of_another_number_are_not_mixed(corpus: Path, tmp_path: Path) -> None:
    from searchkit.cli.ray_index import _parts_before

    (tmp_path / "part-1-of-3.index").mkdir()
    assert _parts_before(str(tmp_path), None) == _parts_before(str(tmp_path), 3) == 3
    with pytest.raises(StoreError, match="holds parts of 3"):
        _parts_before(str(tmp_path), 4)
