"""Which texts came before, exactly or nearly, with memory that does not grow with their number."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b

import numpy as np

from searchkit.errors import InputError, MissingExtraError
from searchkit.training.texts import fingerprint

_PERMUTATIONS = 128
_BANDS = 16  # of 8 values each: two texts of similarity .85 share one with probability .99
_SHINGLE = 4  # characters


class Seen:
    """The texts that came before, on disk, and how similar a new one is to them.

    Similarity is the Jaccard index of two texts' four-character shingles, estimated by MinHash.

    Args:
        likeness: Similarity at which a text counts as a near-duplicate; 1 compares exactly.
    """

    def __init__(self, likeness: float = 0.8) -> None:
        if not 0 < likeness <= 1:
            raise InputError(f"likeness is {likeness:g}; expected a number above 0, up to 1 for exact copies only")
        self._likeness = likeness
        if likeness < 1:
            _signature("")  # reports a missing library now, before answers are paid for
        # SQLite keeps a temporary database in a file of its own and deletes it: memory stays flat.
        self._db = sqlite3.connect("")
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("CREATE TABLE exact (text BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("CREATE TABLE signatures (number INTEGER PRIMARY KEY, signature BLOB)")
        self._db.execute("CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID")
        self._count = 0

    def close(self) -> None:
        """Delete the file."""
        self._db.close()

    def match(self, text: str) -> str:
        """ "duplicate", "near-duplicate", or "" for a new text, which is not added."""
        if self._db.execute("SELECT 1 FROM exact WHERE text = ?", (fingerprint(text),)).fetchone():
            return "duplicate"
        if self._likeness == 1:
            return ""
        signature = _signature(text)
        marks = ",".join("?" * _BANDS)
        candidates = self._db.execute(
            f"SELECT signature FROM signatures WHERE number IN (SELECT number FROM bands WHERE band IN ({marks}))",
            _bands(signature),
        )
        for (other,) in candidates:
            if float((np.frombuffer(other, np.uint32) == signature).mean()) >= self._likeness:
                return "near-duplicate"
        return ""

    def add(self, text: str) -> None:
        """Remember a text."""
        self._db.execute("INSERT OR IGNORE INTO exact VALUES (?)", (fingerprint(text),))
        if self._likeness < 1:
            signature = _signature(text)
            self._db.execute("INSERT INTO signatures VALUES (?, ?)", (self._count, signature.tobytes()))
            rows = [(band, self._count) for band in _bands(signature)]
            self._db.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", rows)
            self._count += 1


def _signature(text: str) -> np.ndarray:
    """(128,) uint32."""
    try:
        from rensa import RMinHash
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"finding near-duplicates needs {error.name}: pip install 'searchkit[train]'", name=error.name
        ) from error
    plain = f" {' '.join(text.casefold().split())} "
    sketch = RMinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update(sorted({plain[start : start + _SHINGLE] for start in range(max(1, len(plain) - _SHINGLE + 1))}))
    return np.array(sketch.digest(), dtype=np.uint32)


def _bands(signature: np.ndarray) -> list[int]:
    """A number for each band; texts that share one are compared."""
    size = signature.nbytes // _BANDS
    whole = signature.tobytes()
    parts = (bytes([band]) + whole[band * size : (band + 1) * size] for band in range(_BANDS))
    return [int.from_bytes(blake2b(part, digest_size=8).digest(), "big", signed=True) for part in parts]
