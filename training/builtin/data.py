"""Training data of the built-in model: neighbourhoods of pairs, and instructions derived from pairs and topics."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.models.embedder import Embedder
from searchkit.readers.kinds import kinds_rows, worded_instructions
from searchkit.readers.rejects import Rejects
from searchkit.training.dataset import Example, read_examples
from searchkit.training.files import write_lines

Row = dict[str, Any]

INSTRUCTIONS = Path(__file__).parent / "instructions.json"
"""{name of a file of pairs: [instructions]}."""

_ABOUT = (
    "Given the name of a topic, find the passage about its {heading}",
    "Given a topic, retrieve the text that deals with this: {heading}",
    "Given a name, find what an encyclopedia says under the heading {heading}",
    "Given a subject, retrieve passages on the following side of it: {heading}",
    "Find the part on {heading}",
)
_MEDICAL = {
    r"What is \(are\) (.+?)": ("describe what it is", "explain the condition in general", "define it"),
    r"What are the symptoms of (.+?)": ("describe its symptoms", "say how it shows", "list the signs a patient has"),
    r"What causes (.+?)": ("explain its causes", "say what brings it about", "tell where it comes from"),
    r"What are the treatments for (.+?)": ("describe its treatment", "say how it is managed", "tell what doctors do"),
    r"How many people are affected by (.+?)": ("say how common it is", "give its frequency", "report its prevalence"),
    r"What are the genetic changes related to (.+?)": ("name the genes involved", "explain the mutations behind it"),
    r"How to diagnose (.+?)": ("say how it is diagnosed", "describe the tests for it", "tell how doctors recognise it"),
    r"What is the outlook for (.+?)": ("give its prognosis", "say what patients can expect", "describe how it ends"),
    r"Who is at risk for (.+?)": ("say who is at risk of it", "list risk factors"),
    r"How to prevent (.+?)": ("say how to prevent it", "describe what protects against it"),
    r"Is (.+?) inherited": ("say how it is inherited", "explain whether it runs in families"),
}
_TITLE = ("find the title of the paper", "retrieve a headline for it", "find a title that would suit the text")
_REST = ("find how the abstract goes on", "retrieve the rest of the summary", "find the text that it begins")
_SAME_PASSAGE = ("find another question about the same subject", "retrieve a related question", "find other questions")
_ANSWERED = (
    "find passages that answer it",
    "retrieve the paragraph with the answer",
    "find text, not questions, on it",
)
_CLAIM = {
    "support": (
        "Given a claim, find documents that support the claim",
        "Given a statement, retrieve evidence in favour of it",
        "Given an opinion, find arguments for it",
    ),
    "refute": (
        "Given a claim, find documents that refute the claim",
        "Given a statement, retrieve evidence against it",
        "Given an opinion, find counterarguments",
    ),
}
_TERM = (
    "Given a term or a statement, find the passage that explains what its central term means",
    "Given a term, find its definition",
    "Given a text, retrieve an explanation of what it is about, without taking sides",
)
_QUESTION = {
    "duplicate": (
        "Given a question, find the same question asked in other words",
        "Given a question, retrieve questions that are semantically equivalent to the given question",
        "Given a question, find forum posts that ask the same",
    ),
    "answer": (
        "Given a question, find passages that answer it",
        "Given a question, retrieve relevant documents that best answer the question",
        "Given a question, find helpful replies",
    ),
}


def neighbourhoods(examples: Sequence[Example], count: int, embedder: Embedder, rng: random.Random) -> list[Example]:
    """A sample of pairs in groups of near neighbours: a random pair, and those whose queries are nearest to its own.

    Args:
        examples: What to draw from; no two of the sample have the same query or positive.
        count: How many to return, in whole groups of :data:`GROUP`; fewer if there are fewer.
        embedder: Says which queries are near.
        rng: Draws the pool and the first pair of each group.
    """
    pool: list[Example] = []
    seen: set[str] = set()
    for example in rng.sample(examples, len(examples)):
        if example.query not in seen and example.positive not in seen and len(pool) < _POOL:
            pool.append(example)
            seen |= {example.query, example.positive}
    rows = embedder.encode_passages([example.query for example in pool])
    free, sample = np.ones(len(pool), dtype=bool), list[Example]()
    for first in range(len(pool)):
        if len(sample) + GROUP > count or free.sum() < GROUP:
            break
        if free[first]:
            group = np.argsort(np.where(free, -(rows @ rows[first]), np.inf), kind="stable")[:GROUP]
            free[group] = False
            sample += [pool[i] for i in group]
    return sample


def plain(examples: Iterable[Example], instructions: Sequence[str], rng: random.Random) -> Iterator[Row]:
    """Pairs, 55 % of them with an instruction that changes nothing, so that the model learns this too."""
    for example in examples:
        row = {"query": example.query, "positive": example.positive, "negatives": []}
        yield {**row, "instruction": rng.choice(instructions)} if rng.random() < 0.55 else row


def sections(examples: Iterable[Example], rng: random.Random) -> Iterator[Row]:
    """A title as the query and a heading in the instruction; the title's other sections are negatives."""
    by_title: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for example in examples:
        title, _, heading = example.query.partition(" - ")
        by_title[title].append((heading, example.positive))
    for title, parts in by_title.items():
        if len({heading for heading, _ in parts}) < 2:
            continue
        for heading, text in rng.sample(parts, min(2, len(parts))):
            others = [other for name, other in parts if name != heading]
            instruction = rng.choice(_ABOUT).format(heading=heading[:1].lower() + heading[1:])
            yield _row(title, instruction, text, others, rng)


def conditions(examples: Iterable[Example], rng: random.Random) -> Iterator[Row]:
    """A disease as the query and an aspect of it in the instruction; answers on other aspects are negatives."""
    by_name: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for example in examples:
        for pattern, aspect in _MEDICAL.items():
            if match := re.fullmatch(pattern + r"\s*\??", example.query):
                by_name[match[1].strip()].append((aspect, example.positive))
    for name, answers in by_name.items():
        for aspect, text in answers:
            others = [other for other_aspect, other in answers if other_aspect != aspect]
            if others:
                yield _row(name, f"Given a disease, find passages that {rng.choice(aspect)}", text, others, rng)


def openings(examples: Iterable[Example], rng: random.Random) -> Iterator[Row]:
    """The first sentence of an abstract as the query; the title and the rest are each the positive once."""
    for example in examples:
        first, *rest = _sentences(example.positive)
        if not rest or len(first) < 40:
            continue
        title, following = example.query, " ".join(rest)
        yield _row(first, f"Given the beginning of an abstract, {rng.choice(_TITLE)}", title, [following], rng)
        yield _row(first, f"Given the beginning of an abstract, {rng.choice(_REST)}", following, [title], rng)


def questions(examples: Iterable[Example], rng: random.Random) -> Iterator[Row]:
    """A question with its paragraph and another question about it; each is the positive once."""
    by_passage: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        by_passage[example.positive].append(example.query)
    for passage, queries in by_passage.items():
        if len(queries) > 1:
            first, second = rng.sample(queries, 2)
            yield _row(first, f"Given a question, {rng.choice(_SAME_PASSAGE)}", second, [passage], rng)
            yield _row(first, f"Given a question, {rng.choice(_ANSWERED)}", passage, [second], rng)


def kinds(topics: Iterable[Row], rng: random.Random) -> Iterator[Row]:
    """Topics written for this purpose: the same query, with another right answer for every instruction."""
    for topic in topics:
        passages = _passages(topic)
        for right, instructions in _CLAIM.items():
            yield _topic_row(topic["claim"], rng.choice(instructions), right, passages, rng)
        for right, instructions in _QUESTION.items():
            yield _topic_row(topic["question"], rng.choice(instructions), right, passages, rng)
        query = rng.choice((topic["term"], topic["claim"]))
        yield _topic_row(query, rng.choice(_TERM), "define", passages, rng)
        for n, aspect in enumerate(topic["aspects"]):
            query = topic[rng.choice(("term", "claim", "question"))]
            yield _topic_row(query, aspect["instruction"], f"aspect {n}", passages, rng)


def worded(topics: Iterable[Row], instructions: Iterable[Row], rng: random.Random) -> Iterator[Row]:
    """Topics under instructions in many words: of each kind of passage, some for every topic.

    Args:
        topics: Of `corpora/kinds`.
        instructions: Those of its instructions.jsonl that are for training.
        rng: Draws them.
    """
    groups = defaultdict(list)
    for row in instructions:
        if row["right"]:
            groups[tuple(row["right"])].append(row)
    for topic in topics:
        passages = _passages(topic)
        for wanted, rows in groups.items():
            for row in rng.sample(rows, 2 if len(wanted) == 1 else 1):
                right = rng.choice(wanted)
                others = {name: text for name, text in passages.items() if name == right or name not in wanted}
                query = topic[rng.choice(row["query"])]
                yield _topic_row(query, row["instruction"], right, others, rng, _OPPOSITE)


def general(instructions: Iterable[Row]) -> list[str]:
    """Those instructions of `corpora/kinds` that only say to search."""
    return [row["instruction"] for row in instructions if not row["right"]]


def _passages(topic: Row) -> dict[str, str]:
    """All passages of a topic, by what each is to it."""
    passages = {name: topic[name] for name in ("support", "refute", "define", "duplicate", "answer")}
    return passages | {f"aspect {n}": aspect["text"] for n, aspect in enumerate(topic["aspects"])}


_SIDES = {"support": "refute", "refute": "support"}
_OPPOSITE = {**_SIDES, "duplicate": "answer", "answer": "duplicate"}


def _topic_row(
    query: str,
    instruction: str,
    right: str,
    passages: dict[str, str],
    rng: random.Random,
    opposites: dict[str, str] = _SIDES,
) -> Row:
    others = [text for name, text in passages.items() if name != right]
    # The opposite is the hardest to tell apart, so it is always among the negatives.
    opposite = [passages[opposites[right]]] if opposites.get(right) in passages else []
    row = _row(query, instruction, passages[right], others, rng)
    return {**row, "negatives": _first(opposite, others, rng)}


def _row(query: str, instruction: str, positive: str, negatives: list[str], rng: random.Random) -> Row:
    sample = rng.sample(negatives, min(3, len(negatives)))
    return {"query": query, "instruction": instruction, "positive": positive, "negatives": sample}


def _first(always: list[str], others: list[str], rng: random.Random) -> list[str]:
    rest = [text for text in others if text not in always]
    return always + rng.sample(rest, min(3 - len(always), len(rest)))


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text.strip()) if part]


GROUP = 32
"""Pairs in a neighbourhood."""
_POOL = 10_000

PLAIN = {
    "arxiv_title_abstract": 1152, "medquad": 768, "scitldr": 960, "squad_train": 576, "wikipedia_en_section": 384,
    "wikipedia_en_title_intro": 192,
}  # fmt: skip
"""{name of a file of pairs: how many are drawn from it}."""

_FROM_PAIRS = {
    "sections": ("wikipedia_en_section", sections, 512),
    "conditions": ("medquad", conditions, 512),
    "openings": ("arxiv_title_abstract", openings, 512),
    "questions": ("squad_train", questions, 512),
}


def write(pairs: Path, out: Path, *, embedder: Embedder, seed: int = 0) -> None:
    """Write the sources of `searchkit.training.builtin.make`, JSON lines of examples.

    Args:
        pairs: Folder with arxiv_title_abstract, medquad, squad_train, wikipedia_en_section and others as .jsonl.gz of
            query and positive; missing files are skipped.
        out: Folder for the files: plain.jsonl, neighbourhoods of all pairs, the examples with instructions that are
            derived from them, and those from `corpora/kinds`: kinds.jsonl, and worded.jsonl with instructions in many
            words.
        embedder: Says which pairs are neighbours.
        seed: Random seed.
    """
    out.mkdir(parents=True, exist_ok=True)
    instructions = json.loads(INSTRUCTIONS.read_text(encoding="utf-8"))
    sample: list[Row] = []
    with Rejects(out / "rejects.jsonl") as rejects:
        for name, count in PLAIN.items():
            if (file := pairs / f"{name}.jsonl.gz").is_file():
                rng = random.Random(seed)
                near = neighbourhoods(list(read_examples(file, rejects=rejects)), count, embedder, rng)
                sample += plain(near, instructions[name], rng)
        _write(out / "plain.jsonl", sample)
        for name, (source, make, count) in _FROM_PAIRS.items():
            if (file := pairs / f"{source}.jsonl.gz").is_file():
                examples = read_examples(file, rejects=rejects)
                _write(out / f"{name}.jsonl", make(examples, random.Random(seed)), count)
    _write(out / "kinds.jsonl", kinds(kinds_rows("topics"), random.Random(seed)))
    _write(out / "worded.jsonl", worded(kinds_rows("topics"), worded_instructions("train"), random.Random(seed)))


def _write(file: Path, rows: Iterable[Row], count: int | None = None) -> None:
    """Write up to `count` rows, shuffled, without those whose positive is another of their texts."""
    kept = [row for row in rows if all(row["positive"] != text for text in (row["query"], *row["negatives"]))]
    random.Random(0).shuffle(kept)
    write_lines(file, kept[:count])
    print(f"{file}: {len(kept[:count])} rows", flush=True)
