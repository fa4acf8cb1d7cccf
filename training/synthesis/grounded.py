"""Queries for the passages of an index: which passages, which kinds of query, which instructions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.indexer.documents import StoredPassage
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.clusters import cluster_of_each
from searchkit.records import join_title
from searchkit.training.synthesis.answers import Answer
from searchkit.training.synthesis.duplicates import Seen
from searchkit.training.synthesis.from_nothing import Asker
from searchkit.training.synthesis.languages import Languages
from searchkit.training.synthesis.prompting import Kind, load_mix, load_prompt
from searchkit.training.synthesis.protocol import Request
from searchkit.training.synthesis.quality import Candidate
from searchkit.training.synthesis.settings import SynthesizeConfig
from searchkit.training.synthesis.user_queries import read_samples
from searchkit.training.texts import fingerprint, words

_CLUSTERED = 20_000  # passages that are clustered; a random sample of a larger collection
_SHOWN = 6000  # characters of a passage that the model sees
_GLIMPSES = 8  # passages that the model sees when it writes instructions
_GLIMPSE = 700  # characters of each of them
_PASSES = 3  # requests about one passage, with other kinds of query, where passages run out
_BATCH = 64


class Grounded:
    """Requests queries passage by passage, the most different passages first.

    Args:
        engine: The index.
        config: What to write.
    """

    def __init__(self, engine: SearchEngine, config: SynthesizeConfig) -> None:
        folder = config.prompts_folder
        self._engine, self._names = engine, load_mix(folder).names
        self._count, self._seed, self._tries = config.count, config.seed, config.tries
        self._prompt = load_prompt("queries", folder)
        self._brainstorm = load_prompt("corpus-tasks", folder)
        known = {kind.name: kind for kind in self._prompt.kinds}
        if unknown := [name for name in config.kinds if name not in known]:
            raise InputError(f'no kind of query is called "{unknown[0]}"; choose from: {", ".join(known) or "none"}')
        self._kinds = [known[name] for name in config.kinds or known]
        if not self._kinds:
            raise InputError(f"prompt {self._prompt.name} has no [kinds]; see the shipped prompt")
        self._kind_names = tuple(kind.name for kind in self._kinds)
        self._shown = "\n".join([*self._prompt.texts.values(), *(kind.description for kind in self._kinds)])
        self._per_passage = min(config.queries_per_passage, len(self._kinds))
        self._instruction, self._min_words = config.instruction, config.min_words
        self._instructions: dict[str, list[str]] = {}
        self._samples = read_samples(Path(config.samples)) if config.samples else []
        self._order = diverse_rows(engine, seed=config.seed)
        self._read = 0  # rows of the order that were considered
        self._asker: Asker
        self._chosen: list[tuple[int, str]] = []  # row, fingerprint
        self._seen = Seen()
        self._languages = Languages()
        self._rounds = 0
        self._first = self._end = 0  # requests of the current round
        self._accepted = 0

    async def prepare(self, asker: Asker) -> None:
        """Have the model write instructions that fit the collection, and choose the first passages.

        Those of an earlier run stay as they are even if the index has changed, so that the same requests follow.

        Raises:
            InputError: No passage is long enough.
        """
        self._asker = asker
        again = self._choose_again(asker)
        self._choose(_GLIMPSES)
        if not self._chosen:
            raise InputError(
                f"the index has no passage of {self._min_words} words or more to write queries for; "
                "lower --min-words, or add documents"
            )
        if self._instruction is not None:
            return
        name = f"instructions of {self._brainstorm.label} for {', '.join(self._kind_names)}"
        name = f"{name}, seed {self._seed}"
        if again and (kept := asker.settled(name)) is not None:
            self._instructions = kept
            return
        passages = self._passages([row for row, _ in self._chosen[:_GLIMPSES]])
        texts = [f"<passage>\n{_text(passage)[:_GLIMPSE]}\n</passage>" for passage in passages]
        values = {
            "count": str(len(texts)),
            "passages": "\n\n".join(texts),
            "kinds": "\n".join(f"- {kind.name}: {kind.description}" for kind in self._kinds),
        }
        messages = self._brainstorm.messages(values)
        for draw in range(min(2, self._tries)):  # else the instructions of the prompt itself
            request = Request(self._brainstorm.label, self._brainstorm.answer, messages, draw, self._kind_names)
            for answer in await asker.ask([request]):
                for task in getattr(answer, "tasks", ()):
                    if task.kind in self._kind_names:
                        self._instructions.setdefault(task.kind, []).append(task.instruction)
            if self._instructions:
                break
        asker.settle(name, self._instructions)

    def next_round(self) -> bool:
        """Begin a round; False once there are enough examples, or no more to be had."""
        missing, sent = self._count - self._accepted, self._end
        if missing <= 0 or self._rounds == 2 * self._tries:
            return False
        if self._rounds == 2 and not self._accepted:
            return False  # whatever is wrong, further requests would only cost
        share = self._accepted / (sent * self._per_passage) if sent else 1.0
        more = ceil(missing / (self._per_passage * max(share, 0.25)))
        self._choose(sent + more)
        more = min(more, _PASSES * len(self._chosen) - sent)
        self._rounds += 1
        self._first, self._end = sent, sent + max(0, more)
        return more > 0

    def requests(self) -> Iterator[Request]:
        """The requests of the current round, the same each time this is called within it."""
        for start in range(self._first, self._end, _BATCH):
            numbers = range(start, min(start + _BATCH, self._end))
            rows = [self._chosen[number % len(self._chosen)][0] for number in numbers]
            passages = {passage.row: passage for passage in self._passages(rows)}
            for number, row in zip(numbers, rows, strict=True):
                if row in passages:  # another process may have deleted it, and compacted the index
                    yield self._request(passages[row], number // len(self._chosen))

    def candidates(self, request: Request, answer: Answer) -> list[Candidate]:
        """The queries in an answer that are of a requested kind."""
        passage, language, kinds = request.about
        instructions = {kind.name: instruction for kind, instruction in kinds}
        return [
            Candidate(
                asked.query,
                _text(passage),
                instructions[asked.kind],
                "grounded",
                language,
                request.prompt,
                kind=asked.kind,
                positive_id=passage.id,
                shown=self._shown,
            )
            for asked in getattr(answer, "queries", ())
            if asked.kind in instructions
        ]

    def accept(self, candidate: Candidate) -> bool:
        """Count an example; False when there are enough."""
        if self._accepted >= self._count:
            return False
        self._accepted += 1
        return True

    def described(self, request: Request) -> dict[str, Any]:
        """What identifies a request whose answer is rejected."""
        if request.about is None:
            return {"group": "grounded"}
        passage, language, _ = request.about
        return {"group": "grounded", "language": language, "positive_id": passage.id}

    def asked(self, request: Request) -> list[str]:
        """The group of each example that a request asks for; none where it asks for instructions."""
        return list(request.kinds) if request.about else []

    def _request(self, passage: StoredPassage, draw: int) -> Request:
        rng = random.Random(f"{self._seed}/{passage.row}/{draw}")
        text = _text(passage)
        code = self._languages.of(text[:_SHOWN])
        kinds = [(kind, self._instruction_for(kind, rng)) for kind in _drawn(rng, self._kinds, self._per_passage)]
        samples = rng.sample(self._samples, min(3, len(self._samples)))
        # A small model takes the instruction of a kind for the query, and the description says as much.
        shown = "\n".join(
            f"- {kind.name}: {kind.description}" + ("" if said == kind.instruction else f" (the search: {said})")
            for kind, said in kinds
        )
        values = self._prompt.draw(rng) | {
            "passage": text[:_SHOWN],
            "kinds": shown,
            "shape": json.dumps({kind.name: "..." for kind, _ in kinds}),
            "language": self._names.get(code, "the language of the passage"),
            "examples": "Queries of real users, for their tone alone:\n"
            + "\n".join(f"- {sample}" for sample in samples)
            if samples
            else "",
        }
        about = (passage, code if code in self._names else "", kinds)
        names = tuple(kind.name for kind, _ in kinds)
        return Request(self._prompt.label, self._prompt.answer, self._prompt.messages(values), draw, names, about)

    def _instruction_for(self, kind: Kind, rng: random.Random) -> str:
        if self._instruction is not None:
            return self._instruction
        return rng.choice(self._instructions.get(kind.name) or [kind.instruction])

    def _choose_again(self, asker: Asker) -> bool:
        """Choose what an earlier run chose and the index still holds; False if that is nothing."""
        kept = asker.settled(f"passages, seed {self._seed}") or []
        living = set(self._order.tolist()) if kept else set()
        for start in range(0, len(kept), _BATCH):
            marks = {row: mark for row, mark in kept[start : start + _BATCH] if row in living}
            self._take(passage for passage in self._passages(list(marks)) if _mark(passage) == marks[passage.row])
        return bool(self._chosen)

    def _choose(self, count: int) -> None:
        """Continue in the order until enough passages are chosen, and store the choice."""
        while len(self._chosen) < count and self._read < len(self._order):
            rows = self._order[self._read : self._read + _BATCH].tolist()
            self._read += len(rows)
            self._take(self._passages(rows))
        self._asker.settle(f"passages, seed {self._seed}", self._chosen)

    def _take(self, passages: Iterable[StoredPassage]) -> None:
        """Choose the passages that are long enough and not near-duplicates of chosen ones."""
        for passage in passages:
            text = _text(passage)
            if len(words(text)) >= self._min_words and not self._seen.match(text):
                self._seen.add(text)
                self._chosen.append((passage.row, _mark(passage)))

    def _passages(self, rows: Sequence[int]) -> list[StoredPassage]:
        passages = self._engine.store.documents.passages(rows)
        return [passages[row] for row in rows if row in passages]


def diverse_rows(engine: SearchEngine, *, seed: int) -> np.ndarray:
    """The rows of all living passages, (n,) int64, in an order that cycles through the clusters of their vectors.

    Any prefix of it is as varied as the index allows. Of a large index only a sample is clustered; the others follow in
    random order.
    """
    snapshot = engine.store.snapshot()
    parts = snapshot.segments
    if not parts:
        return np.empty(0, dtype=np.int64)
    rows = np.setdiff1d(segments.all_rows(parts), snapshot.dead)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(rows)
    drawn, rest = rows[:_CLUSTERED], rows[_CLUSTERED:]
    if len(drawn) < 4:
        return rows
    vectors = np.empty((len(drawn), engine.width), dtype=np.float32)
    owners = segments.owners(parts, drawn)
    for number in np.unique(owners):
        mine = owners == number
        vectors[mine] = parts[number].vectors(parts[number].positions(drawn[mine]))
    clusters = min(256, int(len(drawn) ** 0.5))
    cluster = cluster_of_each(vectors, clusters, seed=seed)
    # The rank of each passage within its cluster: the first of every cluster come first, in random order.
    order = np.argsort(cluster, kind="stable")
    starts = np.searchsorted(cluster[order], np.arange(clusters))
    turn = np.empty(len(drawn), dtype=np.int64)
    turn[order] = np.arange(len(drawn)) - starts[cluster[order]]
    return np.concatenate([drawn[np.lexsort((rng.permutation(len(drawn)), turn))], rest])


def _drawn(rng: random.Random, kinds: Sequence[Kind], count: int) -> list[Kind]:
    """A weighted sample of the kinds without replacement, in the order of the prompt."""
    # Efraimidis and Spirakis, 2006: the largest u ** (1 / weight).
    order = sorted(range(len(kinds)), key=lambda i: rng.random() ** (1 / kinds[i].weight), reverse=True)
    return [kinds[i] for i in sorted(order[:count])]


def _text(passage: StoredPassage) -> str:
    return join_title(passage.title, passage.text)


def _mark(passage: StoredPassage) -> str:
    """Distinguishes a passage from one in the same row of another index."""
    return fingerprint(_text(passage)).hex()
