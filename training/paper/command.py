"""The paper's experiment in small: a language model is trained to embed, and judged before, along the way and after.

    python -m searchkit.training.paper LM OUT --pairs PAIRS/ --synthetic SYNTHETIC/ --eval scifact/ [--data both]

LM is the folder of a decoder that was never trained to embed (see `searchkit import-gguf`). PAIRS holds .jsonl.gz files
of query and positive, SYNTHETIC examples that a language model wrote, as `searchkit synthesize` writes them; rows that
name documents by id are looked up in the --eval folder of the file's name. Every other option changes one choice of
the paper: the same command with --pooling mean adds a row to the table. OUT gets table.md, curves.png and curves.svg,
written after every evaluation. Interrupted, the same command resumes.

Test splits are searched before and after training; every --evaluate-every steps, dev sets: a part of the dev split, or
else of the train split.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from searchkit.errors import SearchkitError
from searchkit.training.paper.experiment import Inputs, run_all
from searchkit.training.paper.settings import DATA, Settings


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run the experiment."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    inputs = Inputs(
        options.base, tuple(options.pairs), tuple(options.synthetic), tuple(options.eval), options.queries,
        options.documents, options.dev_queries, options.dev_documents,
    )  # fmt: skip
    try:
        runs = [
            Settings(
                data=data, steps=options.steps, batch_size=options.batch_size, max_length=options.max_length,
                learning_rate=options.learning_rate, layers=options.layers, pooling=options.pooling,
                eos=not options.no_eos, instructions=not options.no_instruction, rank=options.rank,
                bidirectional=options.bidirectional, negatives=not options.no_negatives, chunk=options.chunk,
                precision=options.precision, evaluate_every=options.evaluate_every, pairs=options.pairs_drawn,
                seed=options.seed,
            )
            for data in options.data or ["both"]
        ]  # fmt: skip
        run_all(inputs, runs, options.out, lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", flush=True))
    except SearchkitError as error:
        raise SystemExit(f"Error: {error}") from error
    print((options.out / "table.md").read_text("utf-8"), end="")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m searchkit.training.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Settings()
    parser.add_argument("base", help="folder or hub id of a decoder language model")
    parser.add_argument("out", type=Path, help="folder for data, runs, table and picture")
    add = parser.add_argument
    add("--pairs", type=Path, action="append", default=[], help="file or folder of pairs; may be repeated")
    add("--synthetic", type=Path, action="append", default=[], help="file or folder of examples that a model wrote")
    add("--eval", type=Path, action="append", default=[], help="BEIR folder to judge on; corpora/intents is always one")
    add("--queries", type=int, default=0, help="test queries of each collection [default: all]")
    add("--documents", type=int, default=0, help="documents of each collection [default: all]")
    add("--dev-queries", type=int, default=100, help="of each dev set [default: %(default)s]")
    add("--dev-documents", type=int, default=300, help="of each dev set [default: %(default)s]")
    add("--data", action="append", choices=DATA, help="what to train on; repeat it for several runs [default: both]")
    add("--steps", type=int, default=default.steps, help="[default: %(default)s]")
    add("--pairs-drawn", type=int, help="how many pairs are drawn [default: steps x batch size]")
    add("--batch-size", type=int, default=default.batch_size, help="queries a step [default: %(default)s]")
    add("--max-length", type=int, default=default.max_length, help="tokens of a text [default: %(default)s]")
    add("--learning-rate", type=float, default=default.learning_rate, help="peak [default: %(default)s]")
    add("--layers", type=int, help="keep the first layers only [default: all]")
    add("--pooling", choices=("last", "mean", "weighted-mean"), default=default.pooling, help="[default: %(default)s]")
    add("--no-eos", action="store_true", help="do not end texts with EOS")
    add("--no-instruction", action="store_true", help="queries without instructions, also when judged")
    add("--rank", type=int, default=default.rank, help="of the adapters [default: %(default)s]")
    add("--bidirectional", action="store_true", help="let tokens see later ones")
    add("--no-negatives", action="store_true", help="negatives of the batch only")
    add("--chunk", type=int, default=default.chunk, help="texts in the model at once [default: %(default)s]")
    add("--precision", choices=("auto", "float32", "bfloat16"), default=default.precision)
    add("--evaluate-every", type=int, default=default.evaluate_every, help="steps [default: %(default)s]")
    add("--seed", type=int, default=default.seed)
    return parser
