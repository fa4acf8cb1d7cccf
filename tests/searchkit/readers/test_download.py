"""BEIR's collections by name, written as folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from searchkit.readers.download import TASKS, download
from searchkit.readers.judgements import read_beir_split
from searchkit.tasks import find_task

mteb = pytest.importorskip("mteb", reason="mteb is not installed")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mteb's own tasks, with data from a folder in the place of the hub's."""
    from searchkit.evaluation.mteb_tasks import beir_task

    folder = tmp_path / "hub" / "scifact"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": f"Title {n}" if n else "", "text": f"text {n}\ttab"} for n in range(3)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "what?"}\n{"_id": "q2", "text": "why"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t2\nq1\td2\t0\nq2\td1\t1\n")
    monkeypatch.setattr(mteb, "get_task", lambda name: beir_task(folder))
    return folder


def test_a_collection_comes_as_a_folder_in_beir_form(hub: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    out = tmp_path / "beir"
    download(out, ["SciFact"], steps.append)
    assert (steps, [place.name for place in out.iterdir()]) == (["fetching scifact"], ["scifact"])
    for name in ("corpus.jsonl", "queries.jsonl"):
        rows = [list(map(json.loads, (place / name).read_text().splitlines())) for place in (hub, out / "scifact")]
        assert rows[0] == rows[1]
    assert read_beir_split(hub, "test") == read_beir_split(out / "scifact", "test")
    (out / "scifact" / "mine").write_text("")
    download(out, ["scifact"])
    assert (out / "scifact" / "mine").exists(), "what is there is left alone"


def test_forums_go_into_folders_of_their_own(hub: Path, tmp_path: Path) -> None:
    download(tmp_path, ["cqadupstack"])
    assert len([place for place in (tmp_path / "cqadupstack").iterdir() if (place / "corpus.jsonl").is_file()]) == 12


def test_what_was_not_finished_is_fetched_again(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "scifact.part" / "qrels").mkdir(parents=True)
    download(tmp_path, ["scifact"])
    assert (tmp_path / "scifact" / "corpus.jsonl").is_file()
    assert not (tmp_path / "scifact.part").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("robust04", "may not be redistributed: get it from https"),
        ("scifacts", "not a BEIR collection; expected one of arguana"),
    ],
)
def test_other_names_are_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        download(tmp_path, [name])


def test_without_the_hub_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"SciFact could not be fetched .* check the network"):
        download(tmp_path, ["scifact"])
    assert not (tmp_path / "scifact").exists()


def test_mteb_knows_every_name() -> None:
    for name, tasks in TASKS.items():
        assert find_task(name) is not None
        for task in tasks:
            assert mteb.get_task(task).metadata.type == "Retrieval"
