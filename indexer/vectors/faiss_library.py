"""FAISS itself, imported when it is first needed."""

from __future__ import annotations

from typing import Any

from searchkit.indexer.errors import MissingExtraError


def faiss_module() -> Any:
    """FAISS, or an ImportError that says how to install it."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "vector search needs faiss: pip install 'searchkit[cpu]' or 'searchkit[gpu]'", name="faiss"
        ) from error
    # A damaged count must not make FAISS ask for all memory there is.
    faiss.set_deserialization_vector_byte_limit(1 << 40)
    return faiss
