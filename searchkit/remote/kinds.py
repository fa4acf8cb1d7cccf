"""Which index Milvus builds over the vectors, and whether it really did."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from searchkit.errors import InputError, StoreError
from searchkit.indexer.vectors.recipes import RECIPES, Plan, Tuning, plan
from searchkit.remote.client import Client

TYPES = ("FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8", "FAISS:FACTORY")

_TELLING = 2048
"""Rows from which an index is told from a scan: engines scan fewer, whatever index was asked for."""
_QUERIES = 64
_EXACT = 1e-4
"""Scores that differ by less from those of the vectors are not those of codes."""


@dataclass(frozen=True, slots=True)
class Kind:
    """An index of Milvus.

    Args:
        type: Its type.
        build: Its parameters.
        search: How hard it is searched.
        least: As little effort as it can be searched with; empty where there is no such setting.
        most: As much as makes sense.
        codes: Whether it scores by codes in place of vectors; None where that cannot be told.
    """

    type: str
    build: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    least: dict[str, Any] = field(default_factory=dict)
    most: dict[str, Any] = field(default_factory=dict)
    codes: bool | None = False

    @property
    def exact(self) -> bool:
        """Whether it compares every vector as it is."""
        return self.type == "FLAT"

    @property
    def described(self) -> str:
        """As `--index-type` takes it."""
        return f"FAISS:{self.build['faiss_index_name']}" if self.type == "FAISS" else self.type

    def to_json(self) -> dict[str, Any]:
        """A part of the collection's state."""
        return asdict(self)


def kind_of(stored: Plan, tuning: Tuning) -> Kind:
    """The index that comes nearest to a recipe.

    Raises:
        InputError: Milvus has none.
    """
    recipe = stored.recipe
    if recipe in ("flat", "fp16"):
        return Kind("FLAT")
    if recipe in ("hnsw", "cagra"):
        return _graph(max(tuning.ef, 64))
    if recipe == "int8":
        return _lists("IVF_SQ8", 1, 1, codes=True)
    if recipe == "ivf-int8" and not stored.width:
        return _lists("IVF_SQ8", max(1, stored.lists), tuning.probes, codes=True)
    if RECIPES[recipe].factory:
        return _faiss(stored.factory, stored.lists, tuning.probes)
    raise InputError(
        f"Milvus has no index like the recipe {stored.spelling}; choose one: --index-type {' | '.join(TYPES)}"
    )


def chosen_kind(name: str, dim: int, rows: int) -> Kind:
    """The index of a name of :data:`TYPES`, with numbers that suit so many rows."""
    upper, _, factory = name.partition(":")
    lists = plan("ivf-int8", dim, max(1, rows)).lists
    match upper.upper():
        case "FLAT" if not factory:
            return Kind("FLAT")
        case "HNSW" if not factory:
            return _graph(64)
        case "IVF_FLAT" | "IVF_SQ8" as chosen if not factory:
            return _lists(chosen, lists, max(1, round(lists**0.5)), codes=chosen == "IVF_SQ8")
        case "FAISS" if factory:
            return _faiss(factory, lists, max(1, round(lists**0.5)))
    raise InputError(f"index type {name!r} is unknown; expected one of {', '.join(TYPES)}")


def _graph(ef: int) -> Kind:
    return Kind("HNSW", {"M": 32, "efConstruction": 200}, {"ef": ef}, {"ef": 1}, {"ef": 512})


def _lists(name: str, lists: int, probes: int, *, codes: bool) -> Kind:
    least: dict[str, Any] = {"nprobe": 1} if lists > 1 else {}
    most: dict[str, Any] = {"nprobe": lists} if lists > 1 else {}
    return Kind(name, {"nlist": lists}, {"nprobe": min(probes, lists)}, least, most, codes)


def _faiss(factory: str, lists: int, probes: int) -> Kind:
    search = {"nprobe": probes} if lists else {}
    coded = any(part in factory for part in ("PQ", "SQ4", "SQ8", "RaBitQ", "LSH"))
    return Kind("FAISS", {"faiss_index_name": factory}, search, codes=True if coded else None)


def check_built(client: Client, kind: Kind, rows: int, width: int, *, patience: float = 60.0) -> None:
    """Make sure that an index is what was asked for, whatever its engine says of it.

    An engine may call an index finished before it has begun, or fail to build it behind one's back and scan the vectors
    instead. So after its own description, its answers are looked at: an index that visits a part of the vectors misses
    some when it is searched with the least effort, and scores of codes are not exactly those of the vectors.

    Args:
        client: The collection, loaded.
        kind: What was asked for.
        rows: Rows that there are.
        width: Width of the vectors.
        patience: Seconds to wait for it.

    Raises:
        StoreError: It is something else.
    """
    until = time.monotonic() + patience
    while fault := _fault(client, kind, rows, width):
        if time.monotonic() > until:
            raise StoreError(
                f"{client.address} says that its index {kind.described} is finished, but {fault}; the engine does not "
                "support that index, or is still building: push again, or choose another with --index-type"
            )
        time.sleep(0.25)


def _fault(client: Client, kind: Kind, rows: int, width: int) -> str | None:
    name = client.address.collection
    built = client.call("describe_index", name, "vector")
    if built.get("index_type") != kind.type:
        return f"it describes a {built.get('index_type')}"
    wrong = {key: built.get(key) for key, value in kind.build.items() if str(built.get(key, value)) != str(value)}
    if wrong:
        return f"it describes {wrong} in place of {kind.build}"
    if built.get("state", "Finished") != "Finished" or int(built.get("pending_index_rows", 0)):
        return f"its state is {built.get('state')}, with {built.get('pending_index_rows')} rows to come"
    if rows < _TELLING:
        return None
    queries = np.random.default_rng(40_961).standard_normal((_QUERIES, width)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    best = _search(client, kind.most or kind.search, queries)
    if kind.least and np.array_equal(best[0], _search(client, kind.least, queries)[0]):
        return f"searching it with {kind.least} misses nothing that {kind.most} finds, as only a scan does"
    if kind.codes is not None:
        stored = client.call("get", name, ids=sorted({int(row) for row in best[0]}), output_fields=["vector"])
        vectors = {int(item["row"]): np.asarray(item["vector"], np.float32) for item in stored}
        exact = np.array([vectors[int(row)] @ query for row, query in zip(best[0], queries, strict=True)])
        off = float(np.abs(exact - best[1]).max())
        if kind.codes and off < _EXACT * 0.01:
            return "its scores are those of the vectors themselves, and not of codes"
        if not kind.codes and off > _EXACT * max(1.0, float(np.abs(exact).max())):
            return f"its scores differ by {off:.2g} from those of the vectors"
    return None


def _search(client: Client, effort: dict[str, Any], queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, scores) of the best of each query."""
    found = client.call(
        "search", client.address.collection, data=list(queries), anns_field="vector", limit=1,
        search_params={"metric_type": "IP", "params": effort},
    )  # fmt: skip
    return np.array([hits[0]["row"] for hits in found]), np.array([hits[0]["distance"] for hits in found])
