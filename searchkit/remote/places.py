"""Open what is searched, be it an index folder or a collection in Milvus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from searchkit.binding import located
from searchkit.engine import SearchEngine
from searchkit.indexer.store import Store
from searchkit.models.embedder import Embedder
from searchkit.remote.address import MilvusAddress
from searchkit.remote.client import Client
from searchkit.remote.collection import Collection
from searchkit.remote.engine import MilvusEngine
from searchkit.writer import Writer


def stored_model(place: Path | MilvusAddress) -> dict[str, Any] | None:
    """What an index or a collection stores about its model; None where users made its vectors."""
    if isinstance(place, MilvusAddress):
        client = Client(place)
        try:
            settings: dict[str, Any] = Collection(client).settings()
        finally:
            client.close()
        model: dict[str, Any] | None = settings["model"]
        return model
    with Store(place) as store:
        identity: dict[str, Any] | None = store.database.setting("model")
    return None if identity is None else located(identity, place)


def open_place(
    place: Path | MilvusAddress,
    *,
    model: Embedder | str | None = None,
    adapter: str | None = None,
    vectors_from: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    writable: bool = False,
) -> Writer:
    """Open an index folder or a collection; see `SearchEngine.open` and `MilvusEngine.open`."""
    if isinstance(place, MilvusAddress):
        return MilvusEngine.open(
            place, model=model, adapter=adapter, vectors_from=vectors_from, device=device, dtype=dtype,
            threads=threads, writable=writable,
        )  # fmt: skip
    return SearchEngine.open(
        place, model=model, adapter=adapter, vectors_from=vectors_from, device=device, dtype=dtype, threads=threads,
        writable=writable,
    )  # fmt: skip
