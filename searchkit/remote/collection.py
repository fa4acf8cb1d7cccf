"""A collection in Milvus: what it is bound to, the state of its last commit, and its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from searchkit.errors import BusyError, RemoteError, StoreError
from searchkit.indexer.vectors.similarity import Similarity
from searchkit.remote.address import MilvusAddress
from searchkit.remote.client import Client, library
from searchkit.remote.kinds import Kind
from searchkit.remote.rows import make_schema

FORMAT = "1"
MOST = 16_384
"""Rows that Milvus returns at once."""

_WINDOW = 4096  # rows read together; all of them fit in one answer
_LARGE_WINDOW = 256  # where texts or vectors come with them
_IDS = 64  # documents looked up together
_FORMAT, _SETTINGS, _STATE = "searchkit.format", "searchkit.settings", "searchkit.state"
_BATCH_BYTES = 4 << 20  # far below the 64 MB of a request


@dataclass(frozen=True, slots=True)
class State:
    """What the last commit of a collection left.

    Args:
        generation: Its number; every change adds one.
        next_row: Above all rows.
        next_doc: Above all positions of documents.
        documents: Documents there are.
        passages: Rows there are.
        similarity: How vectors are compared.
        kind: The index over the vectors.
        recipe: What the index folder stored its vectors by.
        terms: Terms of all passages that ever came.
        counted: Passages that ever came.
        all_have_vectors: Whether every row has a vector.
        filling: Whether it is not whole yet: rows from `next_row` on are missing, and it has no index.
        changing: Whether a push has begun to change it and has not ended.
        stale: Positions of documents that this commit removed, and whose rows may still be there.
        pushed: Which commit of an index folder it was last brought in step with: "generation", "next_doc" and
            "digest"; None where it has been changed by itself since.
    """

    similarity: Similarity
    kind: Kind
    recipe: str = "flat"
    generation: int = 0
    next_row: int = 0
    next_doc: int = 0
    documents: int = 0
    passages: int = 0
    terms: int = 0
    counted: int = 0
    all_have_vectors: bool = True
    filling: bool = False
    changing: bool = False
    stale: list[int] = field(default_factory=list)
    pushed: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, text: str) -> State:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        values["similarity"] = Similarity.from_json(values["similarity"])
        return cls(**{**values, "kind": Kind(**values["kind"])})

    def to_json(self) -> str:
        """The value of the property."""
        return json.dumps(asdict(self))


class Found(NamedTuple):
    """A row that a search found."""

    doc: int
    row: int
    score: float


class Collection:
    """A collection that searchkit made.

    Args:
        client: The connection.

    Attributes:
        state: Its last commit, as of when it was opened, last written or refreshed.

    Raises:
        StoreError: There is none of that name, or something else made it.
    """

    def __init__(self, client: Client) -> None:
        self.client, self.name = client, client.address.collection
        self.state = self._read_state()

    @property
    def address(self) -> MilvusAddress:
        """Where it is."""
        return self.client.address

    @classmethod
    def create(cls, client: Client, settings: Mapping[str, Any], state: State) -> Collection:
        """Make an empty collection; it has no index until `build`."""
        properties = {_FORMAT: FORMAT, _SETTINGS: json.dumps(settings), _STATE: state.to_json()}
        client.call(
            "create_collection", client.address.collection, schema=make_schema(state.similarity.width),
            consistency_level="Strong", properties=properties,
        )  # fmt: skip
        return cls(client)

    @staticmethod
    def exists(client: Client) -> bool:
        """Whether the server has a collection of that name."""
        return bool(client.call("has_collection", client.address.collection))

    # State

    def settings(self) -> dict[str, Any]:
        """What it is bound to: the model, how documents are split, the language."""
        settings: dict[str, Any] = json.loads(self._properties()[_SETTINGS])
        return settings

    def refresh(self) -> State:
        """Read the state again."""
        self.state = self._read_state()
        return self.state

    def commit(self, **changes: Any) -> None:
        """Write another state; its generation is one more, unless it is given.

        Raises:
            BusyError: Somebody else has written meanwhile.
        """
        stored = self._read_state().generation
        if stored != self.state.generation:
            raise BusyError(
                f"{self.address} was changed by somebody else (commit {stored}, expected {self.state.generation}); "
                "let one process at a time write to a collection, and try again"
            )
        state = replace(self.state, **{"generation": self.state.generation + 1, **changes})
        self.client.call("alter_collection_properties", self.name, {_STATE: state.to_json()})
        self.state = state

    def _properties(self) -> dict[str, str]:
        try:
            described = self.client.call("describe_collection", self.name)
        except RemoteError:
            if self.exists(self.client):
                raise
            raise StoreError(
                f"there is no collection {self.address}; put an index there with: searchkit push INDEX {self.address}"
            ) from None
        properties: dict[str, str] = dict(described.get("properties") or {})
        if _FORMAT not in properties:
            raise StoreError(f"{self.address} was not made by searchkit push; choose another name")
        if properties[_FORMAT] != FORMAT:
            raise StoreError(
                f"{self.address} has the format {properties[_FORMAT]}, and this version of searchkit knows {FORMAT}; "
                "upgrade searchkit, or push the index again under another name"
            )
        return properties

    def _read_state(self) -> State:
        try:
            return State.from_json(self._properties()[_STATE])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, StoreError | RemoteError):
                raise
            raise StoreError(f"{self.address} has damaged properties ({error}); push the index again") from error

    def check_whole(self) -> None:
        """Raise StoreError where a push has not been finished."""
        if self.state.filling:
            raise StoreError(
                f"{self.address} is not whole: a push was interrupted after {self.state.next_row:,} rows; "
                f"finish it with: searchkit push INDEX {self.address}"
            )

    # Rows

    def query(self, expression: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        """At most `MOST` rows that match an expression, in no order."""
        return list(self.client.call("query", self.name, filter=expression, output_fields=list(fields), limit=MOST))

    def count(self, expression: str) -> int:
        """How many rows match an expression."""
        (answer,) = self.client.call("query", self.name, filter=expression, output_fields=["count(*)"])
        return int(answer["count(*)"])

    def scan(
        self, fields: Sequence[str], expression: str = "", *, first: int = 0, below: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """All rows that match an expression, in the order of rows."""
        also = f" and ({expression})" if expression else ""
        end = self.state.next_row if below is None else below
        window = _LARGE_WINDOW if {"text", "vector"} & set(fields) else _WINDOW
        for start in range(first, end, window):
            found = self.query(f"row >= {start} and row < {min(end, start + window)}{also}", ["row", *fields])
            yield from sorted(found, key=lambda row: int(row["row"]))

    def rows(self, numbers: Iterable[int], fields: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Rows by their numbers; those that there are."""
        wanted = sorted({int(number) for number in numbers})
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(wanted), 1024):
            ids = wanted[start : start + 1024]
            for row in self.client.call("get", self.name, ids=ids, output_fields=["row", *fields]):
                found[int(row["row"])] = row
        return found

    def rows_by_id(self, ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        """All rows of documents by their ids, in the order of rows."""
        found: list[dict[str, Any]] = []
        for start in range(0, len(ids), _IDS):
            listed = ", ".join(map(literal, ids[start : start + _IDS]))
            some = self.query(f"id in [{listed}]", ["row", *fields])
            # Documents of so many passages are rare: they are read row by row.
            found += self.scan(fields, f"id in [{listed}]") if len(some) >= MOST else some
        return sorted(found, key=lambda row: int(row["row"]))

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows, each in place of one with the same number."""
        batch: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            batch.append(row)
            size += 4 * len(row["vector"]) + 3 * len(row["text"]) + 1000
            if size > _BATCH_BYTES:
                self.client.call("upsert", self.name, data=batch)
                batch, size = [], 0
        if batch:
            self.client.call("upsert", self.name, data=batch)

    def remove(self, docs: Sequence[int]) -> None:
        """Remove all rows of some documents."""
        for start in range(0, len(docs), 1024):
            listed = ", ".join(map(str, docs[start : start + 1024]))
            self.client.call("delete", self.name, filter=f"doc in [{listed}]")

    def remove_from(self, row: int) -> None:
        """Remove all rows from one on: those that no commit has acknowledged."""
        self.client.call("delete", self.name, filter=f"row >= {row}")

    def flush(self) -> None:
        """Have everything that was written on the server's disks."""
        self.client.call("flush", self.name, timeout=self._long())

    # The index

    def build(self) -> None:
        """Build the indexes over all rows, and load the collection."""
        kind = self.state.kind
        # The parameters of BM25 in a folder.
        self._index("bm25", "SPARSE_INVERTED_INDEX", "BM25", {"bm25_k1": K1, "bm25_b": B})
        for name in ("id", "doc", "facts"):
            try:
                self._index(name, "INVERTED")
            except RemoteError as error:  # milvus-lite has no index over arrays, and scans them
                if "support" not in str(error):
                    raise
        try:
            self._index("vector", kind.type, "IP", kind.build)
            self.load()
        except RemoteError as error:
            raise StoreError(
                f"{self.address} does not build the index {kind.described} ({error}); "
                "choose another with --index-type, and another name"
            ) from error

    def _index(self, field: str, type: str, metric: str = "", build: Mapping[str, Any] | None = None) -> None:
        if field in self.client.call("list_indexes", self.name):  # of a push that was interrupted
            return
        params = library().MilvusClient.prepare_index_params()
        # Servers read parameters one by one, and milvus-lite reads them together.
        written = {**build, "params": json.dumps(build)} if build else {}
        params.add_index(
            field, index_name=field, index_type=type, **({"metric_type": metric} if metric else {}), params=written
        )
        self.client.call("create_index", self.name, params, timeout=self._long())

    def load(self) -> None:
        """Have the collection in the server's memory."""
        self.client.call("load_collection", self.name, timeout=self._long())

    def _long(self) -> float:
        """Seconds for what takes as long as there are rows."""
        return max(self.address.timeout, 60.0 + self.state.next_row / 1000)

    # Searching

    def nearest(self, queries: np.ndarray, k: int, expression: str, effort: Mapping[str, Any]) -> list[list[Found]]:
        """At most k rows a query, (n, width) float32, by inner product, best first; equal scores by row."""
        options = {"metric_type": "IP", "params": dict(effort)}
        return self._search(list(queries), "vector", k, expression, options)

    def matching(self, queries: Sequence[str], k: int, expression: str) -> list[list[Found]]:
        """At most k rows a query by BM25; queries are terms with spaces between them."""
        return self._search(list(queries), "bm25", k, expression, {"metric_type": "BM25"})

    def _search(
        self, data: list[Any], field: str, k: int, expression: str, options: dict[str, Any]
    ) -> list[list[Found]]:
        found: list[list[Found]] = []
        most = max(1, min(256, 200_000 // k))  # queries a request, so that answers stay below the limit
        for start in range(0, len(data), most):
            answer = self.client.call(
                "search", self.name, data=data[start : start + most], anns_field=field, limit=k, filter=expression,
                search_params=options, output_fields=["doc"],
            )  # fmt: skip
            # Scores of BM25 are positive, and milvus-lite returns them as negative distances.
            sign = abs if field == "bm25" else float
            for hits in answer:
                each = [Found(int(hit["entity"]["doc"]), int(hit["row"]), sign(hit["distance"])) for hit in hits]
                found.append(sorted(each, key=lambda item: (-item.score, item.row)))
        return found


K1, B = 1.2, 0.75


def literal(text: str) -> str:
    """A string as expressions write it."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'
