"""`searchkit mcp`: indexes as tools of a language model, over standard input and output."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import ModelOptions, model_options, require
from searchkit.cli.types import PLACE

if TYPE_CHECKING:
    from searchkit.remote.address import MilvusAddress


@click.command()
@click.argument("indexes", metavar="INDEX...", type=PLACE, nargs=-1, required=True)
@click.option("--writable", is_flag=True, help="Offer a tool that adds documents, and lock the indexes for it.")
@click.option(
    "--answer-tokens",
    default=5000,
    show_default=True,
    type=click.IntRange(500),
    help="Longest answer, in tokens of about four characters.",
)
@model_options
def mcp(indexes: tuple[Path | MilvusAddress, ...], writable: bool, answer_tokens: int, model: ModelOptions) -> None:
    """Serve each INDEX to a client of the Model Context Protocol (MCP), over standard input and output.

    The client starts this command itself. An index is called after its folder, without ".index".

    \b
        claude mcp add papers -- searchkit mcp papers.index
    """
    require("an MCP server", "serve", "mcp")
    from searchkit.server.indexes import index_name
    from searchkit.server.mcp import OpenIndex, mcp_server

    wire = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print, also those not written in Python, goes to standard error
    with ExitStack() as stack:
        names = [(index_name(folder), folder) for folder in indexes]
        server = mcp_server(
            [
                OpenIndex(name, stack.enter_context(model.open_place(folder, writable=writable)))
                for name, folder in names
            ],
            writable=writable,
            answer_tokens=answer_tokens,
        )
        sys.stdout.flush()
        os.dup2(wire, 1)
        try:
            server.run("stdio")  # it takes the wire for itself, and diverts standard output while it serves
        finally:
            os.dup2(2, 1)
