"""The paper's experiment in small: a language model is trained to embed, and judged before, along the way and after."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.models.conventions import Conventions, fingerprint
from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import corpus_folder
from searchkit.readers.lines import plain_lines
from searchkit.training.config import TrainConfig
from searchkit.training.dev import ndcg
from searchkit.training.files import digest, read_json, remove, write_json
from searchkit.training.log import TrainReport, moving_average
from searchkit.training.model import lay_out
from searchkit.training.paper.base import first_layers, language_model
from searchkit.training.paper.data import files_of, write_pairs, write_synthetic
from searchkit.training.paper.report import RESULT, write_report, write_table
from searchkit.training.paper.sets import Collection, dev_collection, judged_collection
from searchkit.training.paper.settings import Settings
from searchkit.training.stages import Stages
from searchkit.training.train import train

logger = logging.getLogger(__name__)

REFERENCES = {"BM25": "lexical", "built-in model": "dense"}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What all runs of one folder share.

    Args:
        base: The language model: a folder or hub id.
        pairs: Files of pairs, or folders of them.
        synthetic: Files of examples that language models wrote, or folders of them; `corpora/kinds` comes with it.
        collections: BEIR folders to judge on, besides `corpora/intents`.
        queries: Test queries of each collection; 0 is all.
        documents: Documents of each collection; 0 is all.
        dev_queries: Queries of each dev set.
        dev_documents: Documents of each dev set.
    """

    base: str
    pairs: tuple[Path, ...] = ()
    synthetic: tuple[Path, ...] = ()
    collections: tuple[Path, ...] = ()
    queries: int = 0
    documents: int = 0
    dev_queries: int = 100
    dev_documents: int = 300


class Experiment:
    """The runs in one folder; every call of `run` resumes what was interrupted, and the report covers all runs.

    Args:
        inputs: What the runs share.
        out: The folder: data, runs, table.md, curves.png and curves.svg.
        tell: Called with a line for every stage and, now and then, the state of the training.
    """

    def __init__(self, inputs: Inputs, out: Path, tell: Callable[[str], None]) -> None:
        self._inputs, self._out, self._tell = inputs, out, tell
        self._stages = Stages(out, lambda name, needed: tell(f"{name}: {'started' if needed else 'done before'}"))
        folders = [*inputs.collections, corpus_folder("intents")]
        self._tests = [judged_collection(folder, inputs.queries, inputs.documents) for folder in folders]
        dev = [dev_collection(folder, inputs.dev_queries, inputs.dev_documents) for folder in folders]
        self._dev = [found for found in dev if found]

    def run(self, settings: Settings) -> None:
        """One run: base, data, scores before, training with scores along the way, scores after, report.

        Raises:
            InputError: Data are missing, or the base is an embedder already.
        """
        base = self._base(settings)
        sources = self._data(settings)
        folder = self._out / "runs" / settings.folder
        folder.mkdir(parents=True, exist_ok=True)
        examples = sum(1 for source in sources for _ in plain_lines(source))
        config = settings.train_config(base, sources, examples, folder / "model")
        self._references()
        result = folder / RESULT
        if not result.is_file() or read_json(result)["settings"] != asdict(settings):
            write_json(result, {"name": settings.name, "settings": asdict(settings), "curve": {}})
        inputs = {
            "settings": asdict(settings), "base": fingerprint(base), "sources": [digest(each) for each in sources]
        }  # fmt: skip
        untrained = partial(_untrained, config, settings, base, folder / "work")
        self._scores(settings, folder, "before", inputs, untrained)
        about = [self._about(dev) for dev in self._dev]
        with self._stages.stage(f"{settings.name}, before: dev sets", {**inputs, "dev": about}, []) as needed:
            if needed:
                self._watch(settings, folder, TrainReport(), untrained())
        with self._stages.stage(
            f"train {settings.name}", inputs, [str((folder / "model").relative_to(self._out))]
        ) as needed:
            if needed and not (folder / "model" / "modules.json").is_file():  # else it was stopped right after the end
                report = train(config, on_step=self._show, on_evaluate=partial(self._watch, settings, folder))
                _note(result, training=_summary(report))
        self._scores(settings, folder, "after", inputs, partial(Embedder, folder / "model"))
        write_report(self._out)

    # Stages

    def _base(self, settings: Settings) -> Path:
        folder = language_model(self._inputs.base)
        if settings.layers is None:
            return folder
        name = f"first-{settings.layers}-layers"
        with self._stages.stage(name, {"base": fingerprint(folder)}, [name]) as needed:
            if needed:
                remove(self._out / name)  # of a process that was killed before it was noted
                first_layers(folder, self._out / name, settings.layers)
        return self._out / name

    def _data(self, settings: Settings) -> list[Path]:
        sources, inputs = [], self._inputs
        (self._out / "data").mkdir(exist_ok=True)
        if settings.data in ("synthetic", "both"):
            given = {str(file): digest(file) for file in (files_of(inputs.synthetic) if inputs.synthetic else [])}
            sources.append(self._out / "data" / "synthetic.jsonl")
            with self._stages.stage(
                "synthetic data", given | {"seed": settings.seed}, ["data/synthetic.jsonl"]
            ) as needed:
                if needed:
                    corpora = {folder.resolve().name: folder for folder in inputs.collections}
                    paths = list(map(Path, given))
                    self._tell(f"{write_synthetic(paths, sources[-1], corpora, seed=settings.seed)} synthetic examples")
        if settings.data in ("pairs", "both"):
            if not inputs.pairs:
                raise InputError(f"data is {settings.data!r} but no pairs are given; give a folder of them: --pairs")
            given = {str(file): digest(file) for file in files_of(inputs.pairs)}
            count = settings.pairs or settings.steps * settings.batch_size
            name = f"pairs-{count}.jsonl"
            sources.append(self._out / "data" / name)
            with self._stages.stage(f"{count} pairs", given | {"seed": settings.seed}, [f"data/{name}"]) as needed:
                if needed:
                    written = write_pairs(list(map(Path, given)), sources[-1], count=count, seed=settings.seed)
                    self._tell(f"{written} pairs")
        return sources

    def _references(self) -> None:
        """What BM25 and the built-in model reach on the same queries and documents."""
        for test in self._tests:
            file = self._out / "references" / f"{test.name}.json"
            with self._stages.stage(f"reference {test.name}", self._about(test), [f"references/{file.name}"]) as needed:
                if needed:
                    file.parent.mkdir(exist_ok=True)
                    found = ndcg(
                        Embedder("builtin"), test.documents, test.judgements(instructed=True),
                        modes=list(REFERENCES.values()),
                    )  # fmt: skip
                    write_json(file, {name: found[mode] for name, mode in REFERENCES.items()} | self._about(test))

    def _scores(
        self, settings: Settings, folder: Path, when: str, inputs: dict[str, Any], load: Callable[[], Embedder]
    ) -> None:
        embedder: Embedder | None = None
        for test in self._tests:
            file = folder / f"{when}-{test.name}.json"
            name = f"{settings.name}, {when}: {test.name}"
            with self._stages.stage(name, inputs | self._about(test), [str(file.relative_to(self._out))]) as needed:
                if needed:
                    embedder = embedder or load()
                    judgements = test.judgements(instructed=settings.instructions)
                    found = ndcg(embedder, test.documents, judgements)
                    write_json(file, found | self._about(test))
                    self._tell(f"{name}: nDCG@10 {found['dense']:.4f}")
                    write_table(self._out)

    def _about(self, test: Collection) -> dict[str, Any]:
        return {"collection": test.name, "queries": len(test.queries), "documents": len(test.documents)}

    # Along the way

    def _watch(self, settings: Settings, folder: Path, report: TrainReport, embedder: Embedder) -> None:
        scores = {}
        for dev in self._dev:
            found = ndcg(embedder, dev.documents, dev.judgements(instructed=settings.instructions))
            scores[f"{dev.name}, {dev.split}"] = found["dense"]
        result = folder / RESULT
        curve = {int(step): value for step, value in read_json(result)["curve"].items()} | {report.steps: scores}
        _note(result, curve={str(step): curve[step] for step in sorted(curve)}, training=_summary(report))
        told = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        self._tell(f"step {report.steps}: {told}")
        write_report(self._out)

    def _show(self, report: TrainReport, planned: int) -> None:
        if report.steps % 10 == 0 or report.steps == planned:
            rate = report.tokens / max(report.seconds, 1e-9)
            self._tell(
                f"step {report.steps} of {planned}, loss {moving_average(report.losses):.3f}, {rate:.0f} tokens/s, "
                f"{report.seconds:.0f} s"
            )


def _untrained(config: TrainConfig, settings: Settings, base: Path, work: Path) -> Embedder:
    """The base, used as the trained model will be."""
    if config.attention:
        lay_out(config, work)
        base = work / "base"
    conventions = Conventions(pooling=settings.pooling, append_eos=settings.eos, max_length=settings.max_length)
    return Embedder(base, conventions=conventions)


def _summary(report: TrainReport) -> dict[str, Any]:
    return {
        "steps": report.steps,
        "tokens": report.tokens,
        "seconds": report.seconds,
        "loss": moving_average(report.losses),
        "trainable": report.trainable,
        "peak_memory_mib": report.peak_memory_mib,
    }


def _note(file: Path, **values: Any) -> None:
    write_json(file, {**read_json(file), **values})


def run_all(inputs: Inputs, runs: Sequence[Settings], out: Path, tell: Callable[[str], None]) -> None:
    """Run several settings one after another."""
    experiment = Experiment(inputs, out, tell)
    for settings in runs:
        tell(f"run: {settings.name}")
        experiment.run(settings)
