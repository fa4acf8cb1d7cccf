"""The `searchkit` command: finds the sub-command, and turns exceptions into messages and exit codes."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import click

from searchkit import __version__
from searchkit.cli.output import clean, note
from searchkit.errors import SearchkitError

_COMMANDS = {
    "demo": "Try it: index a small corpus, search it, evaluate it.",
    "index": "Build an index from a corpus, or resume building it.",
    "search": "Search an index.",
    "similar": "Find the documents nearest to one of an index.",
    "get": "Print documents of an index.",
    "dump": "Write out all documents of an index, with vectors if asked.",
    "serve": "Answer over HTTP for indexes: search, embeddings, rerank.",
    "mcp": "Offer indexes to a language model as tools (MCP).",
    "add": "Add documents to an index.",
    "update": "Replace documents in an index, and add new ones.",
    "sync": "Bring an index up to date with folders of files.",
    "merge": "Merge indexes of one model into a new one.",
    "train-recipe": "Train one codebook for parts that are to be merged.",
    "push": "Copy an index to Milvus, or update the copy.",
    "delete": "Delete documents from an index.",
    "compact": "Free the space of deleted documents.",
    "check": "Verify an index, and repair it.",
    "info": "Describe an index, or this machine.",
    "compress": "Measure ways to store vectors in less space; apply one.",
    "evaluate": "Measure search quality against judgements.",
    "compare": "Compare systems, with significance tests.",
    "latency": "Measure search speed, memory and disk use.",
    "beir": "Measure a model on a folder of BEIR collections.",
    "mteb": "Run MTEB tasks.",
    "bitext": "Measure how well a model finds translations.",
    "passkey": "Measure how long a text a model can read.",
    "synthesize": "Let a language model write training examples.",
    "mine": "Add hard negatives to training examples.",
    "train": "Train an embedder on queries and passages.",
    "adapt": "Fit an index's model to pairs of its documents; keep it if better.",
    "export": "Convert a model to ONNX: small, fast to start, no torch.",
    "import-gguf": "Convert a language model from GGUF, to train it.",
    "completion": "Print a completion script for bash, zsh or fish.",
}

_MODULES = {"update": "add", "similar": "get"}  # commands that share another's module


class _Commands(click.Group):
    """Imports a sub-command only when it is run, so that --help needs none of its libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        attribute = name.replace("-", "_")
        command: click.Command = getattr(import_module(f"searchkit.cli.{_MODULES.get(name, attribute)}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _errors_as_messages():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> object:
        with _errors_as_messages():
            return super().invoke(ctx)


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    """Turn what the user can act on into a one-line error, and anything else into a request to report a bug."""
    try:
        yield
    except click.ClickException as error:
        message = clean(error.message)
        if isinstance(error, click.NoSuchOption) and not error.possibilities and _takes_text(error.ctx):
            message += f'\nPut text that begins with a dash after "--", as in: -- "{clean(error.option_name)} ..."'
        if "unexpected extra argument" in message:
            message += "\nPut a pattern, or a text of several words, in quotes."
        error.message = message  # type: ignore[misc,unused-ignore]
        raise
    except (click.Abort, click.exceptions.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if os.environ.get("SEARCHKIT_DEBUG"):
            raise
        explained = _message(error)
        raise click.ClickException(clean(explained)) if explained else _Bug(error) from error


class _Bug(click.ClickException):
    """An exception that no input should cause."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h

    def __init__(self, error: Exception) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        super().__init__(
            clean(
                f"this is a bug in searchkit: {type(error).__name__}: {error} "
                f"({Path(frame.filename).name}, line {frame.lineno}, in {frame.name}). "
                "Run the command again with SEARCHKIT_DEBUG=1 to get the traceback, and report it."
            )
        )


def _takes_text(context: click.Context | None) -> bool:
    """Whether the command takes any number of arguments: queries or ids."""
    return context is not None and any(
        isinstance(parameter, click.Argument) and parameter.nargs == -1 for parameter in context.command.params
    )


def _message(error: Exception) -> str | None:
    """What to tell the user about an error in the input or the environment; None for any other error."""
    if isinstance(error, SearchkitError):
        return str(error)
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return f"out of memory{detail}; close other programs, or use a smaller model (in training, a smaller --chunk)"
    if isinstance(error, sqlite3.OperationalError):  # the index's own come as StoreErrors
        return (
            f"a working file cannot be used ({error}); check the space and permissions in {gettempdir()} and the output"
        )
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is not None:
            return f"{os.fsdecode(error.filename)}: {error.strerror}"
        return f"the output, or another file, cannot be used: {error.strerror}"  # a full disk names no file
    return None


class _Notes(logging.Handler):
    """Shows the library's warnings as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"warning: {record.getMessage()}")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="searchkit")
def main() -> None:
    """Instruction-aware vector search: index a corpus, search it, evaluate it.

    Exit codes: 0 success; 1 failure, explained in one message; 2 wrong usage; 70 a bug in searchkit
    (SEARCHKIT_DEBUG=1 shows its traceback).
    """
    if isinstance(sys.stdout, TextIOWrapper):  # where the locale lacks a character, as standard error does
        sys.stdout.reconfigure(errors="backslashreplace")
    logger = logging.getLogger("searchkit")
    if not logger.handlers:
        logger.addHandler(_Notes(logging.WARNING))


if __name__ == "__main__":
    main()
