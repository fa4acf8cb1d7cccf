"""The built-in model trained further by one command, from plain pairs and teachers.

    python -m searchkit.training.builtin PAIRS/ OUT/ --teacher MODEL [--teacher MODEL ...] [--base FOLDER]

PAIRS holds .jsonl.gz files of query and positive, named as in :data:`searchkit.training.builtin.data.PLAIN`; missing
files are skipped. The student starts from the weights that ship (:data:`BASE`), learns from all teachers at once, and
is averaged with what it started from; in int8, that is OUT/builtin. Interrupted, the same command resumes; the
teachers' vectors are kept in OUT/vectors. What its one whole run made was not better and does not ship;
docs/built-in-model.md has the figures.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from searchkit.errors import InputError, SearchkitError
from searchkit.models.conventions import SETTINGS, fingerprint
from searchkit.models.embedder import Embedder
from searchkit.models.location import find_model
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.readers.lines import plain_lines
from searchkit.training.builtin import data as builtin_data
from searchkit.training.config import TrainConfig
from searchkit.training.dev import DevSet
from searchkit.training.export import compare, export, unpack
from searchkit.training.files import digest, read_json, remove, write_json
from searchkit.training.log import TrainReport, moving_average
from searchkit.training.stages import Stages
from searchkit.training.train import train

BASE = "04c0b7d940fb9f7c0403b0f8d249001405c8bf4d13fcc7e36475164a45ac2340"
"""Fingerprint of the weights that the student starts from."""

FILES = ("kinds", "sections", "conditions", "questions", "openings", "plain")
SETTINGS_OF_RUN: dict[str, Any] = {
    "lora_rank": 0, "contrast": 0.5, "temperature": 0.03, "negatives_per_query": 2, "teacher_weight": 3.0,
    "batch_size": 16, "chunk": 64, "learning_rate": 1.2e-4, "weight_decay": 0.01, "warmup_steps": 30, "epochs": 2,
    "max_length": 160, "query_repeats": 2, "checkpoint_every": 50,
}  # fmt: skip
MAX_STEPS = 480
"""Less than one and a half epochs."""
MAX_LENGTH = 256
"""Tokens that the model reads; it was trained on shorter texts in this run."""
QUERY_REPEATS = 3
"""How often the model reads a query; a third time helps a model that was trained to read it twice."""
SHARE = 0.5
"""Of the trained weights in the mean with those it started from."""


def make(
    pairs: Path,
    out: Path,
    *,
    teachers: Sequence[str],
    base: str = "builtin",
    expected: str | None = BASE,
    dev: Sequence[str] = (),
    max_steps: int | None = None,
) -> Path:
    """Make the model; resumes where an earlier call was stopped, and redoes what depends on changed inputs.

    Args:
        pairs: Folder of the plain pairs.
        out: Folder for the examples, the teachers' vectors, the run and the model.
        teachers: Models to learn from.
        base: The exported model that the student starts from.
        expected: Fingerprint of `base`; None takes any.
        dev: BEIR folders as FOLDER:SPLIT, on which the base and the result are compared at the end.
        max_steps: Limit for the run, for a trial.

    Returns:
        The folder of the exported model.

    Raises:
        InputError: There are no such pairs, no teachers, or the base is another one.
    """
    names = [f"{name}.jsonl.gz" for name in builtin_data.PLAIN]
    files = [pairs / name for name in names if (pairs / name).is_file()]
    if not files:
        raise InputError(f"{pairs} holds none of {', '.join(names)}; give the folder of the pairs")
    if not teachers:
        raise InputError("no teachers; name at least one model with --teacher")
    folder, _ = find_model(base)
    if expected is not None and (found := fingerprint(folder)) != expected:
        raise InputError(
            f"{base} has the fingerprint {found[:12]}, and this recipe starts from {expected[:12]}; give the folder "
            "searchkit/builtin of the version that had it with --base (see docs/built-in-model.md)"
        )
    stages = Stages(out, lambda name, needed: print(f"{name}: {'started' if needed else 'done before'}", flush=True))
    start, data, run, built = out / "start", out / "data", out / "run", out / "builtin"
    inputs: dict[str, Any] = {file.name: digest(file) for file in files} | {"base": fingerprint(folder)}
    with stages.stage("start", inputs, ["start"]) as needed:
        if needed:
            remove(start)
            unpack(folder, start)
    with stages.stage("data", inputs, ["data"]) as needed:
        if needed:
            builtin_data.write(pairs, data, embedder=Embedder(folder))
    config = _config(data, run, start, teachers, out / "vectors", max_steps)
    inputs = {"before": inputs, "settings": asdict(config)}
    with stages.stage("run", inputs, ["run"]) as needed:
        if needed and not (run / "README.md").is_file():  # else it was stopped right after finishing
            _show_data(config)
            _show_run(train(config, on_step=_show_step))
    recipe = {"before": inputs, "repeats": QUERY_REPEATS, "length": MAX_LENGTH, "share": SHARE}
    with stages.stage("builtin", recipe, ["mean", "builtin"]) as needed:
        if needed:
            mix(start, run, out / "mean", share=SHARE)
            remove(built)
            export(out / "mean", built, dtype="int8")
            least, average = compare(out / "mean", built)
            print(f"int8: cosine to float32 {average:.4f} on average, {least:.4f} at least", flush=True)
    if dev:
        _show_scores(dev, {"before": folder, "trained": run, "mean": out / "mean", "int8": built})
    return built


def _config(
    data: Path, out: Path, start: Path, teachers: Sequence[str], vectors: Path, max_steps: int | None
) -> TrainConfig:
    sources = []
    for name in FILES:
        file = data / f"{name}.jsonl"
        if file.is_file() and any(plain_lines(file)):
            sources.append(f"{file}@mixed,kept" if name == "plain" else f"{file}@mixed")
    return TrainConfig(
        sources=tuple(sources), base=str(start), out=str(out), teacher=tuple(teachers), teacher_vectors=str(vectors),
        **{**SETTINGS_OF_RUN, "max_steps": min(max_steps or MAX_STEPS, MAX_STEPS)},
    )  # fmt: skip


def mix(first: Path, second: Path, out: Path, *, share: float) -> None:
    """Write the weighted mean of two models of the same shape, with the settings of the built-in model.

    Args:
        first: A transformers folder.
        second: Another, whose tokenizer and settings are taken.
        out: A new folder.
        share: Of `second`, from 0 to 1.
    """
    from safetensors.torch import load_file, save_file

    remove(out)
    shutil.copytree(
        second, out, ignore=shutil.ignore_patterns("model.safetensors", "README.md", "log*", "training.*", "vectors")
    )
    weights, others = (
        {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "pooler." not in name}
        for folder in (first, second)
    )
    if {name: tensor.shape for name, tensor in weights.items()} != {name: w.shape for name, w in others.items()}:
        raise InputError(
            f"{first} and {second} have weights of different names or shapes; only models of the same shape have a mean"
        )
    mixed = {name: tensor.lerp(others[name], share) for name, tensor in weights.items()}
    save_file(mixed, out / "model.safetensors", {"format": "pt"})
    write_json(out / SETTINGS, {**read_json(out / SETTINGS), "query_repeats": QUERY_REPEATS})
    lengths = out / "sentence_bert_config.json"
    write_json(lengths, {**read_json(lengths), "max_seq_length": MAX_LENGTH})


# What is printed


def _show_data(config: TrainConfig) -> None:
    print("| examples | file |\n|---|---|")
    for source in config.sources:
        path = Path(source.partition("@")[0])
        print(f"| {sum(1 for _ in plain_lines(path))} | {path.name} |", flush=True)


def _show_step(report: TrainReport, planned: int) -> None:
    if report.steps % 20 == 0 or report.steps == planned:
        print(
            f"step {report.steps} of {planned}, {report.tokens} tokens, {report.seconds:.0f} s, "
            f"loss {moving_average(report.losses):.4f}",
            flush=True,
        )


def _show_run(report: TrainReport) -> None:
    print("| examples | steps | tokens | minutes | last loss |\n|---|---|---|---|---|")
    print(
        f"| {report.examples} | {report.steps} | {report.tokens} | {report.seconds / 60:.0f} | "
        f"{moving_average(report.losses):.4f} |",
        flush=True,
    )


def _show_scores(dev: Sequence[str], models: dict[str, Path]) -> None:
    names = [f"{Path(name.partition(':')[0]).name} {name.rpartition(':')[2]}" for name in dev]
    print(f"| nDCG@10 | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
    for name, folder in models.items():
        began = time.monotonic()
        embedder = Embedder(folder, dtype="auto" if (folder / MODEL_FILE).is_file() else "float32")
        scores = [DevSet(each, instructed=False).score(embedder) for each in dev]
        print(f"| {name} | {' | '.join(f'{score:.4f}' for score in scores)} | {time.monotonic() - began:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", action="append", default=[], help="a model to learn from; repeat it for several")
    parser.add_argument("--base", default="builtin", help="folder of the model to start from")
    parser.add_argument("--dev", action="append", default=[], help="BEIR FOLDER:SPLIT to compare on at the end")
    parser.add_argument("--max-steps", type=int, help="limit for the run, for a trial")
    arguments = parser.parse_args()
    try:
        built = make(
            arguments.pairs, arguments.out, teachers=arguments.teacher, base=arguments.base, dev=arguments.dev,
            max_steps=arguments.max_steps,
        )  # fmt: skip
        print(f"made: {built}")
    except SearchkitError as error:
        raise SystemExit(f"Error: {error}") from error


if __name__ == "__main__":
    main()
