"""From what a caller passes in to a request that can be ranked: options, instruction and vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from searchkit.errors import InputError
from searchkit.indexer.filters import compile_filter
from searchkit.models.embedder import Embedder
from searchkit.models.vocabulary import UNREADABLE
from searchkit.ranking import Mode, SearchOptions
from searchkit.records import Query
from searchkit.tasks import WEB_SEARCH, get_task
from searchkit.validation import check_optional_text, check_text, described


def chosen_options(
    options: SearchOptions | None, mode: Mode | None = None, where: Mapping[str, Any] | None = None
) -> SearchOptions:
    """Validate the settings of a ranking, given as a record or as keywords.

    Raises:
        InputError: Both came, or one of them cannot be used.
    """
    if options is None:
        options = SearchOptions(where=where) if mode is None else SearchOptions(mode=mode, where=where)
    elif not isinstance(options, SearchOptions):
        raise InputError(f"options is {described(options)}; expected searchkit.SearchOptions")
    elif mode is not None or where is not None:
        raise InputError(
            "both options and mode or where came; set them in one place: SearchOptions(mode=..., where=...)"
        )
    if options.where is not None:
        compile_filter(options.where)  # its mistakes are reported even where there is nothing to search
    return options


def chosen_instruction(instruction: str | None, task: str | None) -> str | None:
    """The instruction, or that of a named task.

    Raises:
        InputError: Both came, one of them is not a string, or there is no such task.
    """
    check_optional_text("instruction", instruction)
    if task is None:
        return instruction
    if instruction is not None:
        raise InputError("both a task and an instruction came; give one of them")
    check_text("task", task)
    return get_task(task).instruction


def embed(embedder: Embedder, queries: Sequence[Query], instruction: str | None) -> np.ndarray:
    """Embed queries, each with its own instruction or else with the given one, as (n, dim) float32 unit rows."""
    rows = np.empty((len(queries), embedder.dim), dtype=np.float32)
    groups: dict[str | None, list[int]] = {}
    for position, query in enumerate(queries):
        own = query.instruction if query.instruction is not None else instruction
        groups.setdefault(own, []).append(position)
    for own, positions in groups.items():
        rows[positions] = embedder.encode_queries([queries[i].text for i in positions], own)
    return rows


def neutral_vectors(
    embedder: Embedder, queries: Sequence[Query], instruction: str | None, vectors: np.ndarray
) -> np.ndarray:
    """The queries under the neutral instruction, like `vectors`; the same row where a query has no other instruction.

    The neutral one is that of a web search: any instruction moves a vector, and what matters is what this one asks for.
    """
    rows = vectors.copy()
    chosen = [instruction if query.instruction is None else query.instruction for query in queries]
    changed = [n for n, own in enumerate(chosen) if is_instructed(embedder, own)]
    if changed:
        rows[changed] = embedder.encode_queries([queries[n].text for n in changed], WEB_SEARCH)
    return rows


def unreadable(embedder: Embedder, texts: Sequence[str]) -> list[bool]:
    """Whether most of each query is in a script that the model does not know, so that its vector says little."""
    return [share > UNREADABLE for share in embedder.unknown_shares(texts)]


def is_instructed(embedder: Embedder, instruction: str | None) -> bool:
    """Whether a query with this instruction differs from the same query under the neutral one."""
    default = embedder.conventions.default_instruction
    return ((default if instruction is None else instruction) or "").strip() not in ("", WEB_SEARCH)


def checked_vectors(vectors: object, count: int, dim: int) -> np.ndarray:
    """Return vectors that came with their queries, (count, dim) float32; InputError where they are anything else."""
    try:
        rows = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(f"vectors is {described(vectors)}; expected an array of {(count, dim)}") from None
    if rows.shape != (count, dim):
        raise InputError(f"vectors are {rows.shape}; expected {(count, dim)}, a row a query")
    if not np.isfinite(rows).all():
        raise InputError("vectors hold NaN or Infinity; expected unit rows, as SearchEngine.embed returns them")
    return rows


def sides(options: SearchOptions, texts: Sequence[str], *, vectors: bool) -> SearchOptions:
    """The options with the mode that queries can be ranked in: hybrid ranks by what there is of text and vector.

    Raises:
        InputError: The mode needs what the queries lack.
    """
    if options.mode == "hybrid" and not (any(texts) and vectors):
        return replace(options, mode="dense" if vectors else "lexical")
    if options.mode == "lexical" and (not all(texts) if texts else vectors):
        raise InputError("a lexical search needs the text of its query; give one, or choose the mode dense")
    return options
