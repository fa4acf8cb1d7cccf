"""A folder of BEIR collections: index each, search it by its own rules, and average."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from searchkit.engine import SearchEngine
from searchkit.errors import CorpusError
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions
from searchkit.readers.corpus import read_corpus
from searchkit.readers.download import PART
from searchkit.readers.judgements import read_judgements
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
    """One collection on disk.

    Args:
        name: Of its folder.
        parts: Folders in BEIR form: one, or those of its sub-forums, whose results are averaged.
    """

    name: str
    parts: tuple[Path, ...]

    @property
    def task(self) -> str:
        """The name it is known by in `searchkit.tasks`, or else its own."""
        known = find_task(self.name)
        return known.name if known else self.name

    @property
    def rules(self) -> Task | None:
        """How it is published: by its own name, without its language, or by that of its folder, as "miracl/de"."""
        bare = self.name[:-3] if language_of(self.name) and len(self.name) > 3 else self.name
        return find_task(bare) or find_task(self.parts[0].resolve().parent.name)


def find_sets(folder: Path, names: Sequence[str] = ()) -> list[BeirSet]:
    """The collections in a folder, by name; a folder of collections, such as CQADupStack's forums, is one of them.

    Args:
        folder: Holds a folder a collection.
        names: Only these, under any of their names; none takes all.

    Raises:
        CorpusError: There is none, or none of a name that was asked for.
    """
    if not folder.is_dir():
        raise CorpusError(
            f"there is no folder {folder}; name one with collections in BEIR form, or fetch some: --download"
        )
    found = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and path.suffix != PART):
        parts = (place,) if _is_set(place) else tuple(sorted(path for path in place.iterdir() if _is_set(path)))
        if parts:
            found.append(BeirSet(place.name, parts))
    if not found:
        raise CorpusError(
            f"{folder} holds no collection in BEIR form: a folder each with corpus.jsonl, queries.jsonl and qrels/"
        )
    if not names:
        return found
    by_task = {one.task: one for one in found}
    wanted = [task.name if (task := find_task(name)) else name for name in names]
    if missing := [name for name, task in zip(names, wanted, strict=True) if task not in by_task]:
        raise CorpusError(f"{folder} has no collection {quoted(missing)}; there are {quoted(by_task)}")
    return [by_task[task] for task in dict.fromkeys(wanted)]


def language_of(name: str) -> str | None:
    """The language of words that a collection's name ends with, as "de" or "miracl-de"; None where it says none.

    Languages that have no stemmer here get "none": another's would be wrong.
    """
    code = re.split(r"[-_.]", name.lower())[-1]
    return "none" if code in _UNSTEMMED else _STEMMED.get(code)


def _is_set(folder: Path) -> bool:
    files = [folder / "corpus.jsonl", folder / "queries.jsonl"]
    return all(file.is_file() for file in files) and (folder / "qrels").is_dir()


def measure_set(
    one: BeirSet,
    embedder: Embedder,
    indexes: Path,
    *,
    modes: Sequence[str],
    split: str | None = None,
    instruction: str | None = None,
    options: SearchOptions | None = None,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Index a collection, or go on with its index, and measure it by the rules it is published with.

    Documents stay whole, as published figures have them. The split, the dropping of a query's own document and, for
    models trained with instructions, the instruction are those of the collection's name, or of the folder's that it is
    in. Words are stemmed by the language that the name ends with ("de", "miracl-de"), else as English.

    Args:
        one: The collection.
        embedder: What embeds it.
        indexes: Folder for an index a part; those that are there already are used and completed.
        modes: Some of :data:`searchkit.evaluation.evaluate.EVALUATION_MODES`.
        split: Another than the collection's own.
        instruction: Another than the collection's own; "" none.
        options: Fusion settings.
        on_step: Told what is being done.

    Returns:
        {mode: {metric: mean}}, where a collection has several parts the mean of theirs.

    Raises:
        ValueError: An index there is of another model, or a file is not as it should be.
    """
    told = on_step or (lambda step: None)
    indexes.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, dict[str, float]]] = []
    for part in one.parts:
        name = one.name if part.name == one.name else f"{one.name}-{part.name}"
        judgements = read_judgements(part, split=split, task=one.rules)
        judgements = judgements.for_model(embedder.conventions.default_instruction)
        if instruction is not None:
            judgements = replace(judgements, instruction=instruction)
        place, language = indexes / f"{name}.index", language_of(part.name)
        with SearchEngine.create(place, model=embedder, chunk_tokens=0, language=language, exist_ok=True) as engine:
            told(f"{name}: indexing")
            engine.add(read_corpus(part, kind="beir"))
            evaluations = evaluate(
                engine,
                judgements,
                modes=modes,
                options=options,
                on_mode=lambda mode, name=name: told(f"{name}: searching {mode}"),  # type: ignore[misc]
            )
            results.append({item.mode: item.metrics for item in evaluations})
    return {
        mode: {metric: sum(part[mode][metric] for part in results) / len(results) for metric in results[0][mode]}
        for mode in results[0]
    }


def published(model: str, task: str) -> float | None:
    """Published nDCG@10 of a model, by its name or the name of its folder, on a task; None where it is not known."""
    name = _ALIASES.get(model, Path(model).name)
    row = next((values for known, values in PUBLISHED.items() if known.lower() == name.lower()), {})
    return row.get(task)


def averages(sets: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean of {set: {mode: {metric: value}}} over the sets, which count alike however large they are."""
    first = next(iter(sets.values()))
    return {
        mode: {metric: sum(one[mode][metric] for one in sets.values()) / len(sets) for metric in metrics}
        for mode, metrics in first.items()
    }
