"""The recipe of the built-in model as one command, from plain pairs to a folder like the one that ships.

    python -m searchkit.training.builtin PAIRS/ OUT/ [--max-steps N]

This command has never been run to its end: the weights that ship were made step by step, by the same runs started one
at a time, so it is not known to reproduce them. Only --max-steps trials have been run.

PAIRS holds .jsonl.gz files of query and positive, named as in :data:`RUNS`; missing files are skipped. Five runs follow
each other, each in a folder of OUT; the mean of the last two, in int8, is OUT/builtin. The runs should take about five
hours on two cores; interrupted, the same command resumes. docs/built-in-model.md says what each run is for and how the
shipped weights were made.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from searchkit.errors import InputError, SearchkitError
from searchkit.models.conventions import SETTINGS
from searchkit.readers.lines import plain_lines
from searchkit.training.builtin import data as builtin_data
from searchkit.training.config import TrainConfig
from searchkit.training.export import export
from searchkit.training.files import digest, read_json, remove, write_json
from searchkit.training.log import TrainReport
from searchkit.training.stages import Stages
from searchkit.training.train import train

_FIRST = {
    "arxiv_title_abstract": 41_500, "medquad": 16_350, "scitldr": 5_400, "squad_train": 17_500,
    "wikipedia_en_section": 24_000, "wikipedia_en_title_intro": 24_850,
}  # fmt: skip
_SENTENCES = {
    "arxiv_title_abstract": 5_400, "medquad": 1_960, "scitldr": 1_680, "squad_train": 2_620,
    "wikipedia_en_section": 3_300, "wikipedia_en_title_intro": 1_490,
}  # fmt: skip
_INSTRUCTED = {"kinds": 2_240, "sections": 600, "conditions": 296, "questions": 706, "openings": 402, "plain": 1_640}
_LONGER = {"kinds": 1_344, "sections": 1_020, "conditions": 550, "questions": 600, "openings": 480, "plain": 6_180}

_CONTRAST = {
    "teacher_weight": 3.0, "contrast": 0.5, "temperature": 0.03, "negatives_per_query": 2, "batch_size": 12,
    "weight_decay": 0.01, "warmup_steps": 30,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """One of the runs.

    Args:
        examples: Number of examples sampled from each file; all of a file with fewer.
        flags: What follows the share of each file: see `sources` of :class:`TrainConfig`.
        settings: Settings of :class:`TrainConfig`, without those that all runs share.
        pairs: The files are those of PAIRS, not the ones derived from them.
    """

    examples: dict[str, int]
    flags: dict[str, str]
    settings: dict[str, Any]
    pairs: bool = False


RUNS: dict[str, Run] = {
    # The teacher's vectors, for queries and passages.
    "1-distilled": Run(
        _FIRST, {},
        {"attention": "causal", "pooling": "weighted-mean", "contrast": 0.0, "instructed": 0.4, "batch_size": 32,
         "learning_rate": 2e-4},
        pairs=True,
    ),
    # The same with two sentences of every passage added, in small batches.
    "2-sentences": Run(
        _SENTENCES, {},
        {"contrast": 0.0, "instructed": 0.0, "negatives_per_query": 2, "batch_size": 8, "learning_rate": 1.2e-4,
         "weight_decay": 0.01, "warmup_steps": 50, "max_steps": 1000},
    ),
    # Instructions that change the answer, with plain pairs against forgetting.
    "3-told": Run(
        _INSTRUCTED, dict.fromkeys(_INSTRUCTED, "mixed"), {**_CONTRAST, "learning_rate": 6e-5, "max_steps": 300}
    ),
    # Longer, with queries read twice; then again with another seed.
    **{
        name: Run(
            _LONGER, {**dict.fromkeys(_LONGER, "mixed"), "plain": "mixed,kept"},
            {**_CONTRAST, "query_repeats": 2, "learning_rate": 1.2e-4, "max_steps": steps, "seed": seed},
        )
        for name, steps, seed in (("4-longer", 800, 0), ("5-again", 580, 3))
    },
}  # fmt: skip

QUERY_REPEATS = 3
"""How often the model reads a query; a third time helps a model that was trained to read it twice."""


def make(pairs: Path, out: Path, *, base: str = "minilm", max_steps: int | None = None) -> Path:
    """Make the model; resumes where an earlier call was stopped, and redoes what depends on changed inputs.

    Args:
        pairs: Folder of the plain pairs.
        out: Folder for the examples, the runs and the model.
        base: The model that the student starts from, and its teacher.
        max_steps: Limit for every run, for a trial.

    Returns:
        The folder of the exported model.

    Raises:
        InputError: There are no such pairs, or too few.
    """
    files = sorted(pairs.glob("*.jsonl.gz"))
    if not {file.name for file in files} & {f"{name}.jsonl.gz" for name in _FIRST}:
        raise InputError(
            f"{pairs} holds none of {', '.join(f'{name}.jsonl.gz' for name in _FIRST)}; give the folder of the pairs"
        )
    stages, data, built = Stages(out), out / "data", out / "builtin"
    inputs: dict[str, Any] = {file.name: digest(file) for file in files}
    with stages.stage("data", inputs, ["data"]) as needed:
        if needed:
            builtin_data.write(pairs, data)
    student = base
    for name, run in RUNS.items():
        config = _config(run, pairs if run.pairs else data, out / name, student, base, max_steps)
        inputs = {"before": inputs, "settings": asdict(config)}
        with stages.stage(name, inputs, [name]) as needed:
            if needed:
                _train(config)
        student = config.out
    first, second = list(RUNS)[-2:]
    with stages.stage("builtin", {"before": inputs, "query_repeats": QUERY_REPEATS}, ["mean", "builtin"]) as needed:
        if needed:
            mean(out / first, out / second, out / "mean")
            settings = out / "mean" / SETTINGS
            write_json(settings, {**read_json(settings), "query_repeats": QUERY_REPEATS})
            remove(built)
            export(out / "mean", built, dtype="int8")
    return built


def _train(config: TrainConfig) -> None:
    if (Path(config.out) / "README.md").is_file():  # stopped right after finishing
        return
    train(config, on_step=lambda report, planned: _show(Path(config.out).name, report, planned))


def _config(run: Run, folder: Path, out: Path, base: str, teacher: str, max_steps: int | None) -> TrainConfig:
    sources = []
    for name, count in run.examples.items():
        file = folder / (f"{name}.jsonl.gz" if run.pairs else f"{name}.jsonl")
        if file.is_file() and (rows := sum(1 for _ in plain_lines(file))):
            share = f"{min(1.0, count / rows):.4g}"
            sources.append(f"{file}@{share}" + (f",{run.flags[name]}" if name in run.flags else ""))
    settings = {
        "lora_rank": 0, "chunk": 64, "max_length": 256, "checkpoint_every": 50, "teacher": teacher,
        "negatives_per_query": 0,
        "instructions": str(builtin_data.INSTRUCTIONS) if run.settings.get("instructed") else None, **run.settings,
    }  # fmt: skip
    if max_steps:
        settings["max_steps"] = min(max_steps, settings.get("max_steps") or max_steps)
    return TrainConfig(sources=tuple(sources), base=base, out=str(out), **settings)


def _show(name: str, report: TrainReport, planned: int) -> None:
    if report.steps % 20 == 0 or report.steps == planned:
        print(f"{name}: step {report.steps} of {planned}, {report.tokens} tokens", flush=True)


def mean(first: Path, second: Path, out: Path) -> None:
    """Write the mean of two models of the same shape, weight by weight; its settings are the second's."""
    from safetensors.torch import load_file, save_file

    remove(out)
    shutil.copytree(second, out, ignore=shutil.ignore_patterns("model.safetensors", "README.md", "log*", "training.*"))
    weights, others = (load_file(folder / "model.safetensors") for folder in (first, second))
    if {name: tensor.shape for name, tensor in weights.items()} != {name: w.shape for name, w in others.items()}:
        raise InputError(
            f"{first} and {second} have weights of different names or shapes; only models of the same shape have a mean"
        )
    mixed = {name: (tensor + others[name]) / 2 for name, tensor in weights.items()}
    save_file(mixed, out / "model.safetensors", {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-steps", type=int, help="limit for every run, for a trial")
    arguments = parser.parse_args()
    try:
        print(f"made: {make(arguments.pairs, arguments.out, max_steps=arguments.max_steps)}")
    except SearchkitError as error:
        raise SystemExit(f"Error: {error}") from error


if __name__ == "__main__":
    main()
