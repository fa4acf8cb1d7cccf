"""From an index and pairs to a better embedder for it: filter, mine, train, index again, measure, keep what wins."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.evaluation.evaluate import evaluate
from searchkit.indexer.files import locked
from searchkit.indexer.vectors.storage import Storage
from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder
from searchkit.models.location import find_model
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.readers.corpus import corpus_folder
from searchkit.readers.judgements import read_qrels, read_queries
from searchkit.readers.lines import plain_lines
from searchkit.readers.rejects import Rejects
from searchkit.records import Judgements, Qrels, Query
from searchkit.training.adaptation.config import AdaptConfig
from searchkit.training.adaptation.install import AFTER, MODEL, REPORT, adapted, check
from searchkit.training.adaptation.install import install as put_in_place
from searchkit.training.adaptation.pairs import as_judgements, read_pairs, sieve, split
from searchkit.training.adaptation.report import AdaptReport, compare, draw, elsewhere, read_report, write_report
from searchkit.training.builtin import data as builtin_data
from searchkit.training.config import TrainConfig
from searchkit.training.contamination import fingerprint
from searchkit.training.dataset import Example, read_examples
from searchkit.training.negatives import MineReport, mine
from searchkit.training.stages import Stages, digest, remove

if TYPE_CHECKING:
    from searchkit.training.log import TrainReport

MODES = ("dense", "lexical", "hybrid")
FEWEST_PAIRS = 50
FEWEST_HELD = 10
_LONGEST_GENERAL = 4000  # examples of general texts

KEPT, REFUSED, HELD, QRELS = "pairs.kept.jsonl", "refused.jsonl", "held-out.queries.jsonl", "held-out.qrels.tsv"
MINED, GENERAL, TRAINED, COUNTS = "mined.jsonl", "general.jsonl", "trained", "pairs.json"


def adapt(
    config: AdaptConfig,
    judgements: Judgements | None = None,
    *,
    force: bool = False,
    install: bool = True,
    on_stage: Callable[[str, bool], None] | None = None,
    on_step: Callable[[TrainReport, int], None] | None = None,
) -> AdaptReport:
    """Adapt the model of an index to its documents, and let the index search with it if that is better.

    Called again with the same settings it goes on where it was stopped; what depends on a changed input is redone.

    Args:
        config: The run.
        judgements: What judges the result; None takes the part of the pairs that is held out.
        force: Keep the new model although it does not win.
        install: Put the new index in the place of the old one, which stays in OUT/before.index; False leaves the index
            alone, and the new one is in OUT/after.index.
        on_stage: Told every stage, and whether there is something to do.
        on_step: Called after every step of training, with the report so far and the number of steps.

    Raises:
        ImportError: A library that some stage needs is missing; nothing was done yet.
        ValueError: Bad pairs, too few of them, or an index whose model cannot be trained.
    """
    out = config.out.resolve()
    done = adapted(config)
    if done is not None:
        if on_stage:
            on_stage("adapted", False)
        return done
    check(config, judgements, install=install)
    out.mkdir(parents=True, exist_ok=True)
    with SearchEngine.open(config.index) as engine, locked(out):
        run = _Run(replace(config, out=out), engine, judgements, on_stage)
        for stage in (run.pairs, run.mined, run.general, lambda: run.trained(on_step), run.model, run.after):
            stage()
        report = run.measured()
        documents = engine.store.documents.checksum()
    if install and (force or report.wins):
        put_in_place(config.index, out, documents)
        report.kept = True
        write_report(out / REPORT, report)
    return report


class _Run:
    """The stages, each a method that leaves files in the folder."""

    def __init__(
        self,
        config: AdaptConfig,
        engine: SearchEngine,
        judgements: Judgements | None,
        on_stage: Callable[[str, bool], None] | None,
    ) -> None:
        self.config, self.engine, self.out = config, engine, config.out
        self.given = judgements
        self.seconds: dict[str, float] = {}
        self._stages = Stages(config.out, on_stage)
        self.identity: dict[str, Any] = engine.settings["model"]
        self.base = str(self.identity["model"])
        settings = engine.settings
        kept = {name: settings[name] for name in ("chunk_tokens", "overlap", "language")}
        plan = engine.storage.to_json()["plan"]
        self._index_key = {"documents": engine.store.documents.checksum(), "model": self.identity, "plan": plan, **kept}

    def _stage(self, name: str, inputs: dict[str, Any], outputs: Sequence[str], work: Callable[[], None]) -> None:
        began = time.monotonic()

        def timed() -> None:
            work()
            self.seconds[name] = time.monotonic() - began

        self._stages.run(name, inputs, outputs, timed)

    def _digests(self, *names: str) -> list[str]:
        return [digest(self.out / name) for name in names]

    def pairs(self) -> None:
        """What is trained on, what judges, and what is neither, with the reason."""
        config = self.config
        judging = sorted(fingerprint(query.text).hex() for query in self.given.queries) if self.given else None
        inputs = {
            "pairs": [digest(file) for file in config.pairs], "index": self._index_key, "judging": judging,
            "settings": [config.held_out, config.most_held_out, config.depth, config.seed],
        }  # fmt: skip
        self._stage("pairs", inputs, [KEPT, HELD, QRELS, COUNTS], self._sort_pairs)

    def _sort_pairs(self) -> None:
        config, given = self.config, self.given
        remove(self.out / REFUSED)
        with Rejects(self.out / REFUSED) as rejects:
            found = read_pairs(config.pairs, self.engine, rejects)
            read = len(found) + rejects.count
            judging = {fingerprint(query.text) for query in given.queries} if given else set()
            found = list(sieve(found, self.engine, judging, rejects, depth=config.depth))
            held: list[Example] = []
            if given is None:
                found, held, neither = split(found, share=config.held_out, most=config.most_held_out, seed=config.seed)
                for example in neither:
                    rejects.refuse(example.source, "its query or its document is among those held out", example.query)
            refused = rejects.count
        if given is None and len({example.positive_id for example in held}) < FEWEST_HELD:
            raise InputError(
                f"{len(held)} pairs on {len({example.positive_id for example in held})} documents are left to judge "
                f"the result, too few to tell better from worse; {FEWEST_HELD} documents are needed. Give more pairs, "
                f"or judgements of your own. Pairs set aside: {refused}, see {self.out / REFUSED}"
            )
        if len(found) < FEWEST_PAIRS:
            raise InputError(
                f"{len(found)} of {read} pairs are left to train on, and {FEWEST_PAIRS} are needed. Set aside: "
                f"{refused}, see {self.out / REFUSED}"
            )
        _write_examples(self.out / KEPT, sorted(found, key=lambda example: example.positive_id or ""))
        queries, qrels = as_judgements(held)
        _write_lines(
            self.out / HELD,
            ({"_id": query.id, "text": query.text, "instruction": query.instruction} for query in queries),
        )
        rows = [f"{query}\t{document}\t{gain}" for query, row in qrels.items() for document, gain in row.items()]
        (self.out / QRELS).write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n", encoding="utf-8")
        counts = {"read": read, "trained_on": len(found), "held_out": len(held), "set_aside": refused}
        _write_json(self.out / COUNTS, counts)

    def mined(self) -> None:
        """The pairs with hard negatives, none of them a held-out document."""
        config = self.config
        inputs = {"pairs": self._digests(KEPT, QRELS), "index": self._index_key, "negatives": config.negatives}

        def work() -> None:
            _, qrels = self._held_out()
            held = {document for row in qrels.values() for document in row}
            default = self.engine.embedder.conventions.default_instruction
            examples = (
                replace(example, instruction=default) if example.instruction is None else example
                for example in read_examples(self.out / KEPT)
            )
            found = mine(self.engine, examples, MineReport(), count=config.negatives, without=held)
            _write_examples(self.out / MINED, found)

        self._stage("mine", inputs, [MINED], work)

    def general(self) -> None:
        """Examples that are not of this index, against forgetting."""
        config = self.config
        inputs = {"files": [digest(file) for file in config.general], "seed": config.seed}

        def work() -> None:
            draw = random.Random(config.seed)
            with (corpus_folder("kinds") / "topics.jsonl").open(encoding="utf-8") as stream:
                rows = list(builtin_data.kinds(map(json.loads, stream), draw))
            for file in config.general:
                for example in read_examples(file):
                    rows.append(_row(example))
            draw.shuffle(rows)
            _write_lines(self.out / GENERAL, rows[:_LONGEST_GENERAL])

        self._stage("general", inputs, [GENERAL], work)

    def trained(self, on_step: Callable[[TrainReport, int], None] | None) -> None:
        """The new weights."""
        from searchkit.training.train import train

        plan = self._training()
        inputs = {"examples": self._digests(MINED, GENERAL), "training": asdict(replace(plan, sources=("-",), out="-"))}

        def work() -> None:
            trained = self.out / TRAINED
            if not (trained / "README.md").is_file():  # else stopped right after it was finished
                (trained / "modules.json").unlink(missing_ok=True)  # or while it was being written
                train(plan, on_step=on_step)
            # Texts were cut to train on them, but the model takes what it took before.
            length = {"max_seq_length": self.identity["max_length"], "do_lower_case": False}
            _write_json(self.out / TRAINED / "sentence_bert_config.json", length)

        self._stage("train", inputs, [TRAINED], work)

    def _training(self) -> TrainConfig:
        config = self.config
        pairs, general = (sum(1 for _ in plain_lines(self.out / name)) for name in (MINED, GENERAL))
        share = config.general_share
        steps = config.steps or min(400, max(60, math.ceil(pairs / config.batch_size / (1 - share))))
        ratio = share / (1 - share) * pairs / general
        sources = [f"{self.out / MINED}@1,mixed"] + ([f"{self.out / GENERAL}@{ratio:.4f},mixed,kept"] if share else [])
        dim, width = int(self.identity["dim"]), self.engine.embedder.runtime.hidden_size
        rank = config.lora_rank
        if rank is None:
            rank = 0 if _weights(self.base) <= 100e6 else 16
        return TrainConfig(
            sources=tuple(sources), base=self.base, out=str(self.out / TRAINED), max_steps=steps,
            epochs=1 + math.ceil(steps * config.batch_size * (1 - share) / pairs), batch_size=config.batch_size,
            chunk=4 * config.batch_size, learning_rate=config.learning_rate or (1e-4 if rank else 6e-5),
            warmup_steps=steps // 10,
            weight_decay=0.01, temperature=0.05, negatives_per_query=1, teacher=self.base,
            teacher_weight=config.teacher_weight, teacher_neighbours=0, teacher_follows=True, lora_rank=rank,
            query_repeats=self.identity.get("query_repeats", 1), append_eos=self.identity["append_eos"],
            max_length=min(config.max_length, self.identity["max_length"]), matryoshka=(dim,) if dim < width else (),
            checkpoint_every=max(1, steps // 8), seed=config.seed,
        )  # fmt: skip

    def model(self) -> None:
        """The new model as the old one was: exported, if that was."""
        inputs = {"trained": self._digests(TRAINED), "base": self.identity}

        def work() -> None:
            from searchkit.training.export import export

            remove(self.out / MODEL)
            if (find_model(self.base)[0] / MODEL_FILE).is_file():
                export(self.out / TRAINED, self.out / MODEL, dtype=self.engine.embedder.dtype)
            else:
                shutil.copytree(self.out / TRAINED, self.out / MODEL, copy_function=_link)

        self._stage("export", inputs, [MODEL], work)

    def _new_embedder(self) -> Embedder:
        known = {each.name: self.identity[each.name] for each in fields(Conventions) if each.name in self.identity}
        return Embedder(self.out / MODEL, dim=self.identity["dim"], force_dim=True, conventions=Conventions(**known))

    def after(self) -> None:
        """The same documents, stored in the same way, by the new model."""
        settings = self.engine.settings

        def work() -> None:
            with SearchEngine.create(
                self.out / AFTER, model=self._new_embedder(), chunk_tokens=settings["chunk_tokens"],
                overlap=settings["overlap"], language=settings["language"], exist_ok=True,
            ) as new:  # fmt: skip
                new.add(self.engine.documents())
                store_alike(new, self.engine.storage)

        self._stage("index", {"model": self._digests(MODEL), "index": self._index_key}, [AFTER], work)

    def _held_out(self) -> tuple[list[Query], Qrels]:
        if self.given is not None:
            return [], {}
        return read_queries(self.out / HELD), read_qrels(self.out / QRELS)

    def measured(self) -> AdaptReport:
        """Both indexes, by the judgements."""
        counts = json.loads((self.out / COUNTS).read_text(encoding="utf-8"))
        judged = self.given or Judgements("held-out pairs", *self._held_out())
        inputs = {
            "index": self._index_key, "model": self._digests(MODEL), "instruction": judged.instruction,
            "judgements": [sorted((q.id, q.text, q.instruction or "") for q in judged.queries), judged.qrels],
            "drop_self": judged.drop_self, "name": judged.name, "pairs": counts,
        }  # fmt: skip

        def work() -> None:
            report = AdaptReport(judged.name, self.given is not None, counts)
            old = evaluate(self.engine, judged, modes=MODES)
            with SearchEngine.open(self.out / AFTER) as new:
                found = evaluate(new, judged, modes=MODES)
                report.elsewhere = elsewhere(self.engine.embedder), elsewhere(new.embedder)
            report.modes = compare(old, found)
            write_report(self.out / REPORT, report)
            draw(self.out / "changes", report)

        try:
            read_report(self.out / REPORT)
        except (OSError, ValueError):
            remove(self.out / REPORT)
        self._stage("evaluate", inputs, [REPORT], work)
        report = read_report(self.out / REPORT)
        report.seconds |= self.seconds
        write_report(self.out / REPORT, report)
        return report


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy where there are no such."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _weights(base: str) -> int:
    """How many weights a model has, by its config."""
    import torch
    from transformers import AutoConfig, AutoModel

    make: Any = AutoModel
    with torch.device("meta"):
        model = make.from_config(AutoConfig.from_pretrained(find_model(base)[0]))
    return sum(parameter.numel() for parameter in model.parameters())


def _row(example: Example) -> dict[str, Any]:
    return {key: value for key, value in asdict(example).items() if value not in (None, "", ())}


def store_alike(engine: SearchEngine, storage: Storage) -> None:
    """Store the vectors of an index as another index's are stored, where they are not yet."""
    if engine.storage.plan != storage.plan:
        engine.store_as(storage.plan.spelling, keep_vectors=storage.keep_vectors, tuning=storage.tuning)


def _write_examples(file: Path, examples: Iterable[Example]) -> None:
    _write_lines(file, map(_row, examples))


def _write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
