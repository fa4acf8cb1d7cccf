"""The collections of the experiment: test splits to judge by, and small dev sets to watch a run."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.records import Document, Judgements, Qrels, Query
from searchkit.tasks import WEB_SEARCH, find_task


@dataclass(frozen=True, slots=True)
class Collection:
    """Documents, queries and judgements.

    Args:
        name: The folder's.
        split: Of the judgements.
        documents: All of them, or those of a reduced collection.
        queries: With instructions of their own where the collection has such.
        qrels: The judgements.
        instruction: For queries without their own: the task's in the paper, or that of a web search.
    """

    name: str
    split: str
    documents: list[Document]
    queries: list[Query]
    qrels: Qrels
    instruction: str

    def judgements(self, *, instructed: bool) -> Judgements:
        """Queries and judgements, with or without instructions."""
        if instructed:
            return Judgements(self.name, self.queries, self.qrels, self.instruction)
        return Judgements(self.name, [replace(query, instruction="") for query in self.queries], self.qrels, "")


def judged_collection(folder: Path, queries: int, documents: int) -> Collection:
    """The test split of a BEIR folder.

    Args:
        folder: The folder; its name says which task it is.
        queries: Keep at most so many queries; 0 keeps all.
        documents: Keep at most so many documents; 0 keeps all.
    """
    return _read(folder, "test", queries, documents)


def dev_collection(folder: Path, queries: int, documents: int) -> Collection | None:
    """The dev split of a BEIR folder, or else its train split, reduced likewise; None if it has neither."""
    for split in ("dev", "train"):
        if any((folder / "qrels").glob(f"{split}.tsv*")):
            return _read(folder, split, queries, documents)
    return None


def _read(folder: Path, split: str, most_queries: int, most_documents: int) -> Collection:
    queries, qrels = read_beir_split(folder, split)
    documents = list(read_corpus(folder))
    task = find_task(folder.resolve().name)
    rng = random.Random(f"{folder.resolve().name}/{split}")
    most_documents = min(most_documents or len(documents), len(documents))
    # Each query comes with all that is relevant to it; two fifths of the documents are relevant to none of them.
    room = most_documents if most_documents == len(documents) else most_documents * 3 // 5
    kept, chosen = set[str](), list[Query]()
    for query in rng.sample(queries, len(queries)):
        relevant = {id for id, gain in qrels[query.id].items() if gain > 0}
        if relevant and len(kept | relevant) <= room and len(chosen) < (most_queries or len(queries)):
            kept |= relevant
            chosen.append(query)
    others = [document.id for document in documents if document.id not in kept]
    kept |= set(rng.sample(others, min(len(others), most_documents - len(kept))))
    return Collection(
        name=folder.resolve().name,
        split=split,
        documents=[document for document in documents if document.id in kept],
        queries=chosen,
        qrels={query.id: {id: gain for id, gain in qrels[query.id].items() if id in kept} for query in chosen},
        instruction=task.instruction if task else WEB_SEARCH,
    )
