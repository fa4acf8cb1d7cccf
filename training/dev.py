"""The dev set of a training run: what the examples share with it, and how the model scores on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.readers.rejects import Rejects
from searchkit.records import Document, Judgements
from searchkit.tasks import find_task
from searchkit.training.contamination import Evaluation
from searchkit.training.log import Leaking
from searchkit.training.sources import Sources


class DevSet:
    """A BEIR folder and one of its splits.

    Args:
        name: FOLDER or FOLDER:SPLIT; the default split is dev.
        instructed: Search with the instruction of the set's task, where it is known; otherwise with the model's own.
    """

    def __init__(self, name: str, *, instructed: bool) -> None:
        self.name = name
        folder, colon, split = name.rpartition(":")
        self._folder, self._split = (Path(folder), split) if colon else (Path(name), "dev")
        task = find_task(self._folder.resolve().name)
        self.instruction = task.instruction if task and instructed else None

    def leaks(self, sources: Sources) -> list[Leaking]:
        """What every source shares with the set."""
        evaluation = Evaluation(read_beir_split(self._folder, self._split)[0], read_corpus(self._folder))
        report = []
        for source, examples in sources:
            leaks = evaluation.find_leaks(examples)
            sample = leaks.questions.samples[0].text if leaks.questions else None
            report.append(
                Leaking(
                    str(source.path), len(examples), len(leaks.questions), len(leaks.documents), len(leaks.low_entropy),
                    sample,
                )
            )  # fmt: skip
        return report

    def refuse_leaks(self, leaks: list[Leaking]) -> None:
        """Raise InputError if a source repeats queries of the set."""
        for leaking in leaks:
            if leaking.questions:
                raise InputError(
                    f"{leaking.source} shares {leaking.questions} queries with {self.name}, such as "
                    f"{leaking.sample!r}, so a score there would mean nothing. Remove them, or continue with "
                    "--allow-leaks"
                )

    def score(self, embedder: Embedder) -> float:
        """nDCG@10 of dense search, by the project's own engine."""
        judgements = Judgements("dev", *read_beir_split(self._folder, self._split), self.instruction)
        with tempfile.TemporaryDirectory() as temporary:
            rejects = Rejects(Path(temporary) / "rejects.jsonl")
            return ndcg(embedder, read_corpus(self._folder, rejects=rejects), judgements)["dense"]


def ndcg(
    embedder: Embedder, documents: Iterable[Document], judgements: Judgements, *, modes: Sequence[str] = ("dense",)
) -> dict[str, float]:
    """nDCG@10 in each mode, by the project's own engine; the weights may have changed in memory."""
    runtime: Any = embedder.runtime
    if hasattr(runtime, "model"):  # exported models are not trained
        runtime.model.eval()
        embedder.forget_identity()
    with (
        tempfile.TemporaryDirectory() as temporary,
        SearchEngine.create(Path(temporary) / "index", model=embedder, chunk_tokens=0) as engine,
    ):
        engine.add(documents)
        return {found.mode: found.metrics["ndcg@10"] for found in evaluate(engine, judgements, modes=modes)}
