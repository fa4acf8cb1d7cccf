"""What a shift of queries that depends on their instruction alone would give: an experiment, nothing ships.

    python tests/benchmarks/instruction_shift.py OUT/ [--sets INDEX=FOLDER:SPLIT:TASK ...]

OUT is where `python -m searchkit.training.builtin` wrote to. The vector of the instruction by itself goes through a
small network, whose output is added to the query's vector; passages and plain queries stay as they are. It learns from
the examples of OUT, and from `corpora/kinds` with the instructions for training of `instructions.jsonl`. Measured on
the development data of `corpora/kinds` and `corpora/intents` and, told, on BEIR folders, whose INDEX was built with the
built-in model in one passage a document.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from adapt_head import measure, stored
from fusion import judgements_of
from instructions import KINDS, kinds_dev, kinds_rows
from safetensors.torch import load_file
from torch import Tensor

from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import corpus_folder, read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.records import Document, Judgements, Query, join_title
from searchkit.training.builtin.head import NEGATIVES, HeadData
from searchkit.training.builtin.make import INSTRUCTED, MAX_LENGTH
from searchkit.training.dataset import Example, read_examples

HIDDEN, STEPS, BATCH, RATE, CANDIDATES = 64, 300, 256, 2e-3, 1024
TEMPERATURE, KEEP, SCALE, SMALL = 0.05, 2.0, 20.0, 1e-3
EACH = 2
"""Instructions per topic and kind of passage."""
OPPOSITE = {"support": "refute", "refute": "support", "duplicate": "answer", "answer": "duplicate"}


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1)


@dataclass
class Told:
    """Queries with their instruction, all (n, dim) unit rows."""

    told: Tensor
    plain: Tensor
    instruction: Tensor

    def __getitem__(self, rows: Tensor) -> Told:
        return Told(self.told[rows], self.plain[rows], self.instruction[rows])

    @classmethod
    def of(cls, model: Embedder, pairs: Sequence[tuple[str, str]]) -> Told:
        """The rows of (query, instruction)."""
        told = model.encode_tokens(model.tokenize_queries(*zip(*pairs, strict=True)))
        texts = [*dict.fromkeys(text for pair in pairs for text in pair)]
        rows = dict(zip(texts, model.encode_queries(texts, ""), strict=True))
        plain, instruction = (np.stack([rows[pair[side]] for pair in pairs]) for side in (0, 1))
        return cls(*map(torch.from_numpy, (told, plain, instruction)))


class Shift(torch.nn.Module):
    """The vector of an instruction to what is added to a query's; zero before training."""

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.inner = torch.nn.Linear(len(centre), HIDDEN)
        self.outer = torch.nn.Linear(HIDDEN, len(centre), bias=False)
        torch.nn.init.normal_(self.inner.weight, std=3 * len(centre) ** -0.5)
        torch.nn.init.zeros_(self.inner.bias)
        torch.nn.init.zeros_(self.outer.weight)

    def forward(self, rows: Told, share: float) -> Tensor:
        """Shifted unit rows; `share` is that of the query as read with its instruction, the rest is the plain one."""
        mixed = unit(rows.plain + share * (rows.told - rows.plain))
        return unit(mixed + self.outer(torch.relu(self.inner(rows.instruction - self.centre))))


def new_examples(rng: random.Random) -> list[Example]:
    """Every training topic under some of the training instructions; the opposite passage is always a negative."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in kinds_rows("instructions"):
        if row["split"] == "train":
            groups.setdefault(tuple(row["right"]), []).append(row)
    examples = []
    for topic in kinds_rows("topics"):
        for right, rows in groups.items():
            for row in rng.sample(rows, EACH if len(right) == 1 else 1):
                kind, query = rng.choice(right), topic[rng.choice(row["query"])]
                wrong = {name: topic[name] for name in KINDS if name not in right}
                first = [wrong.pop(OPPOSITE[kind])] if OPPOSITE.get(kind) in wrong else []
                others = [*wrong.values(), *(aspect["text"] for aspect in topic["aspects"])]
                negatives = first + rng.sample(others, NEGATIVES - len(first))
                examples.append(Example(query, topic[kind], instruction=row["instruction"], negatives=negatives))
    return examples


@dataclass
class Data:
    """What to learn from: as in HeadData, after the head, with every told query as `Told`."""

    rows: Told
    passages: Tensor
    plain: Tensor
    asked: Tensor


def load(out: Path, model: Embedder) -> Data:
    """The vectors of OUT after its head, and those of the new examples."""
    head, matrix = HeadData.load(out / "vectors.safetensors"), load_file(out / "head" / "model.safetensors")
    examples = [
        example for name in ("plain", *INSTRUCTED) for example in read_examples(out / "data" / f"{name}.jsonl")
    ]  # the order of searchkit.training.builtin.head.prepare
    queries = {text: row for row, text in enumerate(dict.fromkeys(each.query for each in examples))}
    told = dict.fromkeys((each.query, each.instruction) for each in examples if each.instruction)
    passages = dict.fromkeys(text for each in examples for text in (each.positive, *each.negatives))
    places = {text: row for row, text in enumerate(passages)}
    told_rows, plain_rows, passage_rows = (
        unit(rows @ matrix["linear.weight"].T) for rows in (head.told, head.queries, head.passages)
    )
    instructions = [*dict.fromkeys(str(instruction) for _, instruction in told)]
    alone = dict(zip(instructions, torch.from_numpy(model.encode_queries(instructions, "")), strict=True))
    old = Told(
        told_rows,
        plain_rows[torch.tensor([queries[query] for query, _ in told])],
        torch.stack([alone[str(instruction)] for _, instruction in told]),
    )
    added = new_examples(random.Random(0))
    new = Told.of(model, [(each.query, str(each.instruction)) for each in added])
    asked = [
        [len(told_rows) + row, places[each.positive], *(places[text] for text in each.negatives)]
        for row, each in enumerate(added)
    ]
    return Data(
        Told(*(torch.cat([getattr(old, name), getattr(new, name)]) for name in ("told", "plain", "instruction"))),
        passage_rows, head.plain, torch.cat([head.asked, torch.tensor(asked)]),
    )  # fmt: skip


def learn(data: Data, share: float, seed: int) -> Shift:
    """InfoNCE where the instruction decides, and KL to the plain query's distribution where it changes nothing."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    shift = Shift(data.rows.instruction.mean(dim=0))
    optimizer = torch.optim.Adam(shift.parameters())

    def some(count: int, most: int = BATCH) -> Tensor:
        return torch.randperm(count, generator=draw)[:most]

    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1, 10 * (step + 1) / STEPS) * (1 - step / STEPS)
        told, *columns = data.asked[some(len(data.asked))].T
        rows = torch.stack(columns, dim=1)
        scores = shift(data.rows[told], share) @ data.passages[rows.flatten()].T / TEMPERATURE
        right = torch.arange(len(rows)) * rows.shape[1]
        same = rows[:, :1] == rows.flatten()[None]
        same[torch.arange(len(rows)), right] = False
        loss = F.cross_entropy(scores.masked_fill(same, float("-inf")), right)
        passages = data.passages[some(len(data.passages), CANDIDATES)].T
        kept = data.rows[data.plain[some(len(data.plain)), 0]]
        wanted = F.log_softmax(SCALE * kept.plain @ passages, dim=1)
        found = F.log_softmax(SCALE * shift(kept, share) @ passages, dim=1)
        loss = loss + KEEP * F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        loss = loss + SMALL * sum((weights**2).sum() for weights in shift.parameters())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return shift.eval()


@dataclass
class DevSet:
    """Documents and queries with their rows."""

    documents: list[Document]
    rows: np.ndarray
    judgements: Judgements
    queries: Told

    def score(self, vectors: Tensor) -> float:
        """nDCG@10 of dense search."""
        return measure(self.documents, self.rows, self.judgements, vectors.numpy())[0].metrics["ndcg@10"]


def dev_set(name: str, documents: list[Document], queries: list[Query], judged: Any, model: Embedder) -> DevSet:
    rows = model.encode_passages([join_title(document.title, document.text) for document in documents])
    told = Told.of(model, [(query.text, query.instruction or "") for query in queries])
    return DevSet(documents, rows, Judgements(name, queries, judged), told)


def told_set(text: str, model: Embedder) -> tuple[str, DevSet]:
    """(name, set) of INDEX=FOLDER:SPLIT:TASK."""
    index, _, name = text.partition("=")
    folder, judgements = judgements_of(name)
    documents = [document for document in read_corpus(folder) if document.text.strip()]
    pairs = [(query.text, judgements.instruction or "") for query in judgements.queries]
    rows = stored(Path(index), documents)
    return f"{folder.name} {name.split(':')[1]}", DevSet(documents, rows, judgements, Told.of(model, pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", nargs="*", default=[], metavar="INDEX=FOLDER:SPLIT:TASK")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    model = Embedder(arguments.out / "builtin")
    documents, queries, qrels, _, _ = kinds_dev()
    sets = {"kinds": dev_set("kinds", documents, queries, qrels, model)}
    intents = corpus_folder("intents")
    asked, judged = read_beir_split(intents, "dev")
    sets["intents dev"] = dev_set("intents", list(read_corpus(intents)), asked, judged, model)
    sets |= dict(told_set(text, model) for text in arguments.sets)
    model.set_max_length(MAX_LENGTH)
    data = load(arguments.out, model)
    print(f"{len(data.asked)} examples; vectors after {time.monotonic() - began:.0f} s\n", flush=True)
    print(f"| nDCG@10, dense, told | {' | '.join(sets)} |\n|---|{'---|' * len(sets)}")

    def show(name: str, rows: Sequence[Tensor]) -> None:
        scores = [each.score(vectors) for each, vectors in zip(sets.values(), rows, strict=True)]
        print(f"| {name} | {' | '.join(f'{score:.4f}' for score in scores)} |", flush=True)

    show("without an instruction", [each.queries.plain for each in sets.values()])
    show("today", [each.queries.told for each in sets.values()])
    for share in (1.0, 0.75, 0.0):
        shift = learn(data, share, arguments.seed)
        with torch.no_grad():
            show(f"shifted, {share:g} told", [shift(each.queries, share) for each in sets.values()])


if __name__ == "__main__":
    main()
