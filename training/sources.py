"""The examples of a training run: read from its sources, each with the instruction it is trained with."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from textwrap import shorten
from typing import Any

from searchkit.errors import InputError
from searchkit.models.embedder import Embedder
from searchkit.readers.rejects import Rejects
from searchkit.training.batches import Source
from searchkit.training.config import TrainConfig
from searchkit.training.dataset import Example, read_examples
from searchkit.training.files import read_json

Sources = list[tuple[Source, list[Example]]]
"""Every source with all of its examples."""


def read_sources(config: TrainConfig, rejects: Rejects) -> Sources:
    """Read all examples into memory, with an instruction from `config.instructions` where they have none."""
    instructions = _read_instructions(config.instructions)
    sources = []
    with rejects:
        for text in config.sources:
            source = Source.parse(text)
            examples = read_examples(source.path, corpus=config.corpus, rejects=rejects)
            sources.append((source, [_instructed(example, instructions) for example in examples]))
    return sources


def with_default_instruction(sources: Sources, instruction: str) -> Sources:
    """Give examples without an instruction the one that a search without one would use."""
    return [
        (source, [replace(each, instruction=instruction) if each.instruction is None else each for each in examples])
        for source, examples in sources
    ]


def common_instruction(sources: Sources) -> str | None:
    """The most frequent instruction, if every example has one."""
    instructions = [example.instruction for _, examples in sources for example in examples]
    return Counter(instructions).most_common(1)[0][0] if all(instructions) else None


def with_room(sources: Sources, embedder: Embedder, rejects: Rejects) -> Sources:
    """Set aside examples whose instruction takes all tokens, so that their queries would all be cut to the same text.

    Raises:
        InputError: A source has no other examples.
    """
    faults: dict[str | None, str] = {}
    for instruction in {example.instruction for _, examples in sources for example in examples if example.instruction}:
        try:
            embedder.query_tokens([""], instruction)
        except InputError as error:
            faults[instruction] = f"{error}, or train with a higher --max-length"
    kept = []
    with rejects:
        for source, examples in sources:
            for example in examples:
                if example.instruction in faults:
                    rejects.set_aside(str(source.path), faults[example.instruction], asdict(example))
            kept.append((source, [example for example in examples if example.instruction not in faults]))
            if not kept[-1][1]:
                instruction = examples[0].instruction or ""
                raise InputError(
                    f'{source.path}: no example is left, of "{shorten(instruction, 80)}" {faults[instruction]}'
                )
    return kept


def digest_of(examples: list[Example]) -> str:
    """A digest that tells whether the examples have changed."""
    digest = blake2b(digest_size=16)
    for each in examples:
        digest.update(repr((each.query, each.positive, each.negatives, each.instruction)).encode())
    return digest.hexdigest()


def _read_instructions(file: str | None) -> dict[str, list[str]]:
    if file is None:
        return {}
    values: Any = read_json(Path(file))
    lists = values.values() if isinstance(values, dict) else [None]
    if not all(isinstance(items, list) and items and all(isinstance(item, str) for item in items) for items in lists):
        raise InputError(f'{file} has another format; expected {{"source name": ["an instruction", ...], ...}}')
    return dict(values)


def _instructed(example: Example, instructions: dict[str, list[str]]) -> Example:
    """The example with one of its source's instructions, always the same one."""
    choices = instructions.get(example.source)
    if example.instruction is not None or not choices:
        return example
    return replace(example, instruction=choices[zlib.crc32(example.query.encode()) % len(choices)])
