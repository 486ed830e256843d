"""How much memory reading a column of a parquet file can take, learned from its page headers.

A few kB of parquet can stand for gigabytes: a page names the size it decompresses to; a dictionary page holds
each value once, however many rows name it; DELTA_BYTE_ARRAY stores of each value only what differs from the
one before. The reader uses exactly the sizes in the page headers, so reading the headers first tells what to
expect.

Source: parquet-format, parquet.thrift (PageHeader: 1 type, 2 uncompressed_page_size, 3 compressed_page_size).
"""

from __future__ import annotations

from typing import Any, BinaryIO

import msgspec

from btlm_data.formats.thrift_compact import INTEGERS, Compact

_DICTIONARY_PAGE = 2
_HEADER_BYTES = 2**12  # most headers are below 100 bytes; statistics of long values make some longer
_MAX_HEADER_BYTES = 2**24


class ColumnBounds(msgspec.Struct, frozen=True):
    """Of one column of one row group, in bytes. page: the largest page; value: the longest that one value can
    be, where values are shared.

    value is 0 where no value takes more memory than its share of a page.
    """

    page: int
    value: int


UNKNOWN = ColumnBounds(0, 2**62)


def column_bounds(file: BinaryIO, column: Any) -> ColumnBounds:
    """The bounds of a column chunk (pyarrow's ColumnChunkMetaData); UNKNOWN where its pages cannot be
    followed.
    """
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset is not None:
        start = min(start, column.dictionary_page_offset)
    end = start + column.total_compressed_size
    largest, dictionary, position = 0, 0, start
    while position < end:
        header = _page_header(file, position, min(_MAX_HEADER_BYTES, end - position))
        if header is None:
            return UNKNOWN
        length, kind, uncompressed, compressed = header
        if compressed < 0 or uncompressed < 0:
            return UNKNOWN
        largest = max(largest, uncompressed)
        if kind == _DICTIONARY_PAGE:
            dictionary = max(dictionary, uncompressed)
        position += length + compressed
    prefixed = any("DELTA_BYTE_ARRAY" in encoding for encoding in column.encodings)
    return ColumnBounds(largest, largest if prefixed else dictionary)


def _page_header(file: BinaryIO, position: int, most: int) -> tuple[int, int, int, int] | None:
    """(length of the header, page type, uncompressed size, compressed size) of the page at `position`."""
    wanted = min(_HEADER_BYTES, most)
    while True:
        file.seek(position)
        data = file.read(wanted)
        try:
            values, length = _page_header_of(Compact(data))
        except IndexError:
            if len(data) < wanted or wanted >= most:
                return None
            wanted = min(wanted * 16, most)
            continue
        except ValueError:
            return None
        if not {1, 2, 3} <= values.keys():
            return None
        return length, values[1], values[2], values[3]


def _page_header_of(data: Compact) -> tuple[dict[int, int], int]:
    """The integer fields of the struct, and its length."""
    values: dict[int, int] = {}
    for number, kind in data.fields():
        if kind in INTEGERS:
            values[number] = data.integer()
        else:
            data.skip(kind)
    return values, data.position
