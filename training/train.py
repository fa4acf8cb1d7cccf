"""A training run, from top to bottom: set-up, loop, finish."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from searchkit.errors import InputError
from searchkit.models.embedder import Embedder
from searchkit.models.torch_runtime import choose_dtype
from searchkit.readers.lines import existing
from searchkit.readers.rejects import Rejects
from searchkit.training.batches import Batch, Batches, Near, Source
from searchkit.training.card import model_card
from searchkit.training.config import TrainConfig
from searchkit.training.dev import DevSet
from searchkit.training.log import Leaking, TrainLog, TrainReport, peak_memory_mib
from searchkit.training.model import lay_out, make_trainable, prepare, save, torch_model, trainable
from searchkit.training.run_folder import RunFolder
from searchkit.training.sources import (
    Sources,
    common_instruction,
    digest_of,
    read_sources,
    with_default_instruction,
    with_room,
)
from searchkit.training.step import Step
from searchkit.training.teacher import Teacher, Teachers, fit_teachers

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    *,
    allow_leaks: bool = False,
    on_leaks: Callable[[list[Leaking]], None] | None = None,
    on_step: Callable[[TrainReport, int], None] | None = None,
    on_evaluate: Callable[[TrainReport, Embedder], None] | None = None,
) -> TrainReport:
    """Train `config.base` on `config.sources` and write `config.out`; resumes from the last checkpoint in that folder.

    Under `accelerate launch` every process calls this; the first one writes files, reports and makes the callbacks.

    Args:
        config: The run.
        allow_leaks: Train even if queries of the dev set are among the examples.
        on_leaks: Called before training with what every source shares with the dev set, if there is one.
        on_step: Called after every step with the report so far and the number of planned steps.
        on_evaluate: Called every `evaluate_every` steps, and after the last, with the report so far and the model.

    Raises:
        InputError: Bad data, a leak, or settings that cannot be combined; the message says what to do.
    """
    run = _set_up(config, allow_leaks=allow_leaks, on_leaks=on_leaks)
    _loop(run, on_step, on_evaluate)
    _finish(run)
    return run.report


@dataclass(frozen=True, slots=True)
class _Run:
    """Everything that a run consists of once it is set up."""

    config: TrainConfig
    folder: RunFolder
    dev: DevSet | None
    accelerator: Any
    embedder: Embedder
    step: Step
    batches: Batches
    planned: int
    optimizer: Any
    schedule: Any
    report: TrainReport

    @property
    def sharded(self) -> bool:
        """Every process has only a part of the weights."""
        return _is_sharded(self.accelerator)


# Set-up


def _set_up(config: TrainConfig, *, allow_leaks: bool, on_leaks: Callable[[list[Leaking]], None] | None) -> _Run:
    for source in config.sources:
        existing(Source.parse(source).path)  # a missing file is reported before the base is unpacked
    dev = DevSet(config.dev, instructed=bool(config.instructed)) if config.dev else None
    accelerator = _accelerator(config)
    folder, report = RunFolder(Path(config.out)), TrainReport(process=accelerator.process_index)
    with accelerator.main_process_first():
        checkpoint = folder.claim(config)
    if accelerator.is_main_process:
        lay_out(config, folder.work)
    rejects = Rejects(folder.path / "rejects.jsonl" if accelerator.is_main_process else Path(os.devnull))
    sources = read_sources(config, rejects)
    report.digests = [digest_of(examples) for _, examples in sources]
    if dev is not None:
        report.leaks = dev.leaks(sources)
        if on_leaks and accelerator.is_main_process:
            on_leaks(report.leaks)
        if not allow_leaks:
            dev.refuse_leaks(report.leaks)
    accelerator.wait_for_everyone()

    embedder = _embedder(config, folder, "cpu" if _is_sharded(accelerator) else str(accelerator.device))
    runtime: Any = embedder.runtime
    report.trainable = trainable(runtime.model)
    sources = _instruct(config, sources, embedder, rejects)
    if dev is not None:
        embedder.query_tokens([""], dev.instruction)  # raises now what a search would raise at the end
    report.examples, report.refused = sum(len(examples) for _, examples in sources), rejects.count
    teachers = _teachers(config, embedder, sources, accelerator)
    batches = Batches(
        sources, config.batch_size, seed=config.seed, negatives_per_query=config.negatives_per_query,
        smallest_batch=max(2, accelerator.num_processes),  # every process needs an example of each
        near=None if len(config.teachers) < 2 else _near(config, teachers, sources),
    )  # fmt: skip
    planned = sum(len(batches.epoch(number)) for number in range(config.epochs))
    planned = min(planned, config.max_steps or planned)

    parameters = [parameter for parameter in runtime.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    warmup = min(config.warmup_steps, max(1, planned // 10))
    schedule: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, warmup=warmup, planned=planned))
    runtime.model, optimizer, schedule = accelerator.prepare(runtime.model, optimizer, schedule)
    runtime.device = accelerator.device
    if checkpoint:
        folder.load(checkpoint, accelerator, report, config)
        logger.info("resuming from step %d", report.steps)
    step = Step(config, embedder, teachers, accelerator)
    return _Run(config, folder, dev, accelerator, embedder, step, batches, planned, optimizer, schedule, report)


def _accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs, set_seed

    # accelerate keeps the settings of a process's first run; the next run may train in another precision.
    AcceleratorState._reset_state()
    set_seed(config.seed)
    on_cpu = not torch.cuda.is_available()
    precision = choose_dtype("cpu" if on_cpu else "cuda") if config.precision == "auto" else config.precision
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        cpu=on_cpu,
        # A step takes one batch of all processes together, and so one step of the schedule.
        step_scheduler_with_optimizer=False,
        # The others wait while the first one writes a large model.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    if accelerator.state.deepspeed_plugin is not None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        share = math.ceil(config.batch_size / accelerator.num_processes)
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = share
        # Or transformers would load every model in parts from now on, the teacher and the finished model too.
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    return accelerator


def _is_sharded(accelerator: Any) -> bool:
    return accelerator.distributed_type in ("FSDP", "DEEPSPEED")


def _embedder(config: TrainConfig, folder: RunFolder, device: str) -> Embedder:
    """The base, ready to train; the weights are the same in every process, those of new adapters too."""
    from accelerate.utils import set_seed

    set_seed(config.seed)
    embedder = prepare(config, folder.work, device=device)
    runtime: Any = embedder.runtime
    runtime.model = make_trainable(torch_model(embedder), config)
    return embedder


def _instruct(config: TrainConfig, sources: Sources, embedder: Embedder, rejects: Rejects) -> Sources:
    """Give every example its instruction, and the embedder the default that the finished model will have."""
    default = embedder.conventions.default_instruction if config.instructed else None
    if default is not None:
        sources = with_default_instruction(sources, default)
    if config.instructed:
        sources = with_room(sources, embedder, rejects)
    if config.instructed == 1:  # a model that always had an instruction needs one; others learned to do without
        default = default or common_instruction(sources)
    # Set now, so that the dev set is searched as the finished model will be.
    embedder.conventions = replace(embedder.conventions, default_instruction=default)
    return sources


def _teachers(config: TrainConfig, embedder: Embedder, sources: Sources, accelerator: Any) -> Teachers | None:
    if not config.teachers:
        return None
    vectors = Path(config.teacher_vectors) if config.teacher_vectors else None
    if vectors is not None and accelerator.process_index:
        vectors = vectors / f"process-{accelerator.process_index}"
    teachers = [
        Teacher(
            name, device=str(accelerator.device), max_length=config.max_length, follows=config.teacher_follows,
            vectors=vectors,
        )
        for name in config.teachers
    ]  # fmt: skip
    if len(teachers) > 1:
        return fit_teachers(teachers, embedder, [each for _, examples in sources for each in examples], config.seed)
    if config.teacher_weight and teachers[0].dim != embedder.dim:
        raise InputError(
            f"the teacher {config.teacher} has vectors of {teachers[0].dim} dimensions and {config.base} of "
            f"{embedder.dim}, so there is no cosine between them; choose another, or learn only its neighbours: "
            "--teacher-weight 0"
        )
    return Teachers(teachers)


def _near(config: TrainConfig, teachers: Teachers | None, sources: Sources) -> Near | None:
    """Where the queries are of which neighbours are to share a batch: those without contrast.

    In contrast, a near neighbour may be an unlabelled answer, and be pushed away.
    """
    rows: Near = {}
    for number, (source, examples) in enumerate(sources):
        if teachers is not None and (source.kept or not config.contrast):
            rows[number] = teachers.query_rows([example.query for example in examples])
    return rows


def _rate(step: int, *, warmup: int, planned: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (planned - step) / max(1, planned - warmup))


# Loop


def _loop(
    run: _Run,
    on_step: Callable[[TrainReport, int], None] | None,
    on_evaluate: Callable[[TrainReport, Embedder], None] | None,
) -> None:
    config, report = run.config, run.report
    runtime: Any = run.embedder.runtime
    start, seconds_before = time.monotonic(), report.seconds
    evaluated = -1
    with TrainLog(run.folder.path, report, writes=run.accelerator.is_main_process) as log:
        for batch in _batches_from(run.batches, config.epochs, report.steps):
            if report.steps >= run.planned:
                break
            rate = run.schedule.get_last_lr()[0]
            runtime.model.train()
            loss, norm = run.step.backward(batch, report)
            run.optimizer.step()
            run.schedule.step()
            run.optimizer.zero_grad()
            report.steps += 1
            report.seconds = seconds_before + time.monotonic() - start
            report.peak_memory_mib = peak_memory_mib()
            report.losses.append((report.steps, loss))
            log.step(report, learning_rate=rate, gradient_norm=norm)
            if config.evaluate_every and report.steps % config.evaluate_every == 0:
                if run.dev:
                    report.dev.append((report.steps, run.dev.score(run.embedder)))
                    log.evaluated(report)
                evaluated = _evaluated(run, on_evaluate)
            if on_step and run.accelerator.is_main_process:
                on_step(report, run.planned)
            if config.checkpoint_every and report.steps % config.checkpoint_every == 0:
                run.folder.save(run.accelerator, report)
        if run.dev and (not report.dev or report.dev[-1][0] != report.steps):
            report.dev.append((report.steps, run.dev.score(run.embedder)))
        log.evaluated(report)
        if evaluated != report.steps:
            _evaluated(run, on_evaluate)


def _evaluated(run: _Run, on_evaluate: Callable[[TrainReport, Embedder], None] | None) -> int:
    """Let the caller evaluate the model, in the precision of training; returns the number of steps."""
    if on_evaluate and run.accelerator.is_main_process:
        with run.accelerator.autocast():
            on_evaluate(run.report, run.embedder)
    return run.report.steps


def _batches_from(batches: Batches, epochs: int, step: int) -> Iterator[Batch]:
    """The batches of all epochs, without those of the first steps."""
    for number in range(epochs):
        length = len(batches.epoch(number))
        skip = min(step, length)
        step -= skip
        yield from batches.epoch(number, skip=skip)


# Finish


def _finish(run: _Run) -> None:
    config, accelerator, embedder = run.config, run.accelerator, run.embedder
    runtime: Any = embedder.runtime
    weights = accelerator.get_state_dict(runtime.model) if run.sharded else None
    if accelerator.is_main_process:
        conventions = embedder.conventions
        if weights is None:
            runtime.model = accelerator.unwrap_model(runtime.model)
        else:
            embedder = _embedder(config, run.folder, "cpu")
            embedder.conventions = conventions
            torch_model(embedder).load_state_dict(weights)
        card = model_card(config, run.report, query_repeats=conventions.query_repeats)
        save(
            embedder, run.folder.path, card=card, default_instruction=conventions.default_instruction,
            dims=config.matryoshka, attention=config.attention,
        )  # fmt: skip
        run.folder.clear()
    accelerator.wait_for_everyone()
