"""The paper's experiment, whole, on a random decoder: killed, resumed, and its report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import build_model

from searchkit.models.embedder import Embedder
from searchkit.training.paper.command import main
from searchkit.training.paper.sets import dev_collection, judged_collection
from searchkit.training.paper.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TOPICS = ("tea", "bread", "granite", "tides", "violins", "bees", "glass", "snow", "maps", "ferns")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder, pairs, examples with ids, and a collection with a train and a test split."""
    place = tmp_path_factory.mktemp("paper")
    build_model(place / "lm", "llama", eos=False)
    (place / "pairs").mkdir()
    rows = [
        {"query": f"what is {topic}", "positive": f"A text that says what {topic} is, and why."} for topic in TOPICS
    ]
    (place / "pairs" / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    beir = place / "beir" / "facts"
    (beir / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": f"All about {topic}."} for n, topic in enumerate(TOPICS)]
    (beir / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    queries = [{"_id": f"q{n}", "text": f"{topic}?"} for n, topic in enumerate(TOPICS)]
    (beir / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    for split, numbers in (("train", range(5)), ("test", range(5, 10))):
        judged = "".join(f"q{n}\td{n}\t1\n" for n in numbers)
        (beir / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    (place / "synthetic").mkdir()
    written = [{"query": f"tell me of {topic}", "positive_id": f"d{n}"} for n, topic in enumerate(TOPICS)]
    (place / "synthetic" / "facts.jsonl").write_text("\n".join(map(json.dumps, written)))
    return place


def arguments(place: Path, out: Path, *more: str) -> list[str]:
    """A run of four steps that evaluates after every second one."""
    return [
        str(place / "lm"), str(out), "--pairs", str(place / "pairs"), "--synthetic", str(place / "synthetic"), "--eval",
        str(place / "beir" / "facts"), "--queries", "4", "--documents", "20",
        "--dev-queries", "5", "--dev-documents", "20", "--steps", "4", "--batch-size", "4",
        "--max-length", "256", "--evaluate-every", "2", "--precision", "float32", *more,
    ]  # fmt: skip


def test_a_killed_experiment_resumes_and_ends_as_one_that_was_not(place: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(arguments(place, whole, "--layers", "1", "--data", "pairs"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "searchkit.training.paper",
        *arguments(place, killed, "--layers", "1", "--data", "pairs"),
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    checkpoint = killed / "runs" / "pairs" / "model" / "checkpoints" / "step-0000002"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "runs" / "pairs" / "model" / "modules.json").exists()
    main(arguments(place, killed, "--layers", "1", "--data", "pairs"))
    first, second = ((out / "table.md").read_text().splitlines() for out in (whole, killed))
    without_minutes = [[line.split("|")[:4] + line.split("|")[5:] for line in lines] for lines in (first, second)]
    assert without_minutes[0] == without_minutes[1]
    curves = [json.loads((out / "runs" / "pairs" / "result.json").read_text())["curve"] for out in (whole, killed)]
    assert curves[0] == curves[1]
    assert list(curves[0]) == ["0", "2", "4"]
    assert set(curves[0]["4"]) == {"facts, train", "intents, dev"}
    assert (killed / "curves.png").stat().st_size > 0
    trained = Embedder(killed / "runs" / "pairs" / "model")
    assert (trained.conventions.pooling, trained.conventions.append_eos) == ("last", True)
    assert trained.runtime.model.config.num_hidden_layers == 1


def test_every_ablation_changes_what_it_names(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", "pairs", "--pooling", "mean", "--no-eos", "--no-instruction", "--rank", "8", "--no-negatives"]
    main(arguments(place, tmp_path / "out", *flags))
    name = "pairs, mean, no EOS, no instruction, rank 8, no hard negatives"
    folder = tmp_path / "out" / "runs" / "pairs-mean-no-eos-no-instruction-rank-8-no-hard-negatives" / "model"
    config = json.loads((folder / "training.json").read_text())
    told = ("pooling", "append_eos", "instructed", "lora_rank", "negatives_per_query")
    assert [config[one] for one in told] == ["mean", False, 0.0, 8, 0]
    trained = Embedder(folder)
    assert (trained.conventions.pooling, trained.conventions.default_instruction) == ("mean", None)
    main(arguments(place, tmp_path / "out", "--data", "synthetic"))  # another row of the same table
    table = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split("|")[1].strip() for line in table] == [
        "BM25", "built-in model", "synthetic: before", "synthetic: after", f"{name}: before", f"{name}: after",
    ]  # fmt: skip


def test_reduced_collections_keep_all_that_is_relevant(place: Path) -> None:
    found = judged_collection(place / "beir" / "facts", 2, 5)
    assert (len(found.queries), len(found.documents)) == (2, 5)
    ids = {document.id for document in found.documents}
    assert all(set(found.qrels[query.id]) <= ids for query in found.queries)
    dev = dev_collection(place / "beir" / "facts", 0, 0)
    assert dev is not None
    assert (dev.split, len(dev.queries)) == ("train", 5)
    assert not {query.id for query in dev.queries} & {query.id for query in found.queries}
    assert {query.instruction for query in found.judgements(instructed=False).queries} == {""}


@pytest.mark.parametrize(
    ("changes", "message"),
    [(["--pairs", "nowhere"], "nowhere does not exist"), (["--layers", "9"], "has 2 layers"),
     (["--layers", "0"], "layers is 0; expected 1 or more")],
)  # fmt: skip
def test_a_mistake_gets_a_message(place: Path, tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(arguments(place, tmp_path / "out", *changes))


def test_an_embedder_is_no_start(place: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="embeds already"):
        main(["builtin", *arguments(place, tmp_path / "out")[1:]])


def test_a_run_is_named_by_what_differs_from_the_paper() -> None:
    assert Settings().name == "both"
    assert (
        Settings(data="pairs", pooling="weighted-mean", bidirectional=True).name
        == "pairs, weighted-mean, bidirectional"
    )
