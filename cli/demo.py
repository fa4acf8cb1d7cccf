"""`searchkit demo`: the main workflow on a small corpus."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from searchkit.cli.output import say
from searchkit.cli.types import NEW_FOLDER
from searchkit.errors import InputError

_QUESTION = "Is there any point in giving seven-year-olds assignments after class?"
_INSTRUCTIONS = (
    "Given a question, find the same question asked in other words",
    "Given a question, find passages that answer it",
)


@click.command()
@click.option(
    "--index", "folder", default="demo.index", show_default=True, type=NEW_FOLDER, help="Folder for the index."
)
@click.option("--force", is_flag=True, help="Delete an index that exists there.")
def demo(folder: Path, force: bool) -> None:
    """Try it: index a small corpus, search it with two instructions, evaluate it.

    \b
        searchkit demo
        searchkit demo --index /tmp/demo.index --force
    """
    from searchkit.cli.evaluate import print_evaluations
    from searchkit.cli.search import print_hits
    from searchkit.engine import SearchEngine
    from searchkit.evaluation.evaluate import EVALUATION_MODES, evaluate
    from searchkit.readers.corpus import corpus_folder, read_corpus
    from searchkit.readers.judgements import read_judgements

    corpus = corpus_folder("intents")
    if (folder / "index.db").exists():
        if not force:
            raise InputError(
                f"{folder} is an index already; --force deletes it and builds the demo there, "
                "--index FOLDER builds the demo elsewhere"
            )
        shutil.rmtree(folder)
    with SearchEngine.create(folder, chunk_tokens=0) as engine:
        report = engine.add(read_corpus(corpus))
        say(f"Indexed {report.documents} documents of {corpus} in {report.seconds:.1f} s.\n")
        for instruction in _INSTRUCTIONS:
            say(f"Instruction: {instruction}")
            print_hits(_QUESTION, engine.search(_QUESTION, instruction=instruction, k=2))
            say()
        judgements = read_judgements(corpus, split="test")
        say(f"{len(judgements.queries)} queries with judgements, each with its own instruction:")
        print_evaluations(evaluate(engine, judgements, modes=EVALUATION_MODES))
    say(f"""
The index is {folder.resolve()}. Try next:
  searchkit search {folder} "does an afternoon nap help" -k 3
  searchkit info {folder}
  searchkit index YOUR_FOLDER_OR_FILE --index yours.index""")
