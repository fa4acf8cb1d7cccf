"""`searchkit demo`: the main job on a small corpus, from nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

_QUESTION = "Is it fair for an employer to forbid you to join a rival?"
_INSTRUCTIONS = (
    "Given a question, find the same question asked in other words",
    "Given a question, find passages that answer it",
)


@click.command()
@click.option(
    "--index",
    "folder",
    default="demo.index",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder to write; an index that is there is made anew.",
)
def demo(folder: Path) -> None:
    """Index a small corpus, search it under two instructions, evaluate it."""
    from searchkit.cli.evaluate import print_table
    from searchkit.cli.search import print_hits
    from searchkit.engine import SearchEngine
    from searchkit.evaluation.evaluate import EVALUATION_MODES, evaluate
    from searchkit.ranking import SearchOptions
    from searchkit.readers.corpus import corpus_folder, read_corpus
    from searchkit.readers.judgements import read_judgements
    from searchkit.records import Query

    corpus = corpus_folder("intents")
    if (folder / "index.db").is_file():
        shutil.rmtree(folder)
    with SearchEngine.create(folder, chunk_tokens=0) as engine:
        report = engine.add(read_corpus(corpus))
        click.echo(f"Indexed {report.documents} documents of {corpus} in {report.seconds:.1f} s.\n")
        for instruction in _INSTRUCTIONS:
            click.echo(f"Instruction: {instruction}")
            # By vectors alone: words know nothing of an instruction.
            hits = engine.search(_QUESTION, instruction=instruction, k=2, options=SearchOptions(mode="dense"))
            print_hits(Query("1", _QUESTION), hits)
            click.echo()
        judgements = read_judgements(corpus, split="test")
        click.echo(f"{len(judgements.queries)} queries with judgements, each with its own instruction:")
        print_table(evaluate(engine, judgements, modes=EVALUATION_MODES))
    click.echo(f"""
The index is {folder.resolve()}. Try next:
  searchkit search {folder} "does an afternoon nap help" -k 3
  searchkit info {folder}
  searchkit index YOUR_FOLDER_OR_FILE --index yours.index""")
