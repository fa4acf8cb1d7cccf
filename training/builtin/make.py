"""The head and the shift of the built-in model, made by one command from plain pairs.

    python -m searchkit.training.builtin PAIRS/ OUT/ [--base FOLDER] [--dev FOLDER:SPLIT ...]

PAIRS holds .jsonl.gz files of query and positive, named as in :data:`searchkit.training.builtin.data.PLAIN`; missing
files are skipped. The transformer that ships stays as it is, to the bit; what is learnt is the linear map after pooling
(see :mod:`searchkit.training.builtin.head`), and then how queries move by their instruction
(:mod:`searchkit.training.builtin.shift`). OUT/builtin is the model. Interrupted, the same command resumes.
docs/built-in-model.md has the figures.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import InputError, SearchkitError
from searchkit.models.conventions import fingerprint
from searchkit.models.embedder import Embedder
from searchkit.models.instruction_shift import SHIFT_FILE, save_shift
from searchkit.models.location import find_model
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.readers.corpus import corpus_folder
from searchkit.readers.kinds import worded_instructions
from searchkit.readers.lines import plain_lines
from searchkit.training.builtin import data as builtin_data
from searchkit.training.builtin import head as builtin_head
from searchkit.training.builtin import shift as builtin_shift
from searchkit.training.builtin.head import HeadConfig, HeadData
from searchkit.training.builtin.shift import ShiftConfig, ShiftData
from searchkit.training.dataset import Example, read_examples
from searchkit.training.dev import DevSet
from searchkit.training.export.dense import replace_dense
from searchkit.training.files import digest, remove
from searchkit.training.layout import write_linear
from searchkit.training.stages import Stages

INSTRUCTED = ("kinds", "sections", "conditions", "questions", "openings")
"""Files of examples whose instruction decides."""
MAX_LENGTH = 160
"""Tokens of a text that the model sees here."""


def make(
    pairs: Path,
    out: Path,
    *,
    base: str = "builtin",
    dev: Sequence[str] = (),
    config: HeadConfig | None = None,
    shift: ShiftConfig | None = None,
) -> Path:
    """Make the model; resumes where an earlier call was stopped, and redoes what depends on changed inputs.

    Args:
        pairs: Folder of the plain pairs.
        out: Folder for the examples, the head and the model.
        base: The exported model whose transformer gets the head; one that it has is left out.
        dev: BEIR folders as FOLDER:SPLIT, on which the transformer alone, the base and the result are compared.
        config: How the head is learnt; None is how the one that ships was.
        shift: How the shift is learnt; likewise.

    Returns:
        The folder of the exported model.

    Raises:
        InputError: There are no such pairs, or the base is not an exported model.
    """
    config, shift = config or HeadConfig(), shift or ShiftConfig()
    names = [f"{name}.jsonl.gz" for name in builtin_data.PLAIN]
    files = [pairs / name for name in names if (pairs / name).is_file()]
    if not files:
        raise InputError(f"{pairs} holds none of {', '.join(names)}; give the folder of the pairs")
    folder, _ = find_model(base)
    if not (folder / MODEL_FILE).is_file():
        raise InputError(f"{base} is not an exported model; write one with searchkit export")
    stages = Stages(out, lambda name, needed: print(f"{name}: {'started' if needed else 'done before'}", flush=True))
    start, data, head, built = out / "start", out / "data", out / "head", out / "builtin"
    headed, vectors, told = out / "headed", out / "vectors.safetensors", out / "shift-vectors.safetensors"
    with stages.stage("start", {"base": fingerprint(folder)}, ["start"]) as needed:
        if needed:
            remove(start)
            replace_dense(folder, start, [])
            (start / SHIFT_FILE).unlink(missing_ok=True)
    inputs: dict[str, Any] = {file.name: digest(file) for file in files}
    inputs |= {"start": fingerprint(start), "kinds": digest(corpus_folder("kinds"))}
    with stages.stage("data", inputs, ["data"]) as needed:
        if needed:
            builtin_data.write(pairs, data, embedder=Embedder(start))
    with stages.stage("vectors", inputs, [vectors.name]) as needed:
        if needed:
            _embed(_prepare_head, data, start, vectors)
    with stages.stage("head", {"vectors": digest(vectors), "settings": asdict(config)}, ["head"]) as needed:
        if needed:
            remove(head)
            began = time.monotonic()
            matrix = builtin_head.learn(HeadData.load(vectors), config, on_step=_Log(config.steps))
            print(f"head: {time.monotonic() - began:.0f} s", flush=True)
            write_linear(matrix.numpy(), head)
    with stages.stage("headed", {"start": inputs["start"], "head": digest(head)}, ["headed"]) as needed:
        if needed:
            remove(headed)
            replace_dense(start, headed, [head])
    with stages.stage("shift vectors", inputs | {"headed": fingerprint(headed)}, [told.name]) as needed:
        if needed:
            _embed(_prepare_shift, data, headed, told)
    with stages.stage("builtin", {"vectors": digest(told), "settings": asdict(shift)}, ["builtin"]) as needed:
        if needed:
            remove(built)
            shutil.copytree(headed, built)
            save_shift(builtin_shift.learn(ShiftData.load(told), shift, on_step=_Log(shift.steps)), built)
    if dev:
        _show_scores(dev, {"no head": start, "base": folder, "result": built})
    return built


def _examples(data: Path, *names: str) -> list[Example]:
    files = [file for name in names if (file := data / f"{name}.jsonl").is_file() and any(plain_lines(file))]
    return [example for file in files for example in read_examples(file)]


def _prepare_head(data: Path, model: Embedder) -> HeadData:
    return builtin_head.prepare(_examples(data, "plain"), _examples(data, *INSTRUCTED), model)


def _prepare_shift(data: Path, model: Embedder) -> ShiftData:
    general = builtin_data.general(worded_instructions("train"))
    return builtin_shift.prepare(_examples(data, "plain"), _examples(data, *INSTRUCTED, "worded"), general, model)


def _embed(prepare: Callable[[Path, Embedder], HeadData | ShiftData], data: Path, model: Path, out: Path) -> None:
    began = time.monotonic()
    prepared = prepare(data, Embedder(model, max_length=MAX_LENGTH))
    print(f"{prepared.sizes()}: {time.monotonic() - began:.0f} s", flush=True)
    prepared.save(out)


class _Log:
    """Prints the mean losses of every tenth of the steps."""

    def __init__(self, steps: int) -> None:
        self._every, self._losses = max(1, steps // 10), list[tuple[float, float]]()

    def __call__(self, step: int, divergence: float, contrast: float) -> None:
        self._losses.append((divergence, contrast))
        if step % self._every == 0:
            means = np.mean(self._losses, axis=0)
            print(f"step {step}: divergence {means[0]:.4f}, contrast {means[1]:.4f}", flush=True)
            self._losses.clear()


def _show_scores(dev: Sequence[str], models: dict[str, Path]) -> None:
    names = [f"{Path(name.partition(':')[0]).name} {name.rpartition(':')[2]}" for name in dev]
    print(f"| nDCG@10 | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
    for name, folder in models.items():
        scores = [DevSet(each, instructed=False).score(Embedder(folder)) for each in dev]
        print(f"| {name} | {' | '.join(f'{score:.4f}' for score in scores)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", default="builtin", help="folder of the exported model to start from")
    parser.add_argument("--dev", action="append", default=[], help="BEIR FOLDER:SPLIT to compare on at the end")
    arguments = parser.parse_args()
    try:
        built = make(arguments.pairs, arguments.out, base=arguments.base, dev=arguments.dev)
        print(f"made: {built}")
    except SearchkitError as error:
        raise SystemExit(f"Error: {error}") from error


if __name__ == "__main__":
    main()
