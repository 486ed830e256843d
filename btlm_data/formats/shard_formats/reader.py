"""Read shards: the one reader, of training, `verify`, `inspect` and `export`.

It reads what btlm-data writes and what other writers make of one dataset `data` of numbers: in one stretch,
or in chunks through gzip, shuffle, fletcher32 or lzf. A chunk's stored bytes are fetched by one read of the
operating system and inflated by ISA-L, both outside the interpreter's lock; no HDF5 library is involved
(hdf5_head.py says why), no lock is taken or minded, and no other file is ever touched. Whatever else the file
may be is refused with a message.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats import format_of_rows, hdf5_head
from btlm_data.formats.shard_formats.base import ShardFormat
from btlm_data.formats.shard_formats.byte_source import ByteSource, LocalFile
from btlm_data.formats.shard_formats.hdf5_chunks import (
    ChunkNode,
    ChunkTable,
    Inner,
    find_chunk,
    read_chunk_table,
)
from btlm_data.formats.shard_formats.hdf5_file import Damaged, Head, NotPlain
from btlm_data.formats.shard_formats.unpack import Torn, unpack

_MOST_LOOKUPS = 16  # in an index of chunks, before all of it is read
_REMEDY = "Restore it from a copy, or remove it and run the command that made it again."


class ShardLayout(msgspec.Struct, frozen=True):
    """What a file holds, as far as can be determined without reading its data; n_examples is the attribute
    (None: not there).
    """

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None
    compression: str | None
    hdf5_shuffle: bool
    n_examples: int | None
    num_bytes: int

    @property
    def shard_format(self) -> ShardFormat | None:
        """The format whose rows these are, by their shape; None if it is no known one."""
        return format_of_rows(self.shape[1:])

    @property
    def format_name(self) -> str:
        """The format's name, or "other"."""
        return self.shard_format.name if self.shard_format is not None else "other"


class ShardReader:
    """The dataset `data` of one open shard: its shape and dtype, and its rows in the stored dtype.

    Rows are the entries of axis 0 (tokens in the corpus layout). The last block of rows decoded is kept where
    a chunk holds several. For one thread at a time; open one reader a thread. May be forked: nothing of its
    state is shared. Raises DataError, naming the file, where it is missing, damaged or no plain shard;
    OSError where this process may open no more files.
    """

    def __init__(
        self,
        source: ByteSource | str | os.PathLike[str],
        stored: hdf5_head.Stored | None = None,
        *,
        reads_few: bool = False,
    ) -> None:
        """stored: another dataset of the file than `data`, whose head has been read. reads_few: rows here and there are
        read, so the index of chunks is looked up, not read.
        """
        if isinstance(source, (str, os.PathLike)):
            source = LocalFile(source, reads_few=reads_few)
        self.source = source
        self.name = source.name
        try:
            self._stored = stored or hdf5_head.read_head(source)
        except Damaged as error:
            source.close()
            raise DataError(f"{self.name} is not a readable HDF5 file: {error}. {_REMEDY}") from None
        except NotPlain as error:
            source.close()
            raise DataError(f"{self.name} is not a shard: {error}. {_REMEDY}") from None
        except OSError as error:
            source.close()
            raise DataError(f"{self.name} cannot be read: {error.strerror or error}. {_REMEDY}") from error
        self.shape = self._stored.shape
        self.dtype = self._stored.dtype
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        self._kept: tuple[int, npt.NDArray[Any]] | None = None
        self._chunks = self._stored.chunks
        self._table: ChunkTable | None = None
        if self._chunks is not None:
            self._chunk_bytes = self._stored.chunk_bytes
            self._per_row = self._stored.chunks_a_row
            self._whole_row = self._chunks == (1, *self.shape[1:])
        self._lookups = _MOST_LOOKUPS if reads_few and self._whole_row else 0
        self._node: ChunkNode | None = None  # looked up last
        self._inner: Inner = {}

    @property
    def layout(self) -> ShardLayout:
        """What the head of the file says."""
        filters = self._stored.filters
        named = {hdf5_head.DEFLATE: "gzip", hdf5_head.LZF: "lzf"}
        return ShardLayout(
            shape=self.shape,
            dtype=str(self.dtype),
            chunks=self._chunks,
            compression=next((named[number] for number in filters if number in named), None),
            hdf5_shuffle=hdf5_head.SHUFFLE in filters,
            n_examples=self._stored.n_examples,
            num_bytes=self.source.size,
        )

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop), within the file. Raises DataError, naming the first row that cannot be read.
        Returns (stop - start, ...) in the dtype of the file.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"{self.name}: rows {start} to {stop} of {self.shape[0]}")
        try:
            if self._chunks is None:
                return self._from_stretch(start, stop)
            if self._whole_row and stop - start == 1:  # a sample of our own shards
                return self._chunk(start)
            return self._from_chunks(start, stop)
        except _Row as error:
            detail = f"row {min(max(error.row, start), stop - 1)} of {self.shape[0]} cannot be read ({error})"
            raise DataError(f"{self.name} is damaged: {detail}. {_REMEDY}") from None
        except OSError as error:
            raise DataError(
                f"{self.name} cannot be read: {error.strerror or error} (rows {start} to {stop}). {_REMEDY}"
            ) from error

    def first_planes(
        self, start: int, stop: int, chosen: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[Any]:
        """The first plane (ids) of rows [start, stop) of samples: (n, L). Of our own shards only that part is
        inflated.

        chosen: (stop - start,) bool, the rows to be read, where not all of them are; n is their number.
        Raises DataError, as `read`. The dtype is that of the file.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"{self.name}: rows {start} to {stop} of {self.shape[0]}")
        if not self._has_streams:
            planes = self.read(start, stop)[:, 0, :]
            return planes if chosen is None else planes[chosen]
        stored, begins, sizes = self._stored_rows(np.arange(start, stop))
        if chosen is None:
            return self._beginnings(np.arange(start, stop), stored, begins, sizes)
        numbers = np.flatnonzero(chosen)
        return self._beginnings(start + numbers, stored, begins[numbers], sizes[numbers])

    def first_planes_at(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """As `first_planes`, of rows that ascend and may be far from each other: nothing between them is read.

        rows: (n,) int64. Returns (n, L).
        """
        if len(rows) and not 0 <= rows[0] <= rows[-1] < self.shape[0]:
            raise ValueError(f"{self.name}: rows {rows[0]} to {rows[-1]} of {self.shape[0]}")
        if not self._has_streams:
            planes = [self.read(row, row + 1)[:, 0, :] for row in rows.tolist()]
            return np.concatenate([np.empty((0, self.shape[2]), self.dtype), *planes])
        return self._beginnings(rows, *self._stored_rows(rows))

    @property
    def _has_streams(self) -> bool:
        """Whether each row is a chunk with a zlib stream, as in our own shards of samples."""
        return self._chunks is not None and self._whole_row and self._stored.filters == (hdf5_head.DEFLATE,)

    def _beginnings(
        self,
        rows: npt.NDArray[np.int64],
        stored: npt.NDArray[np.uint8],
        begins: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
    ) -> npt.NDArray[Any]:
        """The first plane of rows, out of what `_stored_rows` has of them."""
        from btlm_data.kernels.inflate import inflate_beginnings

        data, is_done = inflate_beginnings(stored, begins, sizes, self.shape[2] * self.dtype.itemsize)
        planes = data.view(self.dtype)
        for k in np.flatnonzero(~is_done).tolist():  # of another writer, or damaged: this one says how
            row = int(rows[k])
            planes[k] = self.read(row, row + 1)[0, 0]
        return planes

    def _stored_rows(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The stored bytes of some rows, a chunk each, as kernels/inflate.py takes them; a size of 0 where they are not as
        our own shards have them.

        Raises DataError.
        """
        from btlm_data.kernels.inflate import MARGIN

        table = self._table or self._read_table()
        offsets = np.asarray(table.offsets[rows], np.int64)
        sizes = np.array(table.sizes[rows], np.int64)
        is_plain = (offsets >= 0) & (sizes <= 2 * self._chunk_bytes + 1024)
        if table.skipped is not None:
            is_plain &= np.asarray(table.skipped[rows]) == 0
        sizes[~is_plain] = 0
        begins = np.cumsum(sizes) - sizes
        parts = []
        edges = (np.flatnonzero(offsets[1:] != offsets[:-1] + sizes[:-1]) + 1).tolist()
        for low, high in pairwise([0, *edges, len(sizes)]):  # chunks that follow each other are read at once
            count = int(sizes[low:high].sum())
            try:
                part = self.source.read_at(int(offsets[low]), count) if count else b""
            except OSError as error:
                raise DataError(
                    f"{self.name} cannot be read: {error.strerror or error} (row {int(rows[low])}). {_REMEDY}"
                ) from error
            parts.append(part.ljust(count, b"\0"))
            if len(part) < count:
                sizes[low:high] = 0
        parts.append(bytes(MARGIN))
        return np.frombuffer(b"".join(parts), np.uint8), begins, sizes

    @property
    def chunk_rows(self) -> int | None:
        """Rows in a chunk, where a row of chunks is one chunk through the same filters; None for other files."""
        if self._chunks is None or self._chunks[1:] != self.shape[1:]:
            return None
        table = self._table or self._read_table()
        is_plain = table.skipped is None or not np.asarray(table.skipped).any()
        return self._chunks[0] if is_plain and bool((np.asarray(table.offsets) >= 0).all()) else None

    def pieces(self, max_bytes: int = 1 << 26) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """All rows in order, as (first row, rows), at most max_bytes (but at least one row) at a time.

        Raises DataError that names the first unreadable row. Rows are (n, ...) in the dtype of the file.
        """
        step = max(1, max_bytes // max(1, self._row_bytes))
        if self._chunks and step > self._chunks[0]:
            step -= step % self._chunks[0]  # never unpack a chunk twice
        for start in range(0, self.shape[0], step):
            yield start, self.read(start, min(start + step, self.shape[0]))

    def stored_ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Where the stored bytes of rows [start, stop) are in the file: (offset, bytes) each."""
        if stop <= start or self._stored.inline is not None:
            return []
        if self._chunks is None:
            offset = self._stored.base + self._stored.address + start * self._row_bytes
            return [(offset, (stop - start) * self._row_bytes)] if self._row_bytes else []
        table = self._table or self._read_table()
        first, last = start // self._chunks[0], (stop - 1) // self._chunks[0]
        numbers = slice(first * self._per_row, (last + 1) * self._per_row)
        written = zip(table.offsets[numbers].tolist(), table.sizes[numbers].tolist(), strict=True)
        return [(offset, size) for offset, size in written if offset >= 0]

    def stretches(self, rows: int) -> npt.NDArray[np.int64]:
        """Where every `rows` rows are stored, of a file in one stretch or with chunks of so many (`chunk_rows`):
        (n, 2) int64, offset and bytes.
        """
        if self._chunks is not None:
            table = self._table or self._read_table()
            return np.stack([np.asarray(table.offsets, np.int64), np.asarray(table.sizes, np.int64)], axis=1)
        firsts = np.arange(0, self.shape[0], rows)
        counts = np.minimum(firsts + rows, self.shape[0]) - firsts
        begin = self._stored.base + self._stored.address
        return np.stack([begin + firsts * self._row_bytes, counts * self._row_bytes], axis=1)

    def carries_checksums(self) -> bool:
        """Whether a wrong byte in any row would be noticed: chunks all written, each with gzip's or HDF5's
        own checksum.
        """
        if self._chunks is None:
            return False
        checking = [
            1 << position
            for position, number in enumerate(self._stored.filters)
            if number in (hdf5_head.DEFLATE, hdf5_head.FLETCHER32)
        ]
        table = self._table or self._read_table()
        if not checking or (table.offsets < 0).any():
            return False
        skipped = 0 if table.skipped is None else int(np.bitwise_or.reduce(table.skipped, initial=0))
        return any(not skipped & bit for bit in checking)

    def forget(self) -> None:
        """Drop the block of rows decoded last, which takes memory."""
        self._kept = None

    def close(self) -> None:
        """Close the file."""
        self.source.close()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _from_stretch(self, start: int, stop: int) -> npt.NDArray[Any]:
        shape = (stop - start, *self.shape[1:])
        size = (stop - start) * self._row_bytes
        offset = start * self._row_bytes
        if self._stored.inline is not None:
            data = self._stored.inline[offset : offset + size]
        else:
            data = (
                self.source.read_at(self._stored.base + self._stored.address + offset, size) if size else b""
            )
        if len(data) != size:
            raise _Row(start + len(data) // self._row_bytes, "the file ends early")
        return np.frombuffer(data, self.dtype).reshape(shape)

    def _from_chunks(self, start: int, stop: int) -> npt.NDArray[Any]:
        assert self._chunks is not None
        step = self._chunks[0]
        if stop <= start:
            return np.empty((0, *self.shape[1:]), self.dtype)
        first, last = start // step, (stop - 1) // step
        if first == last:
            return self._block(first)[start - first * step : stop - first * step]
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for number in range(first, last + 1):
            at = number * step
            begin, end = max(at, start), min(at + step, stop)
            rows[begin - start : end - start] = self._block(number)[begin - at : end - at]
        return rows

    def _block(self, number: int) -> npt.NDArray[Any]:
        """Rows [number * chunk rows, ...), a whole chunk's worth; past the end of the dataset they have no
        meaning.
        """
        assert self._chunks is not None
        if self._kept is not None and self._kept[0] == number:
            return self._kept[1]
        if self._per_row == 1:
            block = self._chunk(number)[(slice(None), *map(slice, self.shape[1:]))]
        else:
            block = np.empty((self._chunks[0], *self.shape[1:]), self.dtype)
            starts = (range(0, *axis) for axis in zip(self.shape[1:], self._chunks[1:], strict=True))
            for index, corner in enumerate(itertools.product(*starts)):
                bounds = zip(corner, self._chunks[1:], strict=True)
                target = block[(slice(None), *(slice(at, at + size) for at, size in bounds))]
                target[...] = self._chunk(number * self._per_row + index)[tuple(map(slice, target.shape))]
        if self._chunks[0] > 1:
            self._kept = number, block
        return block

    def _chunk(self, number: int) -> npt.NDArray[Any]:
        """One chunk by its number in the grid. A chunk never written holds the fill value."""
        assert self._chunks is not None
        offset, size, skipped = self._place(number)
        if offset < 0:
            fill = np.frombuffer(self._stored.fill, self.dtype)
            return np.full(self._chunks, fill, self.dtype)
        stored = self.source.read_at(offset, size)
        try:
            data = unpack(stored, self._stored.filters, skipped, self._chunk_bytes, self.dtype.itemsize)
        except Torn as error:
            raise _Row(number // self._per_row * self._chunks[0], str(error)) from None
        return np.frombuffer(data, self.dtype).reshape(self._chunks)

    def _place(self, number: int) -> tuple[int, int, int]:
        """Where a chunk is, its bytes, and the filters that were left out of it."""
        table = self._table
        if table is None and self._lookups:
            node = self._node
            if node is None or not node.first <= number < node.first + len(node.table.offsets):
                self._lookups -= 1
                head = Head(self.source, self._stored.base)
                node = self._node = find_chunk(head, self._stored, number, self._inner)
            if node is not None:
                table, number = node.table, number - node.first
        table = table or self._read_table()
        skipped = 0 if table.skipped is None else int(table.skipped[number])
        return int(table.offsets[number]), int(table.sizes[number]), skipped

    def _read_table(self) -> ChunkTable:
        head = Head(self.source, self._stored.base)
        try:
            self._table = read_chunk_table(head, self._stored)
        except Damaged as error:
            raise DataError(f"{self.name} is damaged: {error}. {_REMEDY}") from None
        return self._table


class _Row(Exception):
    """A row that cannot be read."""

    def __init__(self, row: int, words: str) -> None:
        super().__init__(words)
        self.row = row


def read_shard_info(path: Path) -> ShardLayout:
    """What `path` holds. Raises DataError if it is not a shard: missing, torn, without `data`."""
    with ShardReader(path) as shard:
        return shard.layout


def read_rows(path: Path, start: int, stop: int) -> npt.NDArray[Any]:
    """Rows [start, stop) of a shard, as far as it has them, in the dtype of the file. Raises DataError if
    they cannot be read. Shape (n, ...).
    """
    with ShardReader(path) as shard:
        return shard.read(start, max(start, min(stop, shard.shape[0])))


def iter_chunks(path: Path, max_bytes: int = 1 << 26) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """All rows of a shard in order, as `ShardReader.pieces`. Rows are (n, ...) in the dtype of the file."""
    with ShardReader(path) as shard:
        yield from shard.pieces(max_bytes)
