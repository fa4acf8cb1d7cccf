"""What a GGUF file says before its weights: its fields, and the name, the type and the size of every tensor.

The package gguf reads it too, through an array for every string: 10 s for a vocabulary of 128,000 tokens, and this
takes half a second.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import InputError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One of the tensors that follow the header.

    Args:
        name: As llama.cpp calls it, such as blk.0.attn_q.weight.
        shape: Fastest axis first.
        kind: The number of its type, as ggml counts them.
        start: Bytes from where the weights begin.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True, slots=True)
class Header:
    """All of a file but its weights.

    Args:
        values: The fields by name; arrays are lists.
        tensors: In the order of the file.
        weights: Where the weights begin, in bytes.
    """

    values: dict[str, Any]
    tensors: list[Tensor]
    weights: int


def read_header(file: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        InputError: It is no GGUF file, or one of another version, or it ends early or makes no sense.
    """
    if not file.is_file():
        raise InputError(f"{file} is not a file; expected a GGUF file")
    with file.open("rb") as stream:
        magic = stream.read(4)
        if magic != _MAGIC:
            raise InputError(f"{file} is not a GGUF file: it begins with {magic!r}, expected {_MAGIC!r}")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _read(file, _Cursor(data))
            except InputError:
                raise
            except (ValueError, OverflowError, MemoryError, KeyError) as error:
                raise damaged(file, str(error)) from error


def _read(file: Path, cursor: _Cursor) -> Header:
    version = cursor.number("<u4")
    if version not in _VERSIONS:
        raise InputError(
            f"{file} has version {version} of the format; expected {' or '.join(map(str, _VERSIONS))}, with the lowest "
            "byte first. Convert the model again with a current llama.cpp"
        )
    tensors, fields = cursor.numbers("<u8", 2)
    values = {}
    for _ in range(fields):
        name = cursor.string()
        values[name] = cursor.value(cursor.number("<u4"))
    found = [cursor.tensor() for _ in range(tensors)]
    alignment = int(values.get("general.alignment", 32)) or 32
    return Header(values, found, -(-cursor.at // alignment) * alignment)


def damaged(file: Path, reason: str) -> InputError:
    """The error for a file that cannot be whole."""
    return InputError(
        f"{file} is damaged or not complete: its {file.stat().st_size} bytes end early or make no sense ({reason}); "
        "download it again"
    )


class _Cursor:
    """Reads one thing after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.at = data, 4

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            raise ValueError(f"byte {end} is read")
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def numbers(self, kind: str, count: int) -> Any:
        """So many numbers of a numpy type."""
        return np.frombuffer(self._take(count * np.dtype(kind).itemsize), kind).tolist()

    def number(self, kind: str) -> Any:
        return self.numbers(kind, 1)[0]

    def string(self) -> str:
        return self._take(int.from_bytes(self._take(8), "little")).decode("utf-8")

    def value(self, kind: int) -> Any:
        """A value of one of the format's types."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        inner, count = self.number("<u4"), self.number("<u8")
        if inner in _SCALARS:
            return self.numbers(_SCALARS[inner], count)
        read: Callable[[], Any] = self.string if inner == _STRING else lambda: self.value(inner)
        return [read() for _ in range(count)]

    def tensor(self) -> Tensor:
        name = self.string()
        shape = tuple(self.numbers("<u8", self.number("<u4")))
        return Tensor(name, shape, self.number("<u4"), self.number("<u8"))
