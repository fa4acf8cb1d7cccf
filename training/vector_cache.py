"""Vectors by key, kept in memory or in a folder, so that a long run embeds every text once."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

KEY_BYTES = 16


class VectorCache:
    """Rows that are written once, float16, and read through a memory map.

    A folder holds `rows.f16`, the rows one after another, and `keys`, their keys in the same order. Rows are written
    before their keys; what an interrupted run left incomplete is cut off when the folder is opened. One process writes
    to a folder.

    Args:
        folder: Where the files are; created if missing.
        dim: Width of every row.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.dim = dim
        self._rows_file, self._keys_file = folder / "rows.f16", folder / "keys"
        for file in (self._rows_file, self._keys_file):
            file.touch()
        keys = self._keys_file.read_bytes()
        count = min(len(keys) // KEY_BYTES, self._rows_file.stat().st_size // (2 * dim))
        for file, size in ((self._rows_file, 2 * dim), (self._keys_file, KEY_BYTES)):
            with file.open("r+b") as stream:
                stream.truncate(count * size)
        self._places = {keys[i * KEY_BYTES : (i + 1) * KEY_BYTES]: i for i in range(count)}
        self._map = self._open()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def add(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Write rows, (len(keys), dim), under keys that are not there yet."""
        with self._rows_file.open("ab") as stream:
            stream.write(np.ascontiguousarray(rows, dtype="<f2").tobytes())
        with self._keys_file.open("ab") as stream:
            stream.write(b"".join(keys))
        for key in keys:
            self._places[key] = len(self._places)
        self._map = self._open()

    def rows(self, keys: Sequence[bytes]) -> np.ndarray:
        """The rows of keys that are there, (len(keys), dim) float32."""
        if not keys:
            return np.empty((0, self.dim), np.float32)
        return self._map[[self._places[key] for key in keys]].astype(np.float32)

    def _open(self) -> np.ndarray:
        if not self._places:
            return np.empty((0, self.dim), np.float16)
        return np.memmap(self._rows_file, dtype="<f2", mode="r", shape=(len(self._places), self.dim))


def key_of(*parts: str | None) -> bytes:
    """A key for some strings, in which a missing one differs from an empty one."""
    digest = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        encoded = b"" if part is None else part.encode("utf-8", "surrogatepass")
        digest.update(f"{-1 if part is None else len(encoded)}:".encode() + encoded)
    return digest.digest()
