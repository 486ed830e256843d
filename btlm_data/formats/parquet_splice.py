"""Parquet files of one schema put one behind the other without decoding them: row groups are copied as they are, and
their places in the footers are moved on.

What comes out is, byte for byte, the file that one writer would have made of the same row groups. So tables that many
tasks have encoded become one file at the speed of copying.

Source: parquet-format, parquet.thrift (FileMetaData: 3 num_rows, 4 row_groups; RowGroup: 1 columns, 3 num_rows,
5 file_offset, 7 ordinal; ColumnChunk: 2 file_offset, 3 meta_data, 4 to 7 places of indexes; ColumnMetaData:
9 data_page_offset, 10 index_page_offset, 11 dictionary_page_offset, 14 bloom_filter_offset).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from btlm_data.errors import DataError
from btlm_data.formats.thrift_compact import LISTS, STRUCT, Compact

MAGIC = b"PAR1"
_TAIL = 8  # the footer's length, little-endian, and the magic
_MAX_ORDINAL = 2**15 - 1  # of a row group: 16 bits, and optional
_LIST, _I16, _I64 = 9, 4, 6
# Encodes the value of a field, or returns None to leave it as it is.
Change = Callable[[int, int], bytes | None]


class Writer(Protocol):
    """What a table is written to, from its beginning to its end."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Write the next bytes."""


def splice(out: Writer, parts: Iterable[bytes]) -> None:
    """Write the row groups of all parts, at least one, as one file.

    parts: whole parquet files, without page indexes and Bloom filters. Raises DataError for one that is damaged, or whose
    schema or writer is another than the first one's.
    """
    row_groups: list[bytes] = []
    num_rows = 0
    first: _Footer | None = None
    position = len(MAGIC)
    for part in parts:
        footer = _Footer.read(part)
        if first is None:
            first = footer
            out.write(MAGIC)
        if footer.frame != first.frame:
            raise DataError("Two parts of a table have different columns. Rerun the same command.")
        body = memoryview(part)[len(MAGIC) : footer.begin]
        for data in footer.row_groups:
            row_groups.append(_moved(data, position - len(MAGIC), len(row_groups)))
        num_rows += footer.num_rows
        out.write(body)
        position += len(body)
    assert first is not None, "a table has at least one part"
    head = bytes([min(len(row_groups), 15) << 4 | STRUCT])
    head += _varint(len(row_groups)) if len(row_groups) >= 15 else b""
    values = {3: _encoded(num_rows), 4: b"".join([head, *row_groups])}
    metadata = _struct(Compact(first.data), lambda number, _: values.get(number))
    out.write(metadata + len(metadata).to_bytes(4, "little") + MAGIC)


class _Footer:
    """The footer of a part. frame: all of it but rows and row groups. begin: where it begins in the file."""

    def __init__(self, data: bytes, begin: int) -> None:
        self.data, self.begin = data, begin
        self.num_rows, self.row_groups = 0, list[bytes]()
        compact = Compact(data)

        def look(number: int, kind: int) -> bytes | None:
            if number == 3 and kind == _I64:
                self.num_rows = compact.integer()
                return b""
            if number == 4 and kind in LISTS:
                count, _ = compact.list_of()
                for _ in range(count):
                    start = compact.position
                    compact.skip(STRUCT)
                    self.row_groups.append(data[start : compact.position])
                return b""
            return None

        self.frame = _struct(compact, look)

    @staticmethod
    def read(part: bytes) -> _Footer:
        """Of a whole file. Raises DataError."""
        length = int.from_bytes(part[-_TAIL:-4], "little")
        begin = len(part) - _TAIL - length
        if part[:4] != MAGIC or part[-4:] != MAGIC or begin < len(MAGIC):
            raise DataError("A part of a table is no parquet file. Rerun the same command.")
        try:
            return _Footer(part[begin:-_TAIL], begin)
        except (IndexError, ValueError) as error:
            raise DataError(f"A part of a table is damaged ({error}). Rerun the same command.") from error


def _moved(row_group: bytes, by: int, ordinal: int) -> bytes:
    """A row group as the `ordinal`-th of a file in which its pages are `by` bytes later."""
    data = Compact(row_group)

    def place() -> bytes:
        value = data.integer()
        return _encoded(value + by if value > 0 else value)

    def of_metadata(number: int, kind: int) -> bytes | None:
        return place() if number in (9, 10, 11, 14) and kind == _I64 else None

    def of_chunk(number: int, kind: int) -> bytes | None:
        if number in (4, 5, 6, 7):
            raise DataError("A part of a table has a page index. Rerun the same command.")
        if number == 3 and kind == STRUCT:
            return _struct(data, of_metadata)
        return place() if number == 2 and kind == _I64 else None

    def of_group(number: int, kind: int) -> bytes | None:
        if number == 1 and kind in LISTS:
            start = data.position
            count, _ = data.list_of()
            return row_group[start : data.position] + b"".join(_struct(data, of_chunk) for _ in range(count))
        if number == 7 and kind == _I16:
            data.integer()
            return _encoded(min(ordinal, _MAX_ORDINAL))
        return place() if number == 5 and kind == _I64 else None

    return _struct(data, of_group)


def _struct(data: Compact, change: Change) -> bytes:
    """A struct again, with some of its values changed. `change` moves on behind a value that it encodes, unless it
    returns what it knows already.
    """
    out = bytearray()
    previous = 0
    for number, kind in data.fields():
        step = number - previous
        out += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _encoded(number)
        previous = number
        start = data.position
        value = change(number, kind)
        if value is None or data.position == start:
            data.skip(kind)
        out += data.since(start) if value is None else value
    out.append(0)
    return bytes(out)


def _encoded(value: int) -> bytes:
    """A signed number."""
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
