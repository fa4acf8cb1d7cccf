"""Collections to test on: in a file of milvus-lite, or on the server that SEARCHKIT_TEST_MILVUS names."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from searchkit.remote.address import MilvusAddress, parse_milvus
from searchkit.remote.client import Client
from searchkit.remote.collection import Collection

VARIABLE = "SEARCHKIT_TEST_MILVUS"
"""An address without a collection, such as milvus://localhost:19530 or "milvus://host:443?tls=on"."""


def collection_at(folder: Path) -> str:
    """The address of a collection that does not exist yet."""
    name = f"test_{uuid4().hex[:12]}"
    if server := os.environ.get(VARIABLE):
        base, mark, options = server.partition("?")
        return f"{base.rstrip('/')}/{name}{mark}{options}"
    return f"milvus:{folder / 'lite.db'}/{name}"


def drop(address: str | MilvusAddress) -> None:
    """Remove a collection, so that a server is left as it was."""
    client = Client(parse_milvus(address) if isinstance(address, str) else address)
    if Collection.exists(client):
        client.call("drop_collection", client.address.collection)
    client.close()
