"""Fetch BEIR collections by name, through the loaders of mteb, as folders in BEIR form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from searchkit.errors import InputError, MissingExtraError
from searchkit.new_folder import new_folder
from searchkit.tasks import find_task

_FORUMS = (
    "Android", "English", "Gaming", "Gis", "Mathematica", "Physics", "Programmers", "Stats", "Tex", "Unix",
    "Webmasters", "Wordpress",
)  # fmt: skip

TASKS: dict[str, tuple[str, ...]] = {
    "arguana": ("ArguAna",),
    "climate-fever": ("ClimateFEVER",),
    "cqadupstack": tuple(f"CQADupstack{forum}Retrieval" for forum in _FORUMS),
    "dbpedia": ("DBPedia",),
    "fever": ("FEVER",),
    "fiqa": ("FiQA2018",),
    "hotpotqa": ("HotpotQA",),
    "msmarco": ("MSMARCO",),
    "nfcorpus": ("NFCorpus",),
    "nq": ("NQ",),
    "quora": ("QuoraRetrieval",),
    "scidocs": ("SCIDOCS",),
    "scifact": ("SciFact",),
    "touche2020": ("Touche2020",),
    "trec-covid": ("TRECCOVID",),
}
"""BEIR's collections and their names in mteb; CQADupStack has one per forum."""

LICENSED = {
    "bioasq": "http://participants-area.bioasq.org",
    "robust04": "https://trec.nist.gov/data/cd45",
    "signal1m": "https://research.signal-ai.com/datasets/signal1m-tweetir.html",
    "trec-news": "https://trec.nist.gov/data/wapost",
}
"""BEIR's four collections that may not be redistributed, and where to get them."""


def download(folder: Path, names: Iterable[str], on_step: Callable[[str], None] = lambda step: None) -> None:
    """Fetch collections into `folder`, each into a folder of its own; existing ones are skipped.

    Args:
        folder: Created if missing.
        names: Names of collections, as `find_task` accepts them.
        on_step: Called with what is being fetched.

    Raises:
        MissingExtraError: mteb is not installed.
        InputError: A name is not one of BEIR's, the collection may not be redistributed, or it could not be fetched.
    """
    for name in names:
        key = task.name if (task := find_task(name)) else name.lower()
        if key in LICENSED:
            raise InputError(
                f"{key} may not be redistributed: get it from {LICENSED[key]}, and write it into {folder / key} as "
                "corpus.jsonl, queries.jsonl and qrels/test.tsv"
            )
        if key not in TASKS:
            raise InputError(f"{name!r} is not a BEIR collection; expected one of {', '.join(TASKS)}")
        target = folder / key
        if target.exists():
            continue
        on_step(f"fetching {key}")
        with new_folder(target) as new:
            for task_name in TASKS[key]:
                part = new / task_name if len(TASKS[key]) > 1 else new
                _write(_fetch(task_name), part, task.split if task else "test")


def _fetch(name: str) -> Any:
    """An mteb task with its data."""
    try:
        import mteb
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"fetching {name} needs {error.name}: pip install 'searchkit[mteb]'", name=error.name
        ) from error
    task: Any = mteb.get_task(name)
    try:
        task.load_data()
    except Exception as error:  # the hub's client raises many types; each means that the data did not arrive
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} could not be fetched ({type(error).__name__}: {reason}); "
            "check the network, or use a BEIR folder that you already have"
        ) from error
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    return task


def _write(task: Any, folder: Path, split: str) -> None:
    """One split of a task as corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv."""
    subset = next(iter(task.dataset.values()))
    if split not in subset:
        raise InputError(f"{task.metadata.name} has the splits {', '.join(subset)}, expected {split}")
    data = subset[split]
    (folder / "qrels").mkdir(parents=True)
    _lines(folder / "corpus.jsonl", data["corpus"], ("title", "text"))
    _lines(folder / "queries.jsonl", data["queries"], ("text",))
    qrels: Mapping[str, Mapping[str, int]] = data["relevant_docs"]
    with (folder / "qrels" / f"{split}.tsv").open("w", encoding="utf-8") as stream:
        stream.write("query-id\tcorpus-id\tscore\n")
        for query, gains in qrels.items():
            stream.writelines(f"{query}\t{document}\t{gain}\n" for document, gain in gains.items())


def _lines(file: Path, rows: Iterable[Mapping[str, Any]], fields: tuple[str, ...]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            kept = {"_id": row["id"], **{name: row.get(name) or "" for name in fields}}
            stream.write(json.dumps(kept, ensure_ascii=False) + "\n")
