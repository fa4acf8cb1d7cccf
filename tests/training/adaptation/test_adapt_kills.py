"""`adapt` is killed at many places, also while one index takes another's place, and ends as an unbroken run does."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import config_in, model_of, pairs_of, weights_in, without_extras
from commands import write_lines
from forked import Server, folder_in_memory, serve
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions
from searchkit.records import Document
from searchkit.training.adaptation.adapt import adapt
from searchkit.training.adaptation.report import read_report

KILLS = int(os.environ.get("SEARCHKIT_KILLS", "6"))
CHAIN = 6  # kills of one run
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree"}


CONFIGS = {"head": config_in, "all": weights_in}
STAGES = {
    "head": ["pairs", "fit", "export", "index", "evaluate"],
    "all": ["pairs", "mine", "general", "train", "export", "index", "evaluate"],
}


def adapt_until(embedder: Embedder, folder: str, train: str, kill_at: int | None) -> dict[str, Any]:
    """Adapt, and be killed at the n-th change of a file, or at the last one of all where n is -1.

    Files are changed by more than Python, but between any two stages Python changes one. At every second number the
    file that is opened for writing is there, and empty.
    """
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and str(arguments[0]).startswith(folder)
        if not writes and not (event in CHANGES and folder in str(arguments[0])):
            return
        count += 1
        last = event == "os.rename" and str(arguments[0]).endswith("after.index")
        if count == kill_at or (kill_at == -1 and last):
            if writes and count % 2:
                os.close(os.open(arguments[0], arguments[2], 0o644))
            os.kill(os.getpid(), signal.SIGKILL)

    without_extras(pytest.MonkeyPatch())  # of a process that ends here
    sys.addaudithook(watch)
    stages: list[str] = []
    config = CONFIGS[train](Path(folder))
    adapt(config, force=True, on_stage=lambda name, needed: stages.append(name) if needed else None)
    return {"changes": count, "stages": stages}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield folder


def make(folder: Path, model: Path) -> Path:
    with SearchEngine.create(folder / "notes.index", model=model) as engine:
        engine.add(Document(str(n), text.strip(), title=f"Note {n}") for n, text in enumerate(TEXTS))
    write_lines(folder / "pairs.jsonl", pairs_of(TEXTS))
    return folder


def check_equal(folder: Path, whole: Path, model: Path) -> None:
    out = folder / "out"
    assert model_of(folder / "notes.index") == str(out / "model")
    assert model_of(out / "before.index") == str(model)
    assert {file.name for file in folder.iterdir()} == {file.name for file in whole.iterdir()}
    assert {file.name for file in out.iterdir()} == {file.name for file in (whole / "out").iterdir()}
    names = {"pairs.kept.jsonl", "held-out.queries.jsonl", "held-out.qrels.tsv", "mined.jsonl", "general.jsonl"}
    for name in names & {file.name for file in out.iterdir()}:
        assert (out / name).read_bytes() == (whole / "out" / name).read_bytes()
    report, expected = (read_report(each / "out" / "report.json") for each in (folder, whole))
    assert (report.kept, report.pairs) == (True, expected.pairs)
    for mode, both in report.modes.items():
        assert both.before == expected.modes[mode].before
        assert both.after == pytest.approx(expected.modes[mode].after, abs=0.02)  # a rank or two by rounding
    made, unbroken = (Embedder(each / "out" / "model").encode_passages(TEXTS) for each in (folder, whole))
    np.testing.assert_allclose(made, unbroken, atol=1e-4)
    with SearchEngine.open(folder / "notes.index") as engine:
        hits = engine.search(TEXTS[5], k=30, options=SearchOptions(mode="dense"))
        query = engine.embedder.encode_queries([TEXTS[5]])[0]
        texts = engine.embedder.encode_passages([f"{hit.title} {hit.text}" for hit in hits])
        np.testing.assert_allclose([hit.score for hit in hits], texts @ query, atol=1e-3)
        assert len(hits) == 30


@pytest.mark.parametrize("train", CONFIGS)
def test_a_run_that_is_killed_ends_as_an_unbroken_one_does(
    train: str, place: Path, forks: Server, mistral: Path
) -> None:
    place /= train
    (place / "whole").mkdir(parents=True)
    whole = make(place / "whole", mistral)
    answer = forks.do("adapt", folder=str(whole), train=train, kill_at=None)
    assert answer["stages"] == STAGES[train]
    chance = random.Random(50)
    for first in range(0, KILLS, CHAIN):
        (place / f"killed-{first}").mkdir()
        folder = make(place / f"killed-{first}", mistral)
        kills = min(CHAIN, KILLS - first)
        points = [chance.randint(1, max(1, 2 * answer["changes"] // kills)) for _ in range(kills - 1)]
        done = []
        for point in [*points, -1]:
            forks.start("adapt", folder=str(folder), train=train, kill_at=point)
            status, _ = forks.finish()
            stages = folder / "out" / "stages.json"
            done.append(len(json.loads(stages.read_text())) if stages.exists() else 0)
            if status == 0:  # it was done before that many changes
                break
            assert status == signal.SIGKILL
        again = forks.do("adapt", folder=str(folder), train=train, kill_at=None)
        assert again["stages"] in ([], ["adapted"])
        print(f"of {answer['changes']} changes killed at {points}, when so many stages had begun: {done}")
        check_equal(folder, whole, mistral)
        assert kills < CHAIN or any(0 < stages < len(STAGES[train]) for stages in done)  # kills did come in the middle


if __name__ == "__main__":
    libraries = (
        "accelerate", "faiss", "matplotlib.pyplot", "pytrec_eval", "scipy.stats", "searchkit.training.train",
        "torch.utils.tensorboard", "transformers.models.auto", "transformers.models.mistral.modeling_mistral",
    )  # fmt: skip
    for library in libraries:
        import_module(library)  # here, and not in each child
    serve({"adapt": adapt_until})
