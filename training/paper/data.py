"""Training data of the experiment: what language models wrote, and pairs that people made."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.readers.kinds import kinds_rows
from searchkit.readers.rejects import Rejects
from searchkit.records import Document
from searchkit.tasks import WEB_SEARCH
from searchkit.training.builtin.data import INSTRUCTIONS, kinds
from searchkit.training.dataset import Example, read_examples
from searchkit.training.files import write_lines
from searchkit.training.negatives import MineReport, mine

MINER = "builtin"
"""The model that finds hard negatives; the paper took mE5-base."""


def write_synthetic(paths: Sequence[Path], out: Path, corpora: Mapping[str, Path], *, seed: int) -> int:
    """Write the examples that language models wrote: those of `paths`, and those made of `corpora/kinds`.

    Args:
        paths: Files of examples, or folders of them.
        out: The file to write.
        corpora: Collections by name; ids in a file of the same name are looked up there.
        seed: Random seed.

    Returns:
        The number of examples.
    """
    examples: list[Example] = []
    with Rejects(out.with_name(f"{out.stem}.rejects.jsonl")) as rejects:
        for file in files_of(paths):
            corpus = corpora.get(_stem(file))
            examples += [
                _instructed(each, [WEB_SEARCH]) for each in read_examples(file, corpus=corpus, rejects=rejects)
            ]
    rows = [*kinds(kinds_rows("topics"), random.Random(seed)), *_with_negatives(examples)]
    return _write(out, rows, seed)


def write_pairs(paths: Sequence[Path], out: Path, *, count: int, seed: int) -> int:
    """Write pairs from all files, equally many of each as far as they go, with instructions and a hard negative each.

    Args:
        paths: Files of query and positive, or folders of them.
        out: The file to write.
        count: How many.
        seed: Random seed.

    Returns:
        The number of examples.
    """
    known = json.loads(INSTRUCTIONS.read_text(encoding="utf-8"))
    files, examples = files_of(paths), list[Example]()
    with Rejects(out.with_name(f"{out.stem}.rejects.jsonl")) as rejects:
        for number, file in enumerate(files):
            found = list(read_examples(file, rejects=rejects))
            wanted = (count - len(examples)) // (len(files) - number)
            sample = random.Random(f"{seed}/{_stem(file)}").sample(found, min(wanted, len(found)))
            examples += [_instructed(each, known.get(_stem(file), [WEB_SEARCH])) for each in sample]
    return _write(out, _with_negatives(examples), seed)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files of examples among paths and in folders among them.

    Raises:
        InputError: There is none, or a path does not exist.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; expected a file of examples, or a folder of them")
        found = sorted(path.glob("*.jsonl*")) if path.is_dir() else [path]
        files += [file for file in found if file.name.endswith((".jsonl", ".jsonl.gz"))]
    if not files:
        raise InputError(f"no .jsonl or .jsonl.gz files in {', '.join(map(str, paths)) or 'no folder at all'}")
    return files


def _stem(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).stem


def _instructed(example: Example, instructions: Sequence[str]) -> Example:
    if example.instruction is not None:
        return example
    return replace(example, instruction=random.Random(example.query).choice(instructions))


def _with_negatives(examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """The examples as rows; those without a hard negative get one from among the positives of all."""
    texts = list(dict.fromkeys(example.positive for example in examples))
    if not texts:
        return
    with (
        tempfile.TemporaryDirectory() as temporary,
        SearchEngine.create(Path(temporary) / "index", model=MINER, chunk_tokens=0) as engine,
    ):
        engine.add(Document(str(number), text) for number, text in enumerate(texts))
        without = [example for example in examples if not example.negatives]
        mined = iter(mine(engine, without, MineReport(), count=1, depth=min(30, len(texts))))
        for example in examples:
            yield _row(example if example.negatives else next(mined))


def _row(example: Example) -> dict[str, Any]:
    return {
        "query": example.query,
        "instruction": example.instruction,
        "positive": example.positive,
        "negatives": list(example.negatives),
    }


def _write(out: Path, rows: Iterable[dict[str, Any]], seed: int) -> int:
    kept = [row for row in rows if row["positive"] not in (row["query"], *row["negatives"])]
    random.Random(seed).shuffle(kept)
    write_lines(out, kept)
    return len(kept)
