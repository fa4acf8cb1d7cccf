"""From an index and pairs to a better embedder for it: filter, train, index again, measure, keep what wins."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.evaluation.evaluate import evaluate
from searchkit.indexer.files import locked
from searchkit.indexer.vectors.storage import Storage
from searchkit.models.conventions import Conventions
from searchkit.models.dense import read_linear
from searchkit.models.embedder import Embedder
from searchkit.models.location import find_model
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.readers.judgements import read_qrels, read_queries
from searchkit.readers.kinds import kinds_rows
from searchkit.readers.lines import plain_lines
from searchkit.records import Judgements, Qrels, Query
from searchkit.training.adaptation.config import AdaptConfig
from searchkit.training.adaptation.install import AFTER, MODEL, REPORT, adapted, check, put_in_place, request
from searchkit.training.adaptation.linear_map import fit
from searchkit.training.adaptation.mapped import add_mapped, write_model
from searchkit.training.adaptation.pairs import as_judgements, sort_pairs
from searchkit.training.adaptation.plan import TrainingFiles, training_run
from searchkit.training.adaptation.report import (
    AdaptReport,
    compare,
    draw,
    out_of_domain,
    read_report,
    without_pairs,
    write_report,
)
from searchkit.training.adaptation.vectors import vector_pairs
from searchkit.training.builtin import data as builtin_data
from searchkit.training.dataset import Example, read_examples
from searchkit.training.files import digest, link, read_json, remove, write_json, write_lines
from searchkit.training.layout import write_linear
from searchkit.training.negatives import MineReport, mine
from searchkit.training.stages import Stages
from searchkit.training.texts import fingerprint

if TYPE_CHECKING:
    from searchkit.training.log import TrainReport

MODES = ("dense", "lexical", "hybrid")
_MOST_GENERAL = 4000  # general examples

KEPT, REFUSED, HELD_OUT, QRELS = "pairs.kept.jsonl", "refused.jsonl", "held-out.queries.jsonl", "held-out.qrels.tsv"
MINED, GENERAL, TRAINED, COUNTS = "mined.jsonl", "general.jsonl", "trained", "pairs.json"
MAP, STRENGTH = "map", "map.json"


def adapt(
    config: AdaptConfig,
    judgements: Judgements | None = None,
    *,
    force: bool = False,
    install: bool = True,
    on_stage: Callable[[str, bool], None] | None = None,
    on_step: Callable[[TrainReport, int], None] | None = None,
) -> AdaptReport:
    """Adapt the model of an index to its documents, and switch the index to it if it finds more.

    Called again with the same settings, it resumes where it was stopped; what depends on a changed input is redone.

    Args:
        config: The run.
        judgements: What judges the result; None holds out a part of the pairs for that.
        force: Keep the new model even if it does not win.
        install: Replace the index by the new one, and keep the old one as OUT/before.index. False leaves the index
            alone; the new one is OUT/after.index.
        on_stage: Called with every stage, and whether it has work to do.
        on_step: Called after every training step, with the report so far and the number of steps.

    Raises:
        MissingExtraError: A library that some stage needs is missing; nothing was done yet.
        InputError: Bad pairs, too few of them, or an index whose model cannot be trained.
    """
    out = config.out.resolve()
    done = adapted(config, judgements)
    if done is not None:
        if on_stage:
            on_stage("adapted", False)
        return done
    check(config, judgements, install=install)
    out.mkdir(parents=True, exist_ok=True)
    with SearchEngine.open(config.index) as engine, locked(out):
        run = _Run(replace(config, out=out), engine, judgements, Stages(out, on_stage))
        run.sort()
        if config.train == "head":
            run.fit()
        else:
            run.mine()
            run.write_general()
            run.train(on_step)
        run.export()
        run.index()
        report = run.evaluate(request(config, judgements))
        documents = run.documents
    if install and (force or report.wins):
        put_in_place(config.index, out, documents)
        report.kept = True
        write_report(out / REPORT, report)
    return report


class _Run:
    """The stages in their order, each a method that leaves files in the folder."""

    def __init__(
        self, config: AdaptConfig, engine: SearchEngine, judgements: Judgements | None, stages: Stages
    ) -> None:
        self.config, self.engine, self.out = config, engine, config.out
        self.judgements, self.stages = judgements, stages
        engine.require_model()
        self.identity: dict[str, Any] = engine.settings["model"]
        self.documents = engine.store.documents.checksum()
        # The index does not say how its model follows instructions, which may have changed since it was built.
        shift = engine.embedder.identity().get("instruction_shift")
        self._model_key = self.identity | ({"instruction_shift": shift} if shift else {})
        self._index_key = {
            "documents": self.documents,
            "model": self._model_key,
            "plan": engine.storage.to_json()["plan"],
            **{name: engine.settings[name] for name in ("chunk_tokens", "overlap", "language")},
        }

    def _digests(self, *names: str) -> list[str]:
        return [digest(self.out / name) for name in names]

    def sort(self) -> None:
        """Sort the pairs into those to train on and those that judge; what is in neither part gets its reason."""
        config, judgements = self.config, self.judgements
        judging = sorted(fingerprint(query.text).hex() for query in judgements.queries) if judgements else None
        inputs = {
            "pairs": [digest(file) for file in config.pairs], "index": self._index_key, "judging": judging,
            "settings": [config.held_out, config.most_held_out, config.depth, config.seed],
        }  # fmt: skip
        with self.stages.stage("pairs", inputs, [KEPT, HELD_OUT, QRELS, COUNTS]) as needed:
            if needed:
                pairs = sort_pairs(config, self.engine, judgements, self.out / REFUSED)
                write_lines(self.out / KEPT, map(_row, pairs.training))
                _write_judgements(self.out, *as_judgements(pairs.held_out))
                write_json(self.out / COUNTS, pairs.counts())

    def fit(self) -> None:
        """Fit a linear map to the pairs, on the vectors that the index holds."""
        inputs = {"pairs": self._digests(KEPT), "index": self._index_key, "seed": self.config.seed}
        with self.stages.stage("fit", inputs, [MAP, STRENGTH]) as needed:
            if needed:
                remove(self.out / MAP)
                seed = self.config.seed
                pairs = vector_pairs(self.engine, self._kept(), seed=seed)
                matrix, strength = fit(pairs, seed=seed)
                # A model reads vectors at their full width, and of those the index holds the beginning.
                width = self.engine.embedder.runtime.hidden_size
                write_linear(np.pad(matrix, ((0, width - len(matrix)), (0, 0))), self.out / MAP)
                write_json(self.out / STRENGTH, {"strength": strength})

    def mine(self) -> None:
        """Add hard negatives to the pairs, none of them a held-out document."""
        inputs = {"pairs": self._digests(KEPT, QRELS), "index": self._index_key, "negatives": self.config.negatives}
        with self.stages.stage("mine", inputs, [MINED]) as needed:
            if needed:
                _, qrels = self._held_out()
                without = {document for gains in qrels.values() for document in gains}
                examples = _with_default(read_examples(self.out / KEPT), self.engine.embedder.conventions)
                count = self.config.negatives
                mined = mine(self.engine, examples, MineReport(), count=count, without=without)
                write_lines(self.out / MINED, map(_row, mined))

    def write_general(self) -> None:
        """Write the examples against forgetting, which are not of this index."""
        config = self.config
        inputs = {"files": [digest(file) for file in config.general], "seed": config.seed}
        with self.stages.stage("general", inputs, [GENERAL]) as needed:
            if needed:
                rng = random.Random(config.seed)
                rows = list(builtin_data.kinds(kinds_rows("topics"), rng))
                rows += [_row(example) for file in config.general for example in read_examples(file)]
                rng.shuffle(rows)
                write_lines(self.out / GENERAL, rows[:_MOST_GENERAL])

    def train(self, on_step: Callable[[TrainReport, int], None] | None) -> None:
        """Train the new weights."""
        from searchkit.training.train import train

        mined, general, trained = (self.out / name for name in (MINED, GENERAL, TRAINED))
        files = TrainingFiles(mined, _count_lines(mined), general, _count_lines(general))
        width = self.engine.embedder.runtime.hidden_size
        run = training_run(self.config, files, self.identity, width=width, out=trained)
        inputs = {"examples": self._digests(MINED, GENERAL), "training": asdict(replace(run, sources=("-",), out="-"))}
        with self.stages.stage("train", inputs, [TRAINED]) as needed:
            if needed:
                if not (trained / "README.md").is_file():  # else it was stopped right after finishing
                    (trained / "modules.json").unlink(missing_ok=True)  # or while the model was being written
                    train(run, on_step=on_step)
                # Texts are cut only for training; the model accepts what it accepted before.
                length = {"max_seq_length": self.identity["max_length"], "do_lower_case": False}
                write_json(trained / "sentence_bert_config.json", length)

    def export(self) -> None:
        """Write the new model in the form of the old one: exported if that was."""
        source = MAP if self.config.train == "head" else TRAINED
        inputs = {"source": self._digests(source), "base": self._model_key}
        with self.stages.stage("export", inputs, [MODEL]) as needed:
            if needed:
                remove(self.out / MODEL)
                if self.config.train == "head":
                    write_model(self.engine.embedder, self.out / MAP, self.out / MODEL)
                elif (find_model(str(self.identity["model"]))[0] / MODEL_FILE).is_file():
                    from searchkit.training.export import export

                    export(self.out / TRAINED, self.out / MODEL, dtype=self.engine.embedder.dtype)
                else:
                    shutil.copytree(self.out / TRAINED, self.out / MODEL, copy_function=link)

    def index(self) -> None:
        """Index the same documents, stored in the same way, with the new model.

        Behind a map, the old vectors times it are the new ones, unless only codes of them are left.
        """
        keep = all(segment.keeps_vectors for segment in self.engine.snapshot.segments)
        settings = self.engine.settings
        with self.stages.stage("index", {"model": self._digests(MODEL), "index": self._index_key}, [AFTER]) as needed:
            if needed:
                with SearchEngine.create(
                    self.out / AFTER, model=self._new_embedder(), chunk_tokens=settings["chunk_tokens"],
                    overlap=settings["overlap"], language=settings["language"], exist_ok=True,
                ) as new:  # fmt: skip
                    if self.config.train == "head" and keep:
                        add_mapped(self.engine, new, read_linear(self.out / MAP)[: self.engine.dim])
                    else:
                        new.add(self.engine.documents())
                    store_alike(new, self.engine.storage)

    def evaluate(self, request: str) -> AdaptReport:
        """Measure both indexes by the judgements, and note what was asked for."""
        counts = read_json(self.out / COUNTS)
        judgements = self.judgements or Judgements("held-out pairs", *self._held_out())
        inputs = {
            "index": self._index_key, "model": self._digests(MODEL), "instruction": judgements.instruction,
            "judgements": [sorted((q.id, q.text, q.instruction or "") for q in judgements.queries), judgements.qrels],
            "drop_self": judgements.drop_self, "name": judgements.name, "pairs": counts,
        }  # fmt: skip
        file = self.out / REPORT
        try:
            read_report(file)
        except (OSError, InputError):
            remove(file)
        with self.stages.stage("evaluate", inputs, [REPORT]) as needed:
            if needed:
                report = AdaptReport(judgements.name, self.judgements is not None, counts)
                if self.config.train == "head":
                    report.strength = read_json(self.out / STRENGTH)["strength"]
                before = evaluate(self.engine, judgements, modes=MODES)
                with SearchEngine.open(self.out / AFTER) as new:
                    after = evaluate(new, judgements, modes=MODES)
                    report.out_of_domain = out_of_domain(self.engine.embedder), out_of_domain(new.embedder)
                report.modes = compare(before, after)
                asked = {example.positive_id for example in self._kept()}
                report.without_pairs = without_pairs(report.modes, judgements.qrels, asked)
                write_report(file, report)
                draw(self.out / "changes", report)
        report = read_report(file)
        report.request = request
        report.seconds |= self.stages.seconds
        write_report(file, report)
        return report

    def _new_embedder(self) -> Embedder:
        known = {each.name: self.identity[each.name] for each in fields(Conventions) if each.name in self.identity}
        return Embedder(self.out / MODEL, dim=self.identity["dim"], force_dim=True, conventions=Conventions(**known))

    def _kept(self) -> list[Example]:
        """The examples to train on, with the ids of their documents, which `read_examples` does not give with texts."""
        rows = [json.loads(line) for _, line in plain_lines(self.out / KEPT)]
        return [Example(**{**row, "negatives": tuple(row.get("negatives", ()))}) for row in rows]

    def _held_out(self) -> tuple[list[Query], Qrels]:
        if self.judgements is not None:
            return [], {}
        return read_queries(self.out / HELD_OUT), read_qrels(self.out / QRELS)


def store_alike(engine: SearchEngine, storage: Storage) -> None:
    """Store the vectors of an index in the same way as another index's, where they are not yet."""
    if engine.storage.plan != storage.plan:
        engine.store_as(storage.plan.spelling, keep_vectors=storage.keep_vectors, tuning=storage.tuning)


def _with_default(examples: Iterator[Example], conventions: Conventions) -> Iterator[Example]:
    """Examples without an instruction get the model's default, as a search without one does."""
    default = conventions.default_instruction
    for example in examples:
        yield replace(example, instruction=default) if example.instruction is None else example


def _write_judgements(out: Path, queries: list[Query], qrels: Qrels) -> None:
    write_lines(
        out / HELD_OUT,
        ({"_id": query.id, "text": query.text, "instruction": query.instruction} for query in queries),
    )
    rows = [f"{query}\t{document}\t{gain}" for query, gains in qrels.items() for document, gain in gains.items()]
    (out / QRELS).write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n", encoding="utf-8")


def _row(example: Example) -> dict[str, Any]:
    present = {key: value for key, value in asdict(example).items() if value not in (None, ())}
    return {key: value for key, value in present.items() if value or key == "instruction"}  # "" is none at all


def _count_lines(file: Path) -> int:
    return sum(1 for _ in plain_lines(file))
