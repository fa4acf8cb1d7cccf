"""The training loop, readable from top to bottom."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from hashlib import blake2b
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import Embedder
from searchkit.models.location import find_model
from searchkit.models.torch_runtime import choose_dtype
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.readers.rejects import Rejects
from searchkit.records import Judgements
from searchkit.tasks import find_task
from searchkit.training.batches import Batch, Batches, Source
from searchkit.training.card import model_card
from searchkit.training.config import TrainConfig
from searchkit.training.contamination import Evaluation
from searchkit.training.dataset import Example, read_examples
from searchkit.training.gradcache import cached_backward, gather_list
from searchkit.training.log import Leaking, TrainLog, TrainReport
from searchkit.training.loss import info_nce, matryoshka
from searchkit.training.model import attach_lora, lay_out, prepare, save, torch_model, trainable
from searchkit.training.teacher import Teacher, teaching_loss

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    *,
    allow_leaks: bool = False,
    on_leaks: Callable[[list[Leaking]], None] | None = None,
    on_step: Callable[[TrainReport, int], None] | None = None,
) -> TrainReport:
    """Train `config.base` on `config.sources` and write `config.out`; goes on from the last checkpoint found there.

    Under `accelerate launch` every process calls this; the first one writes, reports and calls back, the others work
    along and wait.

    Args:
        config: The run.
        allow_leaks: Train although texts of the dev set are among the examples.
        on_leaks: Called before training with what every source shares with the dev set, if there is one.
        on_step: Called after every step with the report so far and the number of steps planned.

    Raises:
        ValueError: Bad data, a leak, or settings that do not go together; the message says what to do.
    """
    accelerator = _accelerator(config)
    out, report = Path(config.out), TrainReport(process=accelerator.process_index)
    with accelerator.main_process_first():
        resumable = _check_out(out, config)
    if accelerator.is_main_process:
        lay_out(config, out / "work")
    rejects = Rejects(out / "rejects.jsonl" if accelerator.is_main_process else Path(os.devnull))
    examples = _read(config, rejects, report)
    if on_leaks and config.dev and accelerator.is_main_process:
        on_leaks(report.leaks)
    _refuse_leaks(config, report, allow_leaks)
    accelerator.wait_for_everyone()

    sharded = accelerator.distributed_type in ("FSDP", "DEEPSPEED")
    embedder = _trainable(config, "cpu" if sharded else str(accelerator.device))
    runtime: Any = embedder.runtime
    report.trainable = trainable(runtime.model)
    default = embedder.conventions.default_instruction if config.instructed else None
    examples = [(source, [_or_default(example, default) for example in found]) for source, found in examples]
    if config.instructed:
        examples = _with_room(examples, embedder, rejects)
    # Known from the beginning, so that the dev set is searched as the finished model will be.
    default = default or _common_instruction(config, examples)
    embedder.conventions = replace(embedder.conventions, default_instruction=default)
    if config.dev:
        embedder.query_tokens([""], _dev_instruction(config))  # raises now what searching there would at the end
    report.examples, report.refused = sum(len(found) for _, found in examples), rejects.count
    teacher = None
    if config.teacher:
        teacher = Teacher(
            config.teacher, device=str(accelerator.device), max_length=config.max_length, follows=config.teacher_follows
        )
        if config.teacher_weight and teacher.dim != embedder.dim:
            raise InputError(
                f"the teacher {config.teacher} gives vectors of {teacher.dim} dimensions and {config.base} of "
                f"{embedder.dim}, which have no cosine; take another, or learn its neighbours alone: --teacher-weight 0"
            )

    batches = Batches(
        examples, config.batch_size, seed=config.seed, negatives_per_query=config.negatives_per_query,
        smallest_batch=max(2, accelerator.num_processes),  # every process needs an example of each
    )  # fmt: skip
    planned = sum(len(batches.epoch(number)) for number in range(config.epochs))
    planned = min(planned, config.max_steps or planned)
    parameters = [parameter for parameter in runtime.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    warmup = min(config.warmup_steps, max(1, planned // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, warmup=warmup, planned=planned))
    runtime.model, optimizer, schedule = accelerator.prepare(runtime.model, optimizer, schedule)
    runtime.device = accelerator.device

    if resumable:
        accelerator.load_state(str(resumable))
        saved = json.loads((resumable / "report.json").read_text())
        _refuse_other_data(config, report.digests, saved.get("digests", report.digests))
        report.restore(saved)
        logger.info("going on from step %d", report.steps)
    began, done_before = time.monotonic(), report.seconds
    with TrainLog(out, report, writes=accelerator.is_main_process) as log:
        for batch in _from_step(batches, config.epochs, report.steps):
            if report.steps >= planned:
                break
            rate = schedule.get_last_lr()[0]
            runtime.model.train()
            loss, norm = _step(batch, embedder, teacher, config, accelerator, report)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            report.steps += 1
            report.seconds = done_before + time.monotonic() - began
            report.peak_memory_mib = _peak_memory()
            report.losses.append((report.steps, loss))
            log.step(report, learning_rate=rate, gradient_norm=norm)
            if config.dev and config.evaluate_every and report.steps % config.evaluate_every == 0:
                _evaluate(embedder, config, report)
                log.evaluated(report)
            if on_step and accelerator.is_main_process:
                on_step(report, planned)
            if config.checkpoint_every and report.steps % config.checkpoint_every == 0:
                _checkpoint(accelerator, out, report)
        if config.dev and (not report.dev or report.dev[-1][0] != report.steps):
            _evaluate(embedder, config, report)
        log.evaluated(report)
    weights = accelerator.get_state_dict(runtime.model) if sharded else None
    if accelerator.is_main_process:
        if weights is None:
            runtime.model = accelerator.unwrap_model(runtime.model)
        else:
            conventions, embedder = embedder.conventions, _trainable(config, "cpu")
            embedder.conventions = conventions
            torch_model(embedder).load_state_dict(weights)
        _finish(embedder, config, report)
    accelerator.wait_for_everyone()
    return report


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
        # Or transformers would load every model in parts from now on, the teacher's and the finished one's too.
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    return accelerator


def _trainable(config: TrainConfig, device: str) -> Embedder:
    """The base, ready to train; the same weights in every process, those of new adapters too."""
    from accelerate.utils import set_seed

    set_seed(config.seed)
    embedder = prepare(config, Path(config.out) / "work", device=device)
    runtime: Any = embedder.runtime
    runtime.model = _make_trainable(torch_model(embedder), config)
    return embedder


def _step(
    batch: Batch,
    embedder: Embedder,
    teacher: Teacher | None,
    config: TrainConfig,
    accelerator: Any,
    report: TrainReport,
) -> tuple[float, float]:
    """Add one batch's gradient; returns its loss and the gradient's norm before it was clipped."""
    # By length, so that of several processes each takes as many long ones.
    order = sorted(range(len(batch)), key=lambda i: len(batch.examples[i].positive))
    draw = random.Random(f"{config.seed}/{report.steps}")
    told_of = [draw.random() < config.instructed for _ in order]  # by example, whoever takes it
    shares = [order[rank :: accelerator.num_processes] for rank in range(accelerator.num_processes)]
    duplicates = torch.from_numpy(batch.part([i for share in shares for i in share]).duplicates())
    duplicates = duplicates.to(accelerator.device)
    order = shares[accelerator.process_index]
    batch, told = batch.part(order), [told_of[i] for i in order]
    asked = [example.query for example in batch.examples]
    instructions = [example.instruction or "" if use else "" for example, use in zip(batch.examples, told, strict=True)]
    passages = [embedder.conventions.document_prefix + text for text in batch.passages()]
    cut_before = embedder.stats.truncated
    groups = [
        embedder.tokenize_queries(asked, instructions),
        *(embedder.tokenize(texts) for texts in (passages[: len(batch)], passages[len(batch) :])),
    ]
    cut = embedder.stats.truncated - cut_before
    report.tokens += sum(gather_list([sum(len(ids) for group in groups for ids in group)]))
    report.texts += sum(gather_list([sum(map(len, groups))]))
    report.truncated += sum(gather_list([cut]))
    contrasts = bool(config.contrast) and not batch.kept
    # A teacher that heeds no instruction must not teach the instructed what contrast teaches them.
    confused = contrasts and not config.teacher_follows
    mine = [bool(confused and use and example.instruction) for example, use in zip(batch.examples, told, strict=True)]
    apart = torch.tensor(gather_list(mine), dtype=torch.bool, device=accelerator.device)
    taught = None if teacher is None else teacher.rows(batch, told).to(accelerator.device)
    neighbours = 1.0 if batch.kept else config.teacher_neighbours

    def encode(tokens: Sequence[list[int]]) -> Tensor:
        if not tokens:
            return torch.empty(0, embedder.dim, device=accelerator.device)
        runtime: Any = embedder.runtime
        with accelerator.autocast():
            return F.normalize(runtime.pooled(list(tokens), embedder.conventions), dim=-1)

    def loss(*rows: Tensor) -> Tensor:
        value = rows[0].new_zeros(())
        found, others = rows[0], torch.cat(rows[1:])
        if contrasts:
            contrast = partial(info_nce, temperature=config.temperature, duplicates=duplicates, margin=config.margin)
            if config.matryoshka:
                widths = sorted({*config.matryoshka, embedder.dim}, reverse=True)
                value = value + config.contrast * matryoshka(contrast, found, others, dims=widths)
            else:
                value = value + config.contrast * contrast(found, others)
        if taught is not None:
            both = torch.cat([found, others])
            value = value + teaching_loss(both, taught, apart, weight=config.teacher_weight, neighbours=neighbours)
        return value

    model = torch_model(embedder)
    if sum(map(len, groups)) <= config.chunk and accelerator.num_processes == 1:
        result = loss(*(encode(group) for group in groups))
        accelerator.backward(result)
    else:
        no_sync = partial(_no_sync, accelerator, model)
        result = cached_backward(
            encode, groups, loss, chunk=config.chunk, no_sync=no_sync, backward=accelerator.backward, size=len
        )
    norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of weights in parts
    return float(result.detach()), math.nan if norm is None else float(norm)


@contextmanager
def _no_sync(accelerator: Any, model: Any) -> Iterator[None]:
    """Keep gradients to the process, and DeepSpeed from stepping."""
    with accelerator.no_sync(model):
        accelerator.sync_gradients = False
        try:
            yield
        finally:
            accelerator.sync_gradients = True


def _read(config: TrainConfig, rejects: Rejects, report: TrainReport) -> list[tuple[Source, list[Example]]]:
    """All examples in memory, bad rows written aside; what they share with the dev set goes into the report."""
    found = []
    given = _instructions(config.instructions)
    with rejects:
        for text in config.sources:
            source = Source.parse(text)
            rows = read_examples(source.path, corpus=config.corpus, rejects=rejects)
            found.append((source, [_told(example, given) for example in rows]))
    report.digests = [_digest(examples) for _, examples in found]
    if config.dev:
        folder, split = _dev(config.dev)
        evaluation = Evaluation(read_beir_split(folder, split)[0], read_corpus(folder))
        for source, examples in found:
            leaks = evaluation.find_leaks(examples)
            first = leaks.questions.samples[0].text if leaks.questions else None
            questions, documents, few = map(len, (leaks.questions, leaks.documents, leaks.low_entropy))
            report.leaks.append(Leaking(str(source.path), len(examples), questions, documents, few, sample=first))
    return found


def _refuse_leaks(config: TrainConfig, report: TrainReport, allow_leaks: bool) -> None:
    for leaking in report.leaks:
        if leaking.questions and not allow_leaks:
            raise InputError(
                f"{leaking.source} shares {leaking.questions} queries with {config.dev}, so a score there would "
                f"mean nothing; such as {leaking.sample!r}. Take them out, or go on with --allow-leaks"
            )


def _digest(examples: list[Example]) -> str:
    digest = blake2b(digest_size=16)
    for one in examples:
        digest.update(repr((one.query, one.positive, one.negatives, one.instruction)).encode())
    return digest.hexdigest()


def _refuse_other_data(config: TrainConfig, digests: list[str], before: list[str]) -> None:
    for source, now, then in zip(config.sources, digests, before, strict=True):
        if now != then:
            raise InputError(
                f"the examples of {source} have changed since the checkpoint in {config.out} was written; put them "
                "back (with their --corpus and --instructions), or name another --out"
            )


def _instructions(file: str | None) -> dict[str, list[str]]:
    if file is None:
        return {}
    values = json.loads(Path(file).read_text(encoding="utf-8"))
    lists = values.values() if isinstance(values, dict) else [None]
    if not all(isinstance(some, list) and some and all(isinstance(one, str) for one in some) for some in lists):
        raise InputError(f'{file} is not {{"source name": ["an instruction", ...], ...}}; write it so')
    return dict(values)


def _told(example: Example, given: dict[str, list[str]]) -> Example:
    """The example with one of its source's instructions, always the same one."""
    some = given.get(example.source)
    if example.instruction is not None or not some:
        return example
    return replace(example, instruction=some[zlib.crc32(example.query.encode()) % len(some)])


def _common_instruction(config: TrainConfig, examples: list[tuple[Source, list[Example]]]) -> str | None:
    """A model that was never without an instruction needs one; one that also learnt to do without does not."""
    told = [example.instruction for _, found in examples for example in found]
    return Counter(told).most_common(1)[0][0] if all(told) and config.instructed == 1 else None


def _or_default(example: Example, default: str | None) -> Example:
    """The example with the instruction that a search without one would have."""
    if default is None or example.instruction is not None:
        return example
    return replace(example, instruction=default)


def _with_room(
    examples: list[tuple[Source, list[Example]]], embedder: Embedder, rejects: Rejects
) -> list[tuple[Source, list[Example]]]:
    """Without those whose instruction takes all tokens: their queries would be cut to the same, whatever they ask."""
    faults: dict[str | None, str] = {}
    for instruction in {example.instruction for _, found in examples for example in found if example.instruction}:
        try:
            embedder.query_tokens([""], instruction)
        except ValueError as error:
            faults[instruction] = f"{error}, or train with a higher --max-length"
    kept = []
    with rejects:
        for source, found in examples:
            for example in found:
                if example.instruction in faults:
                    rejects.set_aside(str(source.path), faults[example.instruction], asdict(example))
            kept.append((source, [example for example in found if example.instruction not in faults]))
            if not kept[-1][1]:
                told = found[0].instruction or ""
                raise InputError(f'{source.path}: no example is left, of "{shorten(told, 80)}" {faults[told]}')
    return kept


def _make_trainable(model: Any, config: TrainConfig) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if config.gradient_checkpointing:
        # Reentrant checkpointing loses the gradient where the inputs need none, as under LoRA.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # its new name
        enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if config.lora_rank:
        model = attach_lora(model, config.lora_rank, config.lora_alpha)
        model.peft_config["default"].base_model_name_or_path = find_model(config.base)[1]
        return model
    for parameter in model.get_input_embeddings().parameters():
        parameter.requires_grad = False  # a small set would bend the words it has away from those it lacks
    for name, parameter in model.named_parameters():
        if name.startswith("pooler."):
            parameter.requires_grad = False
    return model


def _rate(step: int, *, warmup: int, planned: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (planned - step) / max(1, planned - warmup))


def _from_step(batches: Batches, epochs: int, step: int) -> Iterator[Batch]:
    for number in range(epochs):
        length = len(batches.epoch(number))
        skip = min(step, length)
        step -= skip
        yield from batches.epoch(number, skip=skip)


def _dev(text: str) -> tuple[Path, str]:
    folder, colon, split = text.rpartition(":")
    return (Path(folder), split) if colon else (Path(text), "dev")


def _dev_instruction(config: TrainConfig) -> str | None:
    """The instruction of the dev set's task; None, which is the model's default, where it has none that we know."""
    task = find_task(_dev(config.dev or "")[0].resolve().name)
    return task.instruction if task and config.instructed else None


def _evaluate(embedder: Embedder, config: TrainConfig, report: TrainReport) -> None:
    """nDCG@10 on the dev set, by the project's own engine."""
    folder, split = _dev(config.dev or "")
    runtime: Any = embedder.runtime
    runtime.model.eval()
    embedder.forget_identity()
    judgements = Judgements("dev", *read_beir_split(folder, split), _dev_instruction(config))
    with (
        tempfile.TemporaryDirectory() as place,
        SearchEngine.create(Path(place) / "index", model=embedder, chunk_tokens=0) as engine,
    ):
        engine.add(read_corpus(folder, rejects=Rejects(Path(place) / "rejects.jsonl")))
        found = evaluate(engine, judgements, modes=["dense"])
    report.dev.append((report.steps, found[0].metrics["ndcg@10"]))


def _checkpoint(accelerator: Any, out: Path, report: TrainReport) -> None:
    """A folder to resume from; complete before it gets its name, and the older one goes only then."""
    place = out / "checkpoints"
    final, staging = place / f"step-{report.steps:07d}", place / "unfinished"
    if accelerator.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(staging))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (staging / "report.json").write_text(json.dumps(asdict(report)))
        staging.rename(final)
        for old in place.glob("step-*"):
            if old != final:
                shutil.rmtree(old)


def _check_out(out: Path, config: TrainConfig) -> Path | None:
    """The checkpoint to go on from; refuses a folder that holds another run, unless that made no step."""
    saved, log = out / "training.json", out / "log.jsonl"
    resumable = max((out / "checkpoints").glob("step-*"), default=None)
    if saved.is_file():
        made_steps = resumable is not None or (log.is_file() and log.stat().st_size > 0)
        if made_steps and replace(TrainConfig.load(saved), out=config.out) != config:
            raise InputError(f"{out} holds a run with other settings (training.json); name another --out")
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no training run; name another --out")
    if (out / "modules.json").is_file():
        raise InputError(f"{out} holds a finished run; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    config.save(saved)
    return resumable


def _finish(embedder: Embedder, config: TrainConfig, report: TrainReport) -> None:
    out, conventions = Path(config.out), embedder.conventions
    card = model_card(config, report, query_repeats=conventions.query_repeats)
    save(
        embedder, out, card=card, default_instruction=conventions.default_instruction, dims=config.matryoshka,
        attention=config.attention,
    )  # fmt: skip
    shutil.rmtree(out / "work", ignore_errors=True)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _peak_memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
