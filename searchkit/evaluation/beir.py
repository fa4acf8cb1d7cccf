"""A folder of BEIR collections: index each, evaluate it by its published rules, and average."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from searchkit.engine import SearchEngine
from searchkit.errors import CorpusError
from searchkit.evaluation.evaluate import check_modes, evaluate
from searchkit.models.embedder import Embedder
from searchkit.new_folder import PART
from searchkit.ranking import SearchOptions
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_judgements
from searchkit.readers.lines import gz_or_plain
from searchkit.readers.values import quoted
from searchkit.tasks import Task, find_task

_ROWS = ("scifact", "nfcorpus", "arguana", "fiqa", "scidocs", "trec-covid", "quora", "touche2020")
PUBLISHED: dict[str, dict[str, float]] = {
    name: dict(zip(_ROWS, values, strict=True))
    for name, values in {
        "bm25": (0.6874, 0.3208, 0.4928, 0.2514, 0.1578, 0.6231, 0.8042, 0.3305),
        "all-MiniLM-L6-v2": (0.6451, 0.3159, 0.5017, 0.3687, 0.2164, 0.4723, 0.8755, 0.1690),
        "e5-mistral-7b-instruct": (0.7642, 0.3858, 0.6165, 0.5681, 0.1631, 0.8703, 0.8961, 0.2627),
        "Qwen3-Embedding-0.6B": (0.6972, 0.3671, 0.7097, 0.4661, 0.2441, 0.9052, 0.8778, 0.3318),
    }.items()
}
"""nDCG@10 on the test sets, {model: {task: value}}, from MTEB's results repository; bm25 is bm25s with English stop
words and a Snowball stemmer."""

_STEMMED = {
    "ar": "arabic", "da": "danish", "nl": "dutch", "en": "english", "fi": "finnish", "fr": "french", "de": "german",
    "el": "greek", "hu": "hungarian", "it": "italian", "no": "norwegian", "pt": "portuguese", "ro": "romanian",
    "ru": "russian", "es": "spanish", "sv": "swedish", "ta": "tamil", "tr": "turkish",
}  # fmt: skip
_UNSTEMMED = {"bn", "cs", "fa", "hi", "id", "ja", "ko", "pl", "sw", "te", "th", "uk", "ur", "vi", "yo", "zh"}
_ALIASES = {"minilm": "all-MiniLM-L6-v2"}


@dataclass(frozen=True, slots=True)
class BeirSet:
    """A collection on disk.

    Args:
        name: Name of its folder.
        parts: Folders in BEIR format: one, or one for each sub-forum; their results are averaged.
    """

    name: str
    parts: tuple[Path, ...]

    @property
    def task(self) -> str:
        """Its name in `searchkit.tasks`, or else its own."""
        known = find_task(self.name)
        return known.name if known else self.name

    @property
    def rules(self) -> Task | None:
        """Its published rules: by its own name without the language, or by its parent folder's, as in "miracl/de"."""
        bare = self.name[:-3] if language_of(self.name) and len(self.name) > 3 else self.name
        return find_task(bare) or find_task(self.parts[0].resolve().parent.name)


def find_sets(folder: Path, names: Sequence[str] = ()) -> list[BeirSet]:
    """The collections in a folder, by name; a folder of folders, such as CQADupStack's forums, is one collection.

    Args:
        folder: Holds a folder for each collection.
        names: The collections to return, by any of their names; empty returns all.

    Raises:
        CorpusError: The folder holds no collection, or lacks one of `names`.
    """
    if not folder.is_dir():
        raise CorpusError(
            f"there is no folder {folder}; name one with collections in BEIR format, or download some with --download"
        )
    sets = []
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and path.suffix != PART):
        parts = (path,) if _is_set(path) else tuple(sorted(part for part in path.iterdir() if _is_set(part)))
        if parts:
            sets.append(BeirSet(path.name, parts))
    if not sets:
        hint = f"; it is a collection itself: name the folder that holds it, with --sets {folder.resolve().name}"
        raise CorpusError(
            f"{folder} holds no collection in BEIR format: folders with corpus.jsonl, queries.jsonl and qrels/"
            + (hint if _is_set(folder) else "")
        )
    if not names:
        return sets
    by_task = {collection.task: collection for collection in sets}
    wanted = [task.name if (task := find_task(name)) else name for name in names]
    if missing := [name for name, task in zip(names, wanted, strict=True) if task not in by_task]:
        raise CorpusError(f"{folder} has no collection {quoted(missing)}; there are {quoted(by_task)}")
    return [by_task[task] for task in dict.fromkeys(wanted)]


def language_of(name: str) -> str | None:
    """The stemming language of a collection whose name ends with a language code, such as "de" or "miracl-de".

    None without a code; "none" for a language without a stemmer, since another language's would be wrong.
    """
    code = re.split(r"[-_.]", name.lower())[-1]
    return "none" if code in _UNSTEMMED else _STEMMED.get(code)


def _is_set(folder: Path) -> bool:
    files = [folder / "corpus.jsonl", folder / "queries.jsonl"]
    return all(gz_or_plain(file).is_file() for file in files) and (folder / "qrels").is_dir()


def measure_set(
    collection: BeirSet,
    embedder: Embedder,
    indexes: Path,
    *,
    modes: Sequence[str],
    split: str | None = None,
    instruction: str | None = None,
    options: SearchOptions | None = None,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Index a collection, or resume its index, and evaluate it by its published rules.

    Documents are not split into passages, as for published figures. The name of the collection, or of its parent
    folder, decides the split, whether a query's own document is dropped and, for models trained with instructions, the
    instruction. Words are stemmed by the language code at the end of the name ("de", "miracl-de"), else as English.

    Args:
        collection: The collection.
        embedder: The model.
        indexes: Folder of the indexes, one for each part; existing ones are used and completed.
        modes: Some of :data:`searchkit.evaluation.evaluate.EVALUATION_MODES`.
        split: A split instead of the published one.
        instruction: An instruction instead of the published one; "" none.
        options: Fusion settings.
        on_step: Called with a message before each step.

    Returns:
        {mode: {metric: mean}}; over the parts, if there are several.

    Raises:
        InputError: A mode is unknown or a file is invalid.
        StoreError: An existing index belongs to another model.
    """
    check_modes(modes)
    announce = on_step or (lambda step: None)
    indexes.mkdir(parents=True, exist_ok=True)
    results = []
    for part in collection.parts:
        name = collection.name if part.name == collection.name else f"{collection.name}-{part.name}"
        judgements = read_judgements(part, split=split, task=collection.rules)
        judgements = judgements.for_model(embedder.conventions.default_instruction)
        if instruction is not None:
            judgements = replace(judgements, instruction=instruction)
        folder, language = indexes / f"{name}.index", language_of(part.name)
        with SearchEngine.create(folder, model=embedder, chunk_tokens=0, language=language, exist_ok=True) as engine:
            announce(f"{name}: indexing")
            engine.add(read_corpus(part, kind="beir"))
            on_mode = partial(_announce_search, announce, name)
            evaluations = evaluate(engine, judgements, modes=modes, options=options, on_mode=on_mode)
        results.append({item.mode: item.metrics for item in evaluations})
    return _mean(results)


def _announce_search(announce: Callable[[str], None], name: str, mode: str) -> None:
    announce(f"{name}: searching {mode}")


def published(model: str, task: str) -> float | None:
    """Published nDCG@10 of a model, by its name or the name of its folder, on a task; None if unknown."""
    name = _ALIASES.get(model, Path(model).name)
    row = next((values for known, values in PUBLISHED.items() if known.lower() == name.lower()), {})
    return row.get(task)


def averages(sets: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean of {set: {mode: {metric: value}}} over the sets; each has the same weight, whatever its size."""
    return _mean(list(sets.values()))


def _mean(results: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        mode: {metric: sum(result[mode][metric] for result in results) / len(results) for metric in metrics}
        for mode, metrics in results[0].items()
    }
