"""searchkit as Haystack's document store, embedders, retrievers and ranker; every search may have an instruction."""

from __future__ import annotations

from searchkit.errors import MissingExtraError

try:
    import haystack  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"the Haystack integration needs {error.name}: pip install 'searchkit[haystack]'", name=error.name
    ) from error

from searchkit.integrations.haystack.embedders import SearchkitDocumentEmbedder, SearchkitTextEmbedder
from searchkit.integrations.haystack.ranker import SearchkitRanker
from searchkit.integrations.haystack.retrievers import (
    SearchkitBM25Retriever,
    SearchkitEmbeddingRetriever,
    SearchkitHybridRetriever,
)
from searchkit.integrations.haystack.store import SearchkitDocumentStore

__all__ = [
    "SearchkitBM25Retriever",
    "SearchkitDocumentEmbedder",
    "SearchkitDocumentStore",
    "SearchkitEmbeddingRetriever",
    "SearchkitHybridRetriever",
    "SearchkitRanker",
    "SearchkitTextEmbedder",
]
