"""The training loop, readable from top to bottom."""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from searchkit.corpus import read_corpus
from searchkit.embedder import Embedder
from searchkit.engine import SearchEngine
from searchkit.evaluate import evaluate
from searchkit.judgements import read_beir_split
from searchkit.lines import Rejects
from searchkit.prompts import find_task, format_query
from searchkit.ranking import SearchOptions
from searchkit.runtime_torch import choose_dtype
from searchkit.training.config import TrainConfig
from searchkit.training.contamination import find_leaks
from searchkit.training.dataset import Batch, Batches, Example, Source, read_examples
from searchkit.training.gradcache import cached_backward, gather_list
from searchkit.training.loss import distillation, info_nce, matryoshka
from searchkit.training.model import attach_lora, prepare, save, torch_model, trainable

logger = logging.getLogger(__name__)


@dataclass
class TrainReport:
    """What a run did and found."""

    steps: int = 0
    examples: int = 0
    refused: int = 0
    leaks: int = 0
    tokens: int = 0
    seconds: float = 0.0
    trainable: int = 0
    peak_memory_mib: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    dev: list[tuple[int, float]] = field(default_factory=list)


def train(
    config: TrainConfig,
    *,
    allow_leaks: bool = False,
    on_step: Callable[[TrainReport, int], None] | None = None,
) -> TrainReport:
    """Train `config.base` on `config.sources` and write `config.out`; goes on from the last checkpoint found there.

    Args:
        config: The run.
        allow_leaks: Train although texts of the dev set are among the examples.
        on_step: Called after every step with the report so far and the number of steps planned.

    Raises:
        ValueError: Bad data, a leak, or settings that do not go together; the message says what to do.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    out = Path(config.out)
    resumable = _check_out(out, config)
    report = TrainReport()
    examples = _read(config, out, report, allow_leaks)
    set_seed(config.seed)
    on_cpu = not torch.cuda.is_available()
    precision = choose_dtype("cpu" if on_cpu else "cuda") if config.precision == "auto" else config.precision
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bfloat16" else "no", cpu=on_cpu)

    embedder = prepare(config, out / "work")
    runtime: Any = embedder.runtime
    runtime.model = _make_trainable(torch_model(embedder), config)
    report.trainable = trainable(runtime.model)
    teacher = Embedder(config.teacher, dtype="float32") if config.teacher else None

    batches = Batches(examples, config.batch_size, seed=config.seed, negatives_per_query=config.negatives_per_query)
    planned = sum(len(batches.epoch(number)) for number in range(config.epochs))
    planned = min(planned, config.max_steps or planned)
    parameters = [parameter for parameter in runtime.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    warmup = min(config.warmup_steps, max(1, planned // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, warmup=warmup, planned=planned))
    runtime.model, optimizer, schedule = accelerator.prepare(runtime.model, optimizer, schedule)
    runtime.device = accelerator.device

    if resumable:
        accelerator.load_state(str(resumable))
        state = json.loads((resumable / "report.json").read_text())
        report = TrainReport(**{**state, "losses": _pairs(state["losses"]), "dev": _pairs(state["dev"])})
        logger.info("going on from step %d", report.steps)
    began, done_before = time.monotonic(), report.seconds
    log = (out / "log.jsonl").open("a", encoding="utf-8")
    for batch in _from_step(batches, config.epochs, report.steps):
        if report.steps >= planned:
            break
        runtime.model.train()
        loss = _step(batch, embedder, teacher, config, accelerator, report, parameters)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report.steps += 1
        report.seconds = done_before + time.monotonic() - began
        report.peak_memory_mib = _peak_memory()
        report.losses.append((report.steps, loss))
        log.write(json.dumps({"step": report.steps, "loss": loss, "tokens": report.tokens}) + "\n")
        log.flush()
        if config.dev and config.evaluate_every and report.steps % config.evaluate_every == 0:
            _evaluate(embedder, config, report)
        if on_step:
            on_step(report, planned)
        if config.checkpoint_every and report.steps % config.checkpoint_every == 0:
            _checkpoint(accelerator, out, report)
    log.close()
    runtime.model = accelerator.unwrap_model(runtime.model)
    if config.dev and (not report.dev or report.dev[-1][0] != report.steps):
        _evaluate(embedder, config, report)
    if accelerator.is_main_process:
        _finish(embedder, config, report, examples)
    return report


def _step(
    batch: Batch,
    embedder: Embedder,
    teacher: Embedder | None,
    config: TrainConfig,
    accelerator: Any,
    report: TrainReport,
    parameters: list[Any],
) -> float:
    """Add one batch's gradient; returns its loss."""
    # Similar lengths side by side, so that a chunk holds little padding; of several processes each takes its share.
    order = sorted(range(len(batch)), key=lambda i: len(batch.examples[i].positive))
    order = order[accelerator.process_index :: accelerator.num_processes]
    batch = Batch(tuple(batch.examples[i] for i in order), tuple(batch.negatives[i] for i in order))
    joined = Batch(tuple(gather_list(batch.examples)), tuple(gather_list(batch.negatives)))
    duplicates = torch.from_numpy(joined.duplicates()).to(accelerator.device)
    draw = random.Random(f"{config.seed}/{report.steps}/{accelerator.process_index}")
    told = [draw.random() < config.instructed for _ in batch.examples]
    queries = [_query(example, embedder, use) for example, use in zip(batch.examples, told, strict=True)]
    passages = [embedder.conventions.document_prefix + text for text in batch.passages()]
    groups = [embedder.tokenize(texts) for texts in (queries, passages[: len(batch)], passages[len(batch) :])]
    report.tokens += sum(len(ids) for group in groups for ids in group)
    taught = None if teacher is None else _taught(batch, told, teacher).to(accelerator.device)

    def encode(tokens: Sequence[list[int]]) -> Tensor:
        if not tokens:
            return torch.empty(0, embedder.dim, device=accelerator.device)
        runtime: Any = embedder.runtime
        with accelerator.autocast():
            return F.normalize(runtime.pooled(list(tokens), embedder.conventions), dim=-1)

    def loss(*rows: Tensor) -> Tensor:
        value = rows[0].new_zeros(())
        found, others = rows[0], torch.cat(rows[1:])
        if config.contrast:
            contrast = partial(info_nce, temperature=config.temperature, duplicates=duplicates, margin=config.margin)
            if config.matryoshka:
                widths = sorted({*config.matryoshka, embedder.dim}, reverse=True)
                value = value + config.contrast * matryoshka(contrast, found, others, dims=widths)
            else:
                value = value + config.contrast * contrast(found, others)
        if taught is not None:
            value = value + distillation(torch.cat([found, others]), taught, weight=config.teacher_weight)
        return value

    if sum(map(len, groups)) <= config.chunk and accelerator.num_processes == 1:
        result = loss(*(encode(group) for group in groups))
        result.backward()  # type: ignore[no-untyped-call]
    else:
        no_sync = partial(accelerator.no_sync, torch_model(embedder))
        result = cached_backward(encode, groups, loss, chunk=config.chunk, no_sync=no_sync)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    return float(result.detach())


def _query(example: Example, embedder: Embedder, told: bool) -> str:
    conventions = embedder.conventions
    if told and example.instruction:
        return format_query(conventions.instructed, example.query, example.instruction)
    return conventions.query_prefix + example.query


def _taught(batch: Batch, told: list[bool], teacher: Embedder) -> Tensor:
    """The teacher's rows for the queries, positives and negatives of all processes.

    For an instructed query it is the middle between the teacher's vectors with and without the instruction: a teacher
    not trained for instructions half follows them and is half confused by them (see docs/built-in-model.md).
    """
    plain = torch.from_numpy(teacher.encode_queries([example.query for example in batch.examples], ""))
    for i, (example, use) in enumerate(zip(batch.examples, told, strict=True)):
        if use and example.instruction:
            plain[i] += torch.from_numpy(teacher.encode_queries([example.query], example.instruction)[0])
    passages = torch.from_numpy(teacher.encode_passages(batch.passages()))
    groups = (F.normalize(plain, dim=-1), passages[: len(batch)], passages[len(batch) :])
    return torch.stack([row for group in groups for row in gather_list(list(group))])


def _read(config: TrainConfig, out: Path, report: TrainReport, allow_leaks: bool) -> list[tuple[Source, list[Example]]]:
    """All examples in memory, bad rows written aside, and none of them from the dev set."""
    found = []
    given = _instructions(config.instructions)
    out.mkdir(parents=True, exist_ok=True)
    with Rejects(out / "rejects.jsonl") as rejects:
        for text in config.sources:
            source = Source.parse(text)
            found.append((source, [_told(example, given) for example in read_examples(source.path, rejects=rejects)]))
        report.refused = rejects.count
    report.examples = sum(len(examples) for _, examples in found)
    if config.dev:
        folder, split = _dev(config.dev)
        queries, _ = read_beir_split(folder, split)
        for source, examples in found:
            leaks = find_leaks(examples, queries, read_corpus(folder))
            report.leaks += len(leaks.questions)
            logger.info(
                "%s and %s share %d queries, %d documents, %d texts of a few words",
                source.path, config.dev, len(leaks.questions), len(leaks.documents), len(leaks.low_entropy),
            )  # fmt: skip
            if leaks.questions and not allow_leaks:
                raise ValueError(
                    f"{source.path} shares {len(leaks.questions)} queries with {config.dev}, so a score there would "
                    f"mean nothing; such as {leaks.questions.samples[0].text!r}. Take them out, or go on "
                    "with --allow-leaks"
                )
    return found


def _instructions(file: str | None) -> dict[str, list[str]]:
    if file is None:
        return {}
    values = json.loads(Path(file).read_text(encoding="utf-8"))
    lists = values.values() if isinstance(values, dict) else [None]
    if not all(isinstance(some, list) and some and all(isinstance(one, str) for one in some) for some in lists):
        raise ValueError(f'{file} is not {{"source name": ["an instruction", ...], ...}}; write it so')
    return dict(values)


def _told(example: Example, given: dict[str, list[str]]) -> Example:
    """The example with one of its source's instructions, always the same one."""
    some = given.get(example.source)
    if example.instruction is not None or not some:
        return example
    return replace(example, instruction=some[zlib.crc32(example.query.encode()) % len(some)])


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
        return attach_lora(model, config.lora_rank, config.lora_alpha)
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


def _evaluate(embedder: Embedder, config: TrainConfig, report: TrainReport) -> None:
    """nDCG@10 on the dev set, by the project's own engine."""
    folder, split = _dev(config.dev or "")
    runtime: Any = embedder.runtime
    runtime.model.eval()
    embedder.forget_identity()
    task = find_task(folder.resolve().name)
    queries, qrels = read_beir_split(folder, split)
    with (
        tempfile.TemporaryDirectory() as place,
        SearchEngine.create(Path(place) / "index", model=embedder, chunk_tokens=0) as engine,
    ):
        engine.add(read_corpus(folder, rejects=Rejects(Path(place) / "rejects.jsonl")))
        told = task.instruction if task and config.instructed else None
        found = evaluate(engine, queries, qrels, modes=["dense"], instruction=told, options=SearchOptions())
    report.dev.append((report.steps, found[0].metrics["ndcg@10"]))


def _checkpoint(accelerator: Any, out: Path, report: TrainReport) -> None:
    """A folder to resume from; complete before it gets its name, and the older one goes only then."""
    place = out / "checkpoints"
    final, staging = place / f"step-{report.steps:07d}", place / "unfinished"
    shutil.rmtree(staging, ignore_errors=True)
    accelerator.save_state(str(staging))
    if accelerator.is_main_process:
        (staging / "report.json").write_text(json.dumps(report.__dict__))
        staging.rename(final)
        for old in place.glob("step-*"):
            if old != final:
                shutil.rmtree(old)


def _check_out(out: Path, config: TrainConfig) -> Path | None:
    """The checkpoint to go on from; refuses a folder that holds another run."""
    saved = out / "training.json"
    if saved.is_file():
        before = TrainConfig.load(saved)
        if replace(before, out=config.out) != config:
            raise ValueError(f"{out} holds a run with other settings (training.json); name another --out")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no training run; name another --out")
    if (out / "modules.json").is_file():
        raise ValueError(f"{out} holds a finished run; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    config.save(saved)
    return max((out / "checkpoints").glob("step-*"), default=None)


def _finish(
    embedder: Embedder, config: TrainConfig, report: TrainReport, examples: list[tuple[Source, list[Example]]]
) -> None:
    out = Path(config.out)
    counts: dict[str, int] = {}
    for _, found in examples:
        for example in found:
            if example.instruction:
                counts[example.instruction] = counts.get(example.instruction, 0) + 1
    default = max(counts, key=counts.__getitem__) if counts and config.instructed == 1 else None
    default = embedder.conventions.default_instruction or default
    save(embedder, out, card=_card(config, report), default_instruction=default, dims=config.matryoshka)
    shutil.rmtree(out / "work", ignore_errors=True)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _card(config: TrainConfig, report: TrainReport) -> str:
    dev = "\n".join(f"| {step} | {value:.4f} |" for step, value in report.dev) or "| - | not measured |"
    sources = "\n".join(f"- `{Path(source).name}`" for source in config.sources)
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---
# {Path(config.out).name}

Trained from `{config.base}` by `searchkit train`; every setting is in `training.json`.

Data, {report.examples} examples ({report.refused} rows refused):
{sources}

{report.steps} steps of {config.batch_size} queries, {report.tokens} tokens, {report.trainable} weights trained,
{report.seconds:.0f} s.

nDCG@10 on `{config.dev or "no dev set"}`:

| step | nDCG@10 |
|---|---|
{dev}
"""


def _pairs(values: list[Any]) -> list[tuple[int, float]]:
    return [(int(step), float(value)) for step, value in values]


def _peak_memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def moving_average(losses: list[tuple[int, float]], span: int = 20) -> float:
    """The mean of the last losses, for showing; NaN before the first."""
    last = [value for _, value in losses[-span:]]
    return sum(last) / len(last) if last else math.nan
