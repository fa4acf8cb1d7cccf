"""MkDocs hook: show mkdocstrings the package as a wheel lays it out, with indexer/, training/ and cli/ inside."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parent.parent


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: Any) -> Any:
    """Point mkdocstrings, which reads sources without importing them, at a folder of links."""
    folder = Path(tempfile.mkdtemp(prefix="searchkit-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "searchkit").mkdir()
    for source in (*(ROOT / "searchkit").iterdir(), *(ROOT / name for name in ("indexer", "training", "cli"))):
        (folder / "searchkit" / source.name).symlink_to(source)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(folder)]
    return config
