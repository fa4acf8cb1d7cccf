"""Rows of a Parquet file, or of a folder of part files.

Values become JSON: decimals are numbers where a number holds them exactly and strings otherwise, 32-bit floats are the
shortest decimals that name them, dates and times are ISO strings, which filters compare with {"$date": ...}.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from searchkit.errors import CorpusError, MissingExtraError, RowError
from searchkit.readers.columns import ColumnGuess, convert
from searchkit.readers.delimited import check_columns
from searchkit.readers.rows import Fields, ReadReport, Row, has_no_ids, id_key, numbered_id
from searchkit.readers.values import json_object, typename

_INDEX = "__index_level_"  # what pandas calls the index of a frame


def part_files(path: Path) -> list[Path]:
    """The Parquet files of a folder in order, without those that Spark and others hide; or the file itself."""
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*.parquet") if file.is_file())
    return sorted(file for file in files if not any(part[0] in "._" for part in file.relative_to(path).parts))


def count_rows(path: Path) -> int:
    """Rows of all part files."""
    total = 0
    for file in part_files(path):
        with open_parquet(file) as table:
            total += int(table.metadata.num_rows)
    return total


def parquet_rows(path: Path, fields: Fields, report: ReadReport) -> Iterator[Row]:
    """Yield the rows of a file or of all part files; folders called "year=2024" add that column.

    Raises:
        CorpusError: A file is damaged, or its columns are not those that `fields` names.
        MissingExtraError: pyarrow is not installed.
    """
    files = part_files(path)
    partitions = [_partition(file, path) for file in files]
    guesses = {name: ColumnGuess(name) for partition in partitions for name in partition}
    for partition in partitions:
        for name, value in partition.items():
            guesses[name].see(value, "")
    for file, partition in zip(files, partitions, strict=True):
        typed = {key: convert(key, value, guesses[key].kind, named=False) for key, value in partition.items()}
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        try:
            yield from _file_rows(file, name, fields, typed, report)
        except CorpusError as error:
            if len(files) == 1:
                raise
            yield Row(str(file), {}, "", str(error).removeprefix(f"{file}: "))


def _partition(file: Path, root: Path) -> dict[str, str]:
    folders = file.relative_to(root).parts[:-1] if root.is_dir() else ()
    return {name: value for name, equals, value in (folder.partition("=") for folder in folders) if equals}


def _file_rows(
    path: Path, name: str, fields: Fields, partition: Mapping[str, Any], report: ReadReport
) -> Iterator[Row]:
    number = 0
    with open_parquet(path) as table:
        import pyarrow as pa  # open_parquet() says what to do where it is missing

        names = [column for column in table.schema_arrow.names if not column.startswith(_INDEX)]
        check_columns([*names, *partition], fields, str(path), header=False)
        numbered = has_no_ids(names, fields)
        texts = (id_key(names, fields), fields.title, fields.text)
        if fields.metadata is not None:
            kept = {*fields.metadata, "metadata", id_key(names, fields), fields.title, fields.text, fields.vector}
            names = [column for column in names if column in kept]
            partition = {column: value for column, value in partition.items() if column in kept}
        batches = table.iter_batches(batch_size=256, columns=names)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise CorpusError(f"{path}:row {number + 1}: damaged from here on: {error}") from error
            for index in range(batch.num_rows):
                number += 1
                values, fault = dict(partition), ""
                for column_name, column in zip(names, batch.columns, strict=True):
                    if column_name == fields.vector:
                        continue
                    try:
                        values[column_name] = _python(column[index])
                        if column_name in texts and isinstance(values[column_name], bytes):  # as some writers have it
                            values[column_name] = values[column_name].decode()
                    except (ValueError, OverflowError) as error:  # not UTF-8, or a time Python cannot hold
                        values[column_name], fault = str(_raw(column[index])), f'column "{column_name}": {error}'
                raw = values
                if not fault:
                    try:
                        values = {key: _plain(value, f'column "{key}"') for key, value in values.items()}
                        if isinstance(cell := values.get("metadata"), str):
                            values["metadata"] = json_object(cell, "metadata") if cell.strip() else None
                    except RowError as error:
                        values, fault = {}, str(error)
                    else:
                        if fields.vector is not None:
                            values[fields.vector] = _vector(batch.column(fields.vector)[index])
                        if numbered:
                            values = {"id": numbered_id(name, number), **values}
                            report.numbered = report.numbered or values["id"]
                yield Row(f"{path}:row {number}", values, raw, fault)


def _vector(scalar: Any) -> Any:
    """A cell of the column of vectors: an array where it is a list, which is quicker than a list of floats."""
    if not scalar.is_valid or not hasattr(scalar, "values"):
        return scalar.as_py()
    return scalar.values.to_numpy(zero_copy_only=False)


def _python(scalar: Any) -> Any:
    """A value as Python has it, with the nanoseconds that Python's own times lack and the digits that a float had."""
    import pyarrow as pa

    type = scalar.type
    if not scalar.is_valid:
        return None
    if pa.types.is_timestamp(type) and type.unit == "ns" and scalar.value % 1000:
        rounded = pa.scalar(scalar.value // 1000, pa.timestamp("us", type.tz)).as_py()
        head, dot, fraction = rounded.isoformat(timespec="microseconds").partition(".")
        return f"{head}{dot}{fraction[:6]}{scalar.value % 1000:03d}{fraction[6:]}"
    if pa.types.is_float32(type) or pa.types.is_float16(type):
        return _shortest(scalar.as_py(), 16 if pa.types.is_float16(type) else 32)
    if pa.types.is_dictionary(type):
        return _python(scalar.value)
    if pa.types.is_map(type):
        pairs = [(_python(entry["key"]), _python(entry["value"])) for entry in scalar.values]
        named = len({key for key, _ in pairs if isinstance(key, str)}) == len(pairs)
        return dict(pairs) if named else pairs
    if pa.types.is_struct(type):
        return {name: _python(value) for name, value in scalar.items()}
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return [_python(value) for value in scalar.values]
    return scalar.as_py()


def _raw(scalar: Any) -> Any:
    """A value that Python cannot hold, as its bytes or its number."""
    buffer = scalar.as_buffer() if hasattr(scalar, "as_buffer") else None
    return getattr(scalar, "value", scalar) if buffer is None else buffer.to_pybytes()


def _shortest(value: float, bits: int) -> float:
    """The shortest decimal that names a float of so many bits: .1 is .1, and not .10000000149."""
    import numpy as np

    return float(str(np.float32(value) if bits == 32 else np.float16(value)))


def _plain(value: Any, where: str) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, int):
        return _number(Decimal(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    raise RowError(
        f"{where} holds {typename(value)}, which JSON cannot express; "
        "convert it, or name the metadata columns to keep with --metadata-field"
    )


def _number(value: Decimal) -> int | float | str:
    """A decimal as a number, or as a string if a number would change it."""
    if not value.is_finite():
        return str(value)
    if value.as_tuple().exponent == 0:
        return int(value) if -(2**63) <= value < 2**63 else str(value)
    return float(value) if Decimal(repr(float(value))) == value else str(value)


def open_parquet(path: Path) -> Any:
    """Open a Parquet file, or raise CorpusError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("reading .parquet needs pyarrow: pip install 'searchkit[files]'") from error
    try:
        return pq.ParquetFile(path, buffer_size=2**20)  # without a buffer whole row groups are held in memory
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: cannot be read as Parquet: {error}") from error
