"""MkDocs hooks: the command line reference out of click, and the package as a wheel lays it out for mkdocstrings."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
from mkdocs.plugins import event_priority

from searchkit.cli.main import main

ROOT = Path(__file__).resolve().parent.parent


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: Any) -> Any:
    """Point mkdocstrings, which reads sources without importing them, at a tree of links in the wheel's layout."""
    folder = Path(tempfile.mkdtemp(prefix="searchkit-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "searchkit").mkdir()
    for source in (*(ROOT / "searchkit").iterdir(), *(ROOT / name for name in ("indexer", "training", "cli"))):
        (folder / "searchkit" / source.name).symlink_to(source)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(folder)]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append every command's --help to the page of the command line."""
    if page.file.src_uri != "reference/cli.md":
        return markdown
    parent = click.Context(main, info_name="searchkit")
    sections = [markdown]
    for name in main.list_commands(parent):
        command = main.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100)
        sections.append(f"## searchkit {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(sections)
