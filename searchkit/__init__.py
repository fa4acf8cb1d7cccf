"""Instruction-aware vector search with a built-in embedder."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from searchkit.engine import SearchEngine
    from searchkit.errors import SearchkitError
    from searchkit.models.embedder import Embedder
    from searchkit.models.reranker import Reranker
    from searchkit.ranking import SearchOptions
    from searchkit.records import Document, Hit, Query

__version__ = "0.1.0"
__all__ = [
    "Document",
    "Embedder",
    "Hit",
    "Query",
    "Reranker",
    "SearchEngine",
    "SearchOptions",
    "SearchkitError",
    "__version__",
]

# In a checkout, indexer/, training/ and cli/ sit beside this folder; a wheel holds them inside it.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))

_MODULES = {
    "Document": "records",
    "Embedder": "models.embedder",
    "Hit": "records",
    "Query": "records",
    "Reranker": "models.reranker",
    "SearchEngine": "engine",
    "SearchOptions": "ranking",
    "SearchkitError": "errors",
}


def __getattr__(name: str) -> object:
    # Loaded on first use, so that `import searchkit` stays fast and needs no extra.
    if name in _MODULES:
        return getattr(import_module(f"searchkit.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'searchkit' has no attribute {name!r}")
