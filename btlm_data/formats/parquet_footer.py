"""Footers of parquet files that end the process: found before pyarrow looks at a column of them.

pyarrow reads what a footer says of a column chunk (`metadata.row_group(g).column(c)`) through a C++
constructor that raises for statistics of the wrong length and for encrypted columns, where nothing catches
it: the process is aborted. So whoever uses that on a file from outside calls `check_footer` first.

Source: parquet-format, parquet.thrift (FileMetaData: 4 row_groups; RowGroup: 1 columns; ColumnChunk: 3
meta_data, 8 crypto_metadata, 9 encrypted_column_metadata; ColumnMetaData: 16 size_statistics; SizeStatistics:
1 unencoded_byte_array_data_bytes, 2 repetition_level_histogram, 3 definition_level_histogram).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import xxhash

from btlm_data.formats.thrift_compact import BINARY, LISTS, STRUCT, Compact

_TAIL = 8  # the footer's length, little-endian, and PAR1
_MAX_KNOWN = 4096
_known: dict[bytes, None] = {}  # hashes of footers that are in order


class _Column(NamedTuple):
    """A leaf of the schema: highest levels, and whether its values are byte arrays."""

    max_repetition: int
    max_definition: int
    is_byte_array: bool


def check_footer(file: BinaryIO, table: Any) -> None:
    """Look through the footer of a parquet file, open for reading bytes. table: pyarrow's ParquetFile of the
    same.

    Raises ValueError where pyarrow would end the process.
    """
    file.seek(-_TAIL, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-_TAIL - length, os.SEEK_END)
    footer = file.read(length)
    digest = xxhash.xxh3_128_digest(footer)
    if digest in _known:
        return
    leaves = [table.schema.column(number) for number in range(len(table.schema))]
    columns = [
        _Column(leaf.max_repetition_level, leaf.max_definition_level, leaf.physical_type == "BYTE_ARRAY")
        for leaf in leaves
    ]
    try:
        _check(Compact(footer), columns)
    except IndexError:
        raise ValueError("its footer ends too early") from None
    if len(_known) >= _MAX_KNOWN:
        _known.clear()
    _known[digest] = None


def _check(data: Compact, columns: Sequence[_Column]) -> None:
    for number, kind in data.fields():
        if number == 4 and kind in LISTS:
            for _ in _structs(data, None):
                for field, inner in data.fields():
                    if field == 1 and inner in LISTS:
                        for index in _structs(data, len(columns)):
                            _check_chunk(data, columns[index])
                    else:
                        data.skip(inner)
        else:
            data.skip(kind)


def _structs(data: Compact, expected: int | None) -> Iterator[int]:
    """Numbers of the elements of a list of structs; the caller reads each."""
    count, kind = data.list_of()
    if kind != STRUCT and count:
        raise ValueError("its footer is damaged")
    if expected is not None and count != expected:
        raise ValueError(f"a row group has {count} columns, and the schema {expected}")
    yield from range(count)


def _check_chunk(data: Compact, column: _Column) -> None:
    for number, kind in data.fields():
        if (number == 8 and kind == STRUCT) or (number == 9 and kind == BINARY):
            raise ValueError("it is encrypted")
        if number == 3 and kind == STRUCT:
            for field, inner in data.fields():
                if field == 16 and inner == STRUCT:
                    _check_sizes(data, column)
                else:
                    data.skip(inner)
        else:
            data.skip(kind)


def _check_sizes(data: Compact, column: _Column) -> None:
    for number, kind in data.fields():
        if number in (2, 3) and kind in LISTS:
            count, inner = data.list_of()
            for _ in range(count):
                data.skip(inner)
            expected = (column.max_repetition if number == 2 else column.max_definition) + 1
            if count not in (0, expected):
                raise ValueError(f"statistics of {count} levels for a column that has {expected}")
        else:
            if number == 1 and not column.is_byte_array:
                raise ValueError("statistics of byte arrays for a column of another type")
            data.skip(kind)
