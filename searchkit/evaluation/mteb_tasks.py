"""Run mteb's tasks, by their names or over local BEIR folders, and read what came out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from searchkit.errors import CorpusError, InputError, MissingExtraError, RowError
from searchkit.evaluation.mteb_adapter import MtebEncoder, MtebSearch
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions, as_mode
from searchkit.readers.judgements import read_beir_split
from searchkit.readers.lines import json_lines
from searchkit.readers.values import checked_id
from searchkit.tasks import find_task

_SHOWN = {"ndcg@10": "ndcg_at_10", "recall@100": "recall_at_100", "map@100": "map_at_100", "mrr@10": "mrr_at_10"}


@dataclass(frozen=True, slots=True)
class MtebScore:
    """What one way of answering a task is worth.

    Args:
        task: Its name.
        mode: A search mode, or "encoder" for tasks that are no search.
        metrics: The means over the task's subsets and splits, as mteb rounds them: our four for a search, else mteb's
            main score by its name.
        seconds_per_query: Embedding and search; None where nothing was searched, or results were there already.
        bytes_per_document: As in :class:`searchkit.evaluation.evaluate.Evaluation`; None likewise.
        file: mteb's own result file.
    """

    task: str
    mode: str
    metrics: dict[str, float]
    seconds_per_query: float | None
    bytes_per_document: float | None
    file: Path


def find_tasks(names: Sequence[str]) -> list[Any]:
    """Tasks by mteb's names, or for paths of BEIR folders; nothing is downloaded yet.

    Raises:
        ImportError: mteb is missing.
        ValueError: There is neither such a folder nor such a task.
    """
    try:
        import mteb
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"mteb's tasks need {error.name}: pip install 'searchkit[mteb]'", name=error.name
        ) from error
    tasks = []
    for name in names:
        if Path(name).is_dir():
            tasks.append(beir_task(Path(name)))
            continue
        try:
            tasks.append(mteb.get_task(name))
        except KeyError as error:
            raise InputError(
                f"no folder and no task of mteb is called {name!r} ({str(error.args[0]).removeprefix('KeyError: ')}); "
                "give a task's name as mteb writes it, or a folder in BEIR form"
            ) from None
    return tasks


def beir_task(folder: Path) -> Any:
    """A retrieval task of mteb over a local folder in BEIR form, by the rules of the collection's name.

    Every row of the corpus is in it, blank ones too, as mteb would have it.

    Args:
        folder: Holds corpus.jsonl, queries.jsonl and qrels/.

    Raises:
        CorpusError: On a bad row, or where judgements and queries do not belong together; once the data are loaded.
    """
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    name = folder.resolve().name
    known = find_task(name)
    split = known.split if known else "test"
    if not (folder / "corpus.jsonl").is_file():
        raise CorpusError(f"{folder}: not a BEIR folder, which holds corpus.jsonl, queries.jsonl and qrels/{split}.tsv")

    class BeirTask(AbsTaskRetrieval):  # type: ignore[misc,unused-ignore]
        """What its metadata says."""

        metadata = TaskMetadata(
            name=name,
            description=f"A local collection in BEIR form, {name}.",
            dataset={"path": name, "revision": _digest(folder, split)},
            type="Retrieval",
            category="t2t",
            eval_splits=[split],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )
        ignore_identical_ids = bool(known and known.drop_self)
        data_loaded: bool = False

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            """Read the folder."""
            if self.data_loaded:
                return
            queries, qrels = read_beir_split(folder, split)
            data = {
                "corpus": Dataset.from_list(_rows(folder / "corpus.jsonl")),
                "queries": Dataset.from_list([{"id": query.id, "text": query.text} for query in queries]),
                "relevant_docs": qrels,
                "top_ranked": None,
            }
            self.dataset = {"default": {split: data}}
            self.data_loaded = True

    return BeirTask()


def _rows(file: Path) -> list[dict[str, str]]:
    """The documents of a BEIR corpus, blank ones too."""
    rows = []
    for place, values in json_lines(file):
        try:
            rows.append(
                {"id": checked_id(values.get("_id")), "title": values.get("title") or "", "text": values["text"]}
            )
        except RowError as error:
            raise CorpusError(f"{place}: {error}") from None
        except KeyError:
            raise CorpusError(f'{place}: no "text"; a BEIR corpus has "_id", "title" and "text"') from None
    return rows


def _digest(folder: Path, split: str) -> str:
    """SHA-256 of the collection's files: mteb takes results for those of the same data by this."""
    digest = hashlib.sha256()
    for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"):
        if (folder / name).is_file():
            with (folder / name).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:40]


def measure_task(
    task: Any,
    embedder: Embedder,
    *,
    results: Path,
    indexes: Path,
    modes: Sequence[str] = ("dense", "lexical", "hybrid"),
    recipe: str = "flat",
    instruction: str | None = None,
    options: SearchOptions | None = None,
    on_step: Callable[[str], None] | None = None,
) -> list[MtebScore]:
    """Run one task by mteb's own evaluator, unless its results are there already.

    A search (retrieval, reranking) is answered by an index in every mode, any other task by the embedder.

    Args:
        task: What :func:`find_tasks` gives.
        embedder: The model.
        results: Folder for mteb's result files, in mteb's own layout.
        indexes: Folder for an index a corpus.
        modes: Ways to search.
        recipe: How the indexes' vectors are stored.
        instruction: In the place of the task's own; "" is none.
        options: Fusion settings.
        on_step: Told what is being done.

    Raises:
        ValueError: The task's data could not be fetched, or are not text.
    """
    told = on_step or (lambda step: None)
    name = task.metadata.name
    if not _is_search(task):
        told(f"{name}: embedding")
        return [_run(task, MtebEncoder(embedder, instruction=instruction), results, "encoder")]
    scores = []
    for mode in modes:
        told(f"{name}: {mode}")
        how = replace(options or SearchOptions(), mode=as_mode(mode))
        model = MtebSearch(embedder, indexes=indexes, options=how, recipe=recipe, instruction=instruction)
        try:
            scores.append(_run(task, model, results, mode))
        finally:
            model.close()
    return scores


def _is_search(task: Any) -> bool:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    if task.is_aggregate:
        return all(_is_search(one) for one in task.metadata.tasks)
    return isinstance(task, AbsTaskRetrieval)


def _run(task: Any, model: MtebEncoder | MtebSearch, results: Path, mode: str) -> MtebScore:
    import mteb
    from datasets.exceptions import DatasetNotFoundError

    name, cache, meta = task.metadata.name, mteb.ResultCache(results), model.mteb_model_meta
    before = cache.load_task_result(name, meta)
    # mteb takes results over whatever the data were; with other data they are no results.
    strategy = "always" if before and before.dataset_revision != task.metadata.revision else "only-missing"
    try:
        found = mteb.evaluate(
            model, task, cache=cache, overwrite_strategy=strategy, co2_tracker=False, show_progress_bar=False
        )
    except (ConnectionError, DatasetNotFoundError) as error:
        raise InputError(_unreachable(name, str(error))) from error
    if found.exceptions:
        raise InputError(_unreachable(name, found.exceptions[0].exception))
    # A task that is made of others keeps their average alone: theirs have the rest.
    parts = [
        cache.load_task_result(one.metadata.name, meta)
        for one in (task.metadata.tasks if task.is_aggregate else [task])
    ]
    entries = [entry for part in parts if part for split in part.scores.values() for entry in split]
    shown = _SHOWN if mode != "encoder" else {task.metadata.main_score: "main_score"}
    metrics = {ours: sum(entry[theirs] for entry in entries) / len(entries) for ours, theirs in shown.items()}
    costs = list(model.costs.values()) if isinstance(model, MtebSearch) else []
    seconds, size = (sum(values) / len(costs) for values in zip(*costs, strict=True)) if costs else (None, None)
    return MtebScore(name, mode, metrics, seconds, size, cache.get_task_result_path(name, meta))


def _unreachable(name: str, why: str) -> str:
    return (
        f"the data of {name} did not come: {why}. mteb's tasks come from huggingface.co: check the network, and with "
        "HF_HUB_OFFLINE that they are in its cache; or measure a collection on disk, with its BEIR folder for the task"
    )
