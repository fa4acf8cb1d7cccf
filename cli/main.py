"""The `searchkit` command: finds the sub-command, and turns errors into exit codes."""

from __future__ import annotations

import os
import sqlite3
from importlib import import_module

import click

from searchkit import __version__

_COMMANDS = {
    "demo": "See it work: index a small corpus, search it, evaluate it.",
    "index": "Build an index from a corpus, or go on building it.",
    "search": "Search an index.",
    "add": "Add documents to an index.",
    "update": "Replace documents of an index, and add new ones.",
    "delete": "Delete documents from an index.",
    "compact": "Free the space of deleted documents.",
    "check": "Verify an index, and repair it.",
    "evaluate": "Measure an index against judgements.",
    "compare": "Compare runs, with tests of significance.",
    "beir": "Measure a model on a folder of BEIR collections.",
    "bitext": "Measure how well a model finds translations.",
    "latency": "Measure how fast an index answers, and what it costs.",
    "synthesize": "Have a language model write training examples.",
    "mine": "Find hard negatives for training examples.",
    "train": "Train an embedder on pairs of queries and passages.",
    "adapt": "Retrain the model of an index on pairs of its documents, if that helps.",
    "export": "Write a model for onnxruntime: small, quick to start, no torch.",
    "compress": "Store vectors smaller: what each way costs, measured; and do it.",
    "info": "Show what is in an index, or what this machine offers.",
}

_MODULES = {"update": "add"}  # commands that live in the module of another


class _Commands(click.Group):
    """Sub-commands that are imported when they are run, so that --help needs none of their libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"searchkit.cli.{_MODULES.get(name, name)}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (ValueError, ImportError, OSError, MemoryError, sqlite3.Error) as error:
            if isinstance(error, BrokenPipeError) or os.environ.get("SEARCHKIT_DEBUG"):
                raise
            raise click.ClickException(str(error) or type(error).__name__) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="searchkit")
def main() -> None:
    """Instruction-aware vector search: index a corpus, search it, evaluate it.

    Exit code 0: done; 1: it failed, and the message says why; 2: the command was misused.
    SEARCHKIT_DEBUG=1 shows where an error came from.
    """


if __name__ == "__main__":
    main()
