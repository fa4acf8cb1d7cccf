"""Run mteb's tasks, by their names or over local BEIR folders, and read the results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from searchkit.errors import CorpusError, InputError, MissingExtraError, RowError
from searchkit.evaluation.mteb_adapter import MtebEncoder, MtebSearch
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions, as_mode
from searchkit.readers.judgements import read_beir_split
from searchkit.readers.lines import gz_or_plain, json_lines, open_bytes
from searchkit.readers.values import checked_id
from searchkit.tasks import find_task

_SHOWN = {"ndcg@10": "ndcg_at_10", "recall@100": "recall_at_100", "map@100": "map_at_100", "mrr@10": "mrr_at_10"}


@dataclass(frozen=True, slots=True)
class MtebScore:
    """A task's scores in one mode.

    Args:
        task: Name of the task.
        mode: A search mode, or "encoder" for tasks other than retrieval.
        metrics: Means over the task's subsets and splits, as mteb rounds them: our four for retrieval, else mteb's
            main score by its name.
        seconds_per_query: Embedding and search; None if nothing was searched, or results existed already.
        bytes_per_document: As in :class:`searchkit.evaluation.evaluate.Evaluation`; None likewise.
        file: mteb's result file.
    """

    task: str
    mode: str
    metrics: dict[str, float]
    seconds_per_query: float | None
    bytes_per_document: float | None
    file: Path


@dataclass(frozen=True, slots=True)
class MtebOptions:
    """How tasks are run.

    Args:
        results: Folder for mteb's result files, in mteb's layout.
        indexes: Folder for the indexes, one for each corpus.
        modes: Search modes.
        recipe: How the indexes store vectors.
        instruction: Instruction instead of the task's own; "" is none.
        search: Fusion settings; their mode is ignored.
    """

    results: Path
    indexes: Path
    modes: Sequence[str] = MODES
    recipe: str = "flat"
    instruction: str | None = None
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        for mode in self.modes:
            as_mode(mode)


def find_tasks(names: Sequence[str]) -> list[Any]:
    """Tasks by mteb's names or paths of BEIR folders; nothing is downloaded yet.

    Raises:
        MissingExtraError: mteb is missing.
        InputError: There is neither such a folder nor such a task.
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
    """A retrieval task of mteb over a local folder in BEIR format, by the published rules of its name.

    Its corpus contains blank documents too, as mteb's do.

    Args:
        folder: Holds corpus.jsonl, queries.jsonl and qrels/.

    Raises:
        CorpusError: The folder is not in BEIR format; once the data are loaded also for a bad row, or if judgements
            and queries do not belong together.
    """
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    name = folder.resolve().name
    known = find_task(name)
    split = known.split if known else "test"
    corpus = gz_or_plain(folder / "corpus.jsonl")
    if not corpus.is_file():
        raise CorpusError(f"{folder}: not a BEIR folder, which holds corpus.jsonl, queries.jsonl and qrels/{split}.tsv")

    class BeirTask(AbsTaskRetrieval):  # type: ignore[misc,unused-ignore]
        """The folder as a task."""

        metadata = TaskMetadata(
            name=name,
            description=f"A local collection in BEIR format, {name}.",
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
                "corpus": Dataset.from_list(_rows(corpus)),
                "queries": Dataset.from_list([{"id": query.id, "text": query.text} for query in queries]),
                "relevant_docs": qrels,
                "top_ranked": None,
            }
            self.dataset = {"default": {split: data}}
            self.data_loaded = True

    return BeirTask()


def _rows(file: Path) -> list[dict[str, str]]:
    """The documents of a BEIR corpus, including blank ones."""
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
    """SHA-256 of the collection's files, by which mteb recognises results of the same data."""
    digest = hashlib.sha256()
    for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"):
        file = gz_or_plain(folder / name)
        if file.is_file():
            with open_bytes(file) as stream:  # unpacked: a gzipped collection is the same data
                digest.update(hashlib.file_digest(stream, "sha256").digest())  # type: ignore[arg-type]
    return digest.hexdigest()[:40]


def measure_task(
    task: Any,
    embedder: Embedder,
    options: MtebOptions,
    *,
    on_step: Callable[[str], None] | None = None,
) -> list[MtebScore]:
    """Run a task with mteb's evaluator, unless its results exist already.

    Retrieval and reranking are answered by an index in every mode, other tasks by the embedder.

    Args:
        task: A task of :func:`find_tasks`.
        embedder: The model.
        options: How to run it.
        on_step: Called with a message before each step.

    Raises:
        InputError: The task's data could not be fetched, or are not text.
    """
    announce = on_step or (lambda step: None)
    name, instruction = task.metadata.name, options.instruction
    if not _is_search(task):
        announce(f"{name}: embedding")
        return [_run(task, MtebEncoder(embedder, instruction=instruction), options.results, "encoder")]
    scores = []
    for mode in options.modes:
        announce(f"{name}: {mode}")
        search = replace(options.search, mode=as_mode(mode))
        model = MtebSearch(
            embedder, indexes=options.indexes, options=search, recipe=options.recipe, instruction=instruction
        )
        try:
            scores.append(_run(task, model, options.results, mode))
        finally:
            model.close()
    return scores


def _is_search(task: Any) -> bool:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    if task.is_aggregate:
        return all(_is_search(part) for part in task.metadata.tasks)
    return isinstance(task, AbsTaskRetrieval)


def _run(task: Any, model: MtebEncoder | MtebSearch, results: Path, mode: str) -> MtebScore:
    import mteb
    from datasets.exceptions import DatasetNotFoundError

    name, cache, meta = task.metadata.name, mteb.ResultCache(results), model.mteb_model_meta
    before = cache.load_task_result(name, meta)
    # mteb reuses results whatever the data were; results of other data must not be reused.
    strategy = "always" if before and before.dataset_revision != task.metadata.revision else "only-missing"
    try:
        outcome = mteb.evaluate(
            model, task, cache=cache, overwrite_strategy=strategy, co2_tracker=False, show_progress_bar=False
        )
    except (ConnectionError, DatasetNotFoundError) as error:
        raise InputError(_unreachable(name, str(error))) from error
    if outcome.exceptions:
        raise InputError(_unreachable(name, outcome.exceptions[0].exception))
    # A task made of others keeps only their average; their own results have the rest.
    members = task.metadata.tasks if task.is_aggregate else [task]
    parts = [cache.load_task_result(member.metadata.name, meta) for member in members]
    entries = [entry for part in parts if part for split in part.scores.values() for entry in split]
    shown = _SHOWN if mode != "encoder" else {task.metadata.main_score: "main_score"}
    metrics = {ours: sum(entry[theirs] for entry in entries) / len(entries) for ours, theirs in shown.items()}
    costs = list(model.costs.values()) if isinstance(model, MtebSearch) else []
    seconds, size = (sum(values) / len(costs) for values in zip(*costs, strict=True)) if costs else (None, None)
    return MtebScore(name, mode, metrics, seconds, size, cache.get_task_result_path(name, meta))


def _unreachable(name: str, why: str) -> str:
    return (
        f"the data of {name} could not be loaded: {why}. mteb downloads them from huggingface.co: check the network, "
        "or with HF_HUB_OFFLINE its cache; or measure a local collection by giving its BEIR folder as the task"
    )
