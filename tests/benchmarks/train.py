"""Training speed and peak memory against sentence-transformers on the same weights, pairs and settings.

    python tests/benchmarks/train.py [--pairs pairs.jsonl.gz] [--model FOLDER] [--batch-size 128] [--chunk 32] ...

One side is `searchkit.training.train.train`, the other SentenceTransformerTrainer with its own GradCache loss,
CachedMultipleNegativesRankingLoss (needs `pip install datasets`). Both train every weight but the token embeddings and
the unused pooler in float32, with AdamW, a learning rate that falls linearly from the first step, gradients clipped at
1, no weight decay and no dropout (each nn.Dropout set to 0), on the same batches in the same order. Without --pairs,
the training data are titles and passages of `corpora/intents`.

Each side runs in its own process, one after the other, so that peak memory is measured separately; the first step is a
warm-up and not timed. Exits with 1 if the sides differ in the number of trained weights, in tokens, or by 1e-3 in the
loss of the first step, as they have not done the same work then.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from searchkit.models.location import find_model
from searchkit.readers.corpus import corpus_folder, read_corpus
from searchkit.training.batches import Batches, Source
from searchkit.training.config import TrainConfig
from searchkit.training.dataset import Example, read_examples

SIDES = ("searchkit", "sentence-transformers")


def write_pairs(given: Path | None, out: Path, *, batch_size: int, steps: int) -> int:
    """Write pairs for full batches only, with no query or positive twice; returns their number."""
    if given:
        found = ((example.query, example.positive) for example in read_examples(given))
    else:
        found = ((document.title, document.text) for document in read_corpus(corpus_folder("intents")))
    queries: dict[str, str] = {}
    positives: set[str] = set()
    for query, positive in found:
        keys = " ".join(query.split()), " ".join(positive.split())
        if all(keys) and keys[0] not in queries and keys[1] not in positives:
            queries[keys[0]] = positive
            positives.add(keys[1])
    count = min(len(queries) // batch_size, steps) * batch_size
    if count == 0:
        raise SystemExit(f"{len(queries)} distinct pairs do not fill a batch of {batch_size}; use a smaller one")
    rows = ({"query": query, "positive": positive} for query, positive in islice(queries.items(), count))
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return count


class Clock:
    """When each step ended, in wall-clock and CPU time, and peak memory by then."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.worked: list[float] = []
        self.peak = 0.0

    def tick(self) -> None:
        import torch

        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.worked.append(time.process_time())
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.peak = peak / 2**20

    def result(self, tokens: list[int], losses: list[float], trained: int) -> dict[str, Any]:
        """The result of a run, from the tokens and losses of every step."""
        timed = sum(tokens[1:])
        return {
            "rate": timed / (self.ends[-1] - self.ends[0]),
            "processor_rate": timed / (self.worked[-1] - self.worked[0]),
            "peak_mib": self.peak,
            "tokens": tokens,
            "losses": losses,
            "trained": trained,
        }


def searchkit(config: TrainConfig) -> dict[str, Any]:
    """The project's own loop, called as `searchkit train` does."""
    from searchkit.training.train import train

    clock, totals = Clock(), [0]

    def on_step(report: Any, planned: int) -> None:
        clock.tick()
        totals.append(report.tokens)

    report = train(config, on_step=on_step)
    tokens = [after - before for before, after in pairwise(totals)]
    return clock.result(tokens, [loss for _, loss in report.losses], report.trainable)


def sentence_transformers(config: TrainConfig) -> dict[str, Any]:
    """The same run by SentenceTransformerTrainer."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from torch.utils.data import BatchSampler, SequentialSampler
    from transformers import TrainerCallback

    model = SentenceTransformer(config.base)
    model.max_seq_length = config.max_length
    inner = model[0].auto_model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    frozen = {id(parameter) for parameter in inner.get_input_embeddings().parameters()}
    for name, parameter in inner.named_parameters():
        parameter.requires_grad = id(parameter) not in frozen and not name.startswith("pooler.")

    batches = list(batches_of(config))
    clock = Clock()

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=config.out,
            max_steps=len(batches),
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            lr_scheduler_type="linear",
            warmup_steps=0,
            max_grad_norm=1.0,
            batch_sampler=lambda rows, batch_size, drop_last, **_: BatchSampler(
                SequentialSampler(rows), batch_size, drop_last
            ),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_dict(
            {
                "query": [example.query for batch in batches for example in batch],
                "positive": [example.positive for batch in batches for example in batch],
            }
        ),
        loss=CachedMultipleNegativesRankingLoss(model, scale=1 / config.temperature, mini_batch_size=config.chunk),
        callbacks=[Ticks()],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    texts = ([text for example in batch for text in (example.query, example.positive)] for batch in batches)
    tokens = [int(model.preprocess(batch)["attention_mask"].sum()) for batch in texts]
    return clock.result(tokens, losses, sum(p.numel() for p in model.parameters() if p.requires_grad))


def batches_of(config: TrainConfig) -> Iterator[tuple[Example, ...]]:
    """The batches that `train` uses, in its order."""
    source = Source.parse(config.sources[0])
    batches = Batches([(source, list(read_examples(source.path)))], config.batch_size, seed=config.seed)
    every = (batch.examples for number in range(config.epochs) for batch in batches.epoch(number))
    return islice(every, config.max_steps)


def run(side: str, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """One side in a process of its own."""
    config.save(folder / "config.json")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", side, str(folder / "config.json")],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="JSON lines of query and positive")
    parser.add_argument("--model", default="minilm", help="a transformers or sentence-transformers folder")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=32, help="texts embedded at once; the peer calls it mini-batch")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--steps", type=int, default=4, help="at least 2; the first is not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, file = arguments.child
        config = TrainConfig.load(Path(file))
        print(json.dumps((searchkit if side == SIDES[0] else sentence_transformers)(config)))
        return
    if arguments.steps < 2:
        parser.error("--steps: expected at least 2, as the first step is not timed")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as place:
        pairs = Path(place) / "pairs.jsonl"
        count = write_pairs(arguments.pairs, pairs, batch_size=arguments.batch_size, steps=arguments.steps)
        for number in range(arguments.rounds):
            for side in SIDES:
                folder = Path(place) / f"{side}-{number}"
                folder.mkdir()
                config = TrainConfig(
                    sources=(str(pairs),), base=str(find_model(arguments.model)[0]), out=str(folder / "out"),
                    epochs=-(-arguments.steps * arguments.batch_size // count), max_steps=arguments.steps,
                    batch_size=arguments.batch_size, chunk=arguments.chunk, learning_rate=arguments.learning_rate,
                    warmup_steps=0, weight_decay=0.0, temperature=arguments.temperature, negatives_per_query=0,
                    instructed=0.0, lora_rank=0, max_length=arguments.max_length, precision="float32",
                    checkpoint_every=0,
                )  # fmt: skip
                found[side].append(run(side, config, folder))
                last = {name: round(found[side][-1][name]) for name in ("rate", "processor_rate", "peak_mib")}
                print(f"round {number + 1}, {side}: {last}", file=sys.stderr)
    ours, peers = (found[side] for side in SIDES)
    rates, processor_rates, peaks = (
        {side: median(run[name] for run in found[side]) for side in SIDES}
        for name in ("rate", "processor_rate", "peak_mib")
    )
    same = {
        "weights": ours[0]["trained"] == peers[0]["trained"],
        "tokens": ours[0]["tokens"] == peers[0]["tokens"],
        "loss": abs(ours[0]["losses"][0] - peers[0]["losses"][0]) < 1e-3,
    }
    print(
        json.dumps(
            {
                **{name: getattr(arguments, name) for name in ("model", "batch_size", "chunk", "max_length", "steps")},
                "pairs": count,
                "weights_trained": {side: found[side][0]["trained"] for side in SIDES},
                "tokens": {side: sum(found[side][0]["tokens"]) for side in SIDES},
                "tokens_per_second": {side: [round(run["rate"]) for run in found[side]] for side in SIDES},
                "speed_over_sentence_transformers": round(rates[SIDES[0]] / rates[SIDES[1]], 3),
                # Less affected by other work on the machine, but blind to the work of a GPU.
                "tokens_per_processor_second": {side: round(rate) for side, rate in processor_rates.items()},
                "processor_speed_over_sentence_transformers": round(
                    processor_rates[SIDES[0]] / processor_rates[SIDES[1]], 3
                ),
                "peak_mib": {side: round(peak) for side, peak in peaks.items()},
                "memory_over_sentence_transformers": round(peaks[SIDES[0]] / peaks[SIDES[1]], 3),
                "losses": {side: [round(loss, 5) for loss in found[side][0]["losses"]] for side in SIDES},
                "same": same,
            },
            indent=1,
        )
    )
    if not all(same.values()):
        raise SystemExit(f"the two sides have not done the same work: {same}")


if __name__ == "__main__":
    main()
