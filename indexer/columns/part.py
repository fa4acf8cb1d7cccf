"""Metadata of many documents in columns: a number per document and key, and what each number stands for.

A file holds the blocks of its columns, then a header in JSON that says where they are, then the header's length and
checksum. Each block has a checksum of its own, which is compared when the block is first read.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128

VERSION = 1
_FOOT = 8 + 16  # the header's length and its checksum


class UnusableError(ValueError):
    """A file of columns is damaged, of another version, or does not hold what is asked for: read the documents."""


def id_number(id: object) -> int:
    """A number of 64 bits for an id; two ids rarely have the same."""
    return int(xxh3_64_intdigest(str(id).encode(errors="replace")))  # str: damage may have made bytes of it


class Part:
    """The documents from one position to below another, without those that have been compacted away.

    Args:
        header: "compacted", "start", "stop", "count", "contents" (the checksum of these documents' metadata),
            "keys", "blocks", and "strict" (whether all of that metadata was JSON proper).
        read: Returns a block by its name.
    """

    def __init__(self, header: Mapping[str, Any], read: Callable[[str], Any]) -> None:
        self.header, self.read = header, read
        self.start, self.stop, self.count = int(header["start"]), int(header["stop"]), int(header["count"])
        self.keys: Mapping[str, Any] = header["keys"]

    def marked(self, *, strict: bool) -> Part:
        """The same, with a note of whether all metadata was JSON proper."""
        return Part({**self.header, "strict": strict}, self.read)

    @classmethod
    def open(cls, file: Path) -> Part:
        """Map a file; UnusableError where it is no intact file of this version."""
        try:
            with file.open("rb") as stream:
                data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            size = int.from_bytes(data[-_FOOT : 8 - _FOOT], "little")
            text = data[-_FOOT - size : -_FOOT] if 0 < size <= len(data) - _FOOT else b""
            if xxh3_128(text).digest() != data[8 - _FOOT :]:
                raise UnusableError(f"{file} is damaged")
            header = json.loads(text)
            if header["version"] != VERSION:
                raise UnusableError(f"{file} is of version {header['version']}")
        except UnusableError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:  # ValueError: an empty file cannot be mapped
            raise UnusableError(f"{file} cannot be read ({error})") from error
        sound: set[str] = set()

        def read(name: str) -> memoryview:
            start, length, checksum = header["blocks"][name]
            block = memoryview(data)[start : start + length]
            if name not in sound and xxh3_128(block).hexdigest() != checksum:
                raise UnusableError(f"{file} is damaged")
            sound.add(name)
            return block

        return cls(header, read)

    def write(self, file: Path) -> None:
        """Write it to a file, which appears whole or not at all; a torn one would be noticed by its checksums."""
        staging = file.with_suffix(".tmp")
        places: dict[str, tuple[int, int, str]] = {}
        with staging.open("wb") as stream:
            for name in self.header["blocks"]:
                block = memoryview(self.read(name))
                stream.write(b"\0" * (-stream.tell() % 8))
                places[name] = (stream.tell(), block.nbytes, xxh3_128(block).hexdigest())
                stream.write(block)
            text = json.dumps({**self.header, "version": VERSION, "blocks": places}).encode()
            stream.write(text + len(text).to_bytes(8, "little") + xxh3_128(text).digest())
        staging.replace(file)

    # What it holds

    def has_many(self, key: str) -> bool:
        """Whether a key has more values than are numbered."""
        return bool(self.keys[key]["kind"] == "many")

    def codes(self, key: str) -> np.ndarray:
        """(count,) unsigned, the number of every document's value; 0 where it has none."""
        entry = self._numbered(key)
        return np.frombuffer(self.read(f"{entry['number']}.codes"), entry["dtype"])

    def texts(self, key: str) -> list[str]:
        """JSON objects with the key and its value alone, for the numbers from 1 on, in order of first appearance."""
        block = bytes(self.read(f"{self._numbered(key)['number']}.values"))
        return block.decode().split("\n") if block else []

    def _numbered(self, key: str) -> Mapping[str, Any]:
        entry: Mapping[str, Any] = self.keys[key]
        if self.has_many(key):
            raise UnusableError(f"{key} has too many values")
        return entry

    def ids(self) -> np.ndarray:
        """(count,) uint64, what `id_number` returns for the id of every document."""
        return np.frombuffer(self.read("ids"), "<u8")

    def mark(self, passes: np.ndarray, docs: np.ndarray, rows: np.ndarray) -> None:
        """Set what passes a filter in masks over documents and rows, as far as these reach.

        Args:
            passes: (count,) bool, which of its documents.
            docs: (documents,) bool by position.
            rows: (rows,) bool.
        """
        if not {"docs", "first_rows", "passages"} & set(self.header["blocks"]):  # as most are, in a tenth of the time
            first = int(self.header["first_row"])
            inside, stored = docs[self.start : self.stop], rows[first : first + self.count]
            inside[:], stored[:] = passes[: len(inside)], passes[: len(stored)]
            return
        chosen = np.flatnonzero(passes)
        positions, every = self.docs(chosen), self.first_rows(chosen)
        docs[positions[: np.searchsorted(positions, len(docs))]] = True
        if "passages" in self.header["blocks"]:
            counts = self.passages(chosen)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            every = np.repeat(every, counts) + within
        rows[every[: np.searchsorted(every, len(rows))]] = True

    def docs(self, chosen: np.ndarray) -> np.ndarray:
        """The positions of some of its documents, int64."""
        return self._numbers("docs", self.start, chosen)

    def first_rows(self, chosen: np.ndarray) -> np.ndarray:
        """Their first rows, int64."""
        return self._numbers("first_rows", int(self.header["first_row"]), chosen)

    def passages(self, chosen: np.ndarray) -> np.ndarray:
        """How many passages they have, int64."""
        if "passages" not in self.header["blocks"]:
            return np.ones(len(chosen), np.int64)
        return np.asarray(np.frombuffer(self.read("passages"), "<i4")[chosen], np.int64)

    def _numbers(self, name: str, first: int, chosen: np.ndarray) -> np.ndarray:
        if name not in self.header["blocks"]:  # they follow each other
            return np.asarray(first + chosen)
        return np.asarray(np.frombuffer(self.read(name), "<i8")[chosen])
