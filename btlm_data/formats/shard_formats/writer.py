"""Shards: what training reads. One HDF5 file holds one dataset `data`.

    sample   (n, 3, L) int32, chunks (1, 3, L): plane 0 input_ids, plane 1 attention_mask (1 on real positions: it is the
             loss mask), plane 2 labels = the next token; 0 in all three planes where padded
    vsl      (n, 5, L) int32, chunks (1, 5, L): the same three, then attention_span and position_ids
    corpus   (n,) uint16 or int32, chunks of 8192: the token stream itself

Chunks go through HDF5's own gzip filter (and its shuffle filter on request), or the data is contiguous and uncompressed. The
file attribute `n_examples` repeats the length of axis 0. There are no timestamps; the same rows and options give the same
bytes. Shards of other writers (any numeric type, any layout the HDF5 library reads) can be read as well.

Level 1 is kernels/deflate.py, which knows what a sample is; it is faster and smaller than zlib's default level and does not depend
on a library's version. Higher levels are zlib's, and the shuffle filter's chunks are ISA-L's at level 1: other versions of those
libraries may give other bytes (of the same data).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from btlm_data.formats.shard_formats import hdf5_layout
from btlm_data.storage import digest

Compression = Literal["gzip", "none"]
ElementType = Literal["int32", "uint16"]

CORPUS_CHUNK = 8192  # tokens: a sample of 2,048 touches one or two chunks
_BATCH_UNITS = 1 << 23  # elements compressed at once, with one Huffman code: bounds memory


@dataclass(frozen=True)
class ShardOptions:
    """How a shard's bytes are stored; the values a reader gets do not depend on it.

    level: 1 (fast) to 9, of gzip; hdf5_shuffle: HDF5's shuffle filter before gzip (5% smaller, half the reading speed);
    dtype: int32, or uint16 where the vocabulary fits.
    """

    compression: Compression = "gzip"
    level: int = 1
    hdf5_shuffle: bool = False
    dtype: ElementType = "int32"


@dataclass(frozen=True)
class ShardInfo:
    """A finished shard: rows (tokens in the corpus layout), real label positions, the file's sha256 and size in bytes."""

    n_examples: int
    num_tokens: int
    sha256: str
    num_bytes: int


def write_samples(
    file: BinaryIO,
    rows: npt.NDArray[Any],
    num_real: npt.NDArray[np.int64] | None = None,
    options: ShardOptions | None = None,
) -> ShardInfo:
    """Write a sample shard into an empty file, open for reading and writing.

    rows: (n, L+1) uint16 or uint32, any strides: the L inputs of a sample and the label of its last position, L >= 1. num_real: (n,) how many
    label positions of each row are real; from there on all three planes are 0 (all L by default; rows' values there do not matter).
    """
    options = options or ShardOptions()
    n, length = rows.shape[0], rows.shape[1] - 1
    full = np.ones(n, bool) if num_real is None else num_real >= length
    with _Writer(file, (n, 3, length), (1, 3, length), options) as writer:
        if writer.plain and options.dtype == "int32":
            step = max(1, _BATCH_UNITS // (length + 1))
            for start in range(0, n, step):
                writer.add_samples(rows[start : start + step], full[start : start + step], num_real, start)
        else:
            step = max(1, _BATCH_UNITS // (3 * length))
            for start in range(0, n, step):
                writer.add(
                    _planes(
                        rows[start : start + step],
                        None if num_real is None else num_real[start : start + step],
                    )
                )
    return writer.info(n * length if num_real is None else int(num_real.sum()))


def write_vsl(
    file: BinaryIO, planes: npt.NDArray[np.int32], options: ShardOptions | None = None
) -> ShardInfo:
    """Write planes (n, 5, L) int32 as a VSL shard into an empty file, open for reading and writing."""
    options = options or ShardOptions()
    with _Writer(file, planes.shape, (1, *planes.shape[1:]), options) as writer:
        step = max(1, _BATCH_UNITS // max(1, planes[0].size if len(planes) else 1))
        for start in range(0, len(planes), step):
            writer.add(planes[start : start + step])
    return writer.info(int(planes[:, 1].sum(dtype=np.int64)))


def write_corpus(
    file: BinaryIO,
    tokens: npt.NDArray[Any] | Iterable[npt.NDArray[Any]],
    total: int | None = None,
    options: ShardOptions | None = None,
) -> ShardInfo:
    """Write a token stream as a corpus shard into an empty file, open for reading and writing.

    tokens: one 1-D array, or arrays that hold `total` tokens together, in order.
    """
    options = options or ShardOptions(dtype="uint16")
    if isinstance(tokens, np.ndarray):
        total, tokens = len(tokens), [tokens]
    if total is None:
        raise ValueError("`total` tells how many tokens the arrays hold together; give it.")
    chunk = max(1, min(total, CORPUS_CHUNK))
    written = 0
    with _Writer(file, (total,), (chunk,), options) as writer:
        for piece in _regrouped(tokens, chunk * (_BATCH_UNITS // chunk), np.dtype(options.dtype)):
            written += len(piece)
            if options.compression == "gzip" and len(piece) % chunk:
                # The last chunk is stored whole; what lies beyond the dataset is never read.
                piece = np.pad(piece, (0, -len(piece) % chunk))
            writer.add(piece.reshape(-1, chunk) if options.compression == "gzip" else piece)
        if written != total:
            raise ValueError(
                f"the arrays hold {written} tokens, not the announced {total}. Announce what they hold."
            )
    return writer.info(total)


def _planes(rows: npt.NDArray[Any], num_real: npt.NDArray[np.int64] | None) -> npt.NDArray[np.uint32]:
    """Token rows (k, L+1) as planes (k, 3, L)."""
    k, length = rows.shape[0], rows.shape[1] - 1
    planes = np.empty((k, 3, length), np.uint32)
    planes[:, 0], planes[:, 1], planes[:, 2] = rows[:, :-1], 1, rows[:, 1:]
    if num_real is not None:
        planes *= (np.arange(length) < num_real[:, None])[:, None]
    return planes


def _regrouped(
    arrays: Iterable[npt.NDArray[Any]], size: int, dtype: np.dtype[Any]
) -> Iterator[npt.NDArray[Any]]:
    """The same elements in pieces of exactly `size`, the last one shorter."""
    piece, filled = np.empty(size, dtype), 0
    for array in arrays:
        taken = 0
        while taken < len(array):
            count = min(size - filled, len(array) - taken)
            piece[filled : filled + count] = array[taken : taken + count]
            taken, filled = taken + count, filled + count
            if filled == size:
                yield piece
                piece, filled = np.empty(size, dtype), 0
    if filled:
        yield piece[:filled]


class _Writer:
    """One shard under construction: chunks are appended to an open file; leaving the block well completes it."""

    def __init__(
        self, file: BinaryIO, shape: tuple[int, ...], chunks: tuple[int, ...], options: ShardOptions
    ) -> None:
        zipped = options.compression == "gzip"
        self.file = file
        self.options = options
        self.plain = zipped and not options.hdf5_shuffle and options.level == 1
        self.dataset = hdf5_layout.Dataset(
            shape=shape,
            dtype="<i4" if options.dtype == "int32" else "<u2",
            chunks=chunks if zipped else None,
            gzip=options.level if zipped else None,
            shuffle=zipped and options.hdf5_shuffle,
            attributes={"n_examples": shape[0]},
        )
        self.start = self.end = hdf5_layout.head_size(self.dataset)
        self.sizes: list[npt.NDArray[np.int64]] = []
        self.result = ("", 0)

    def __enter__(self) -> _Writer:
        self.file.write(bytes(self.start))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()

    def info(self, num_tokens: int) -> ShardInfo:
        """What was written, once the block is left."""
        return ShardInfo(self.dataset.shape[0], num_tokens, *self.result)

    def add_samples(
        self,
        rows: npt.NDArray[Any],
        full: npt.NDArray[np.bool_],
        num_real: npt.NDArray[np.int64] | None,
        start: int,
    ) -> None:
        """Append token rows as samples; rows that are not full go the general way."""
        from btlm_data.kernels import deflate  # numba: readers of shards do without it

        borders = np.flatnonzero(np.diff(full)) + 1
        for first, last in zip([0, *borders], [*borders, len(rows)], strict=True):
            if full[first]:
                self._append(*deflate.deflate_samples(rows[first:last]))
            else:
                assert num_real is not None
                self.add(_planes(rows[first:last], num_real[start + first : start + last]))

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Append rows, one chunk each (contiguous where the shard is not compressed)."""
        rows = np.ascontiguousarray(rows, self.dataset.dtype)
        if self.dataset.chunks is None:
            self._write(rows.reshape(-1).view(np.uint8).data)
            return
        rows = rows.reshape(len(rows), -1)
        if self.plain:
            from btlm_data.kernels import deflate

            shape = self.dataset.shape
            labels = 2 * shape[2] - 1 if len(shape) == 3 else 0  # how far behind the inputs they repeat them
            self._append(*deflate.deflate_units(rows.view(f"<u{rows.itemsize}"), rows.itemsize, labels))
            return
        pieces = []
        for row in rows:
            stored = (
                row.view(np.uint8).reshape(-1, rows.itemsize).T.tobytes()
                if self.options.hdf5_shuffle
                else row.tobytes()
            )
            pieces.append(
                isal_zlib.compress(stored, 1)
                if self.options.level == 1
                else zlib.compress(stored, self.options.level)
            )
        joined = np.frombuffer(b"".join(pieces), np.uint8)
        self._append(joined, np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]))

    def _append(self, stored: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        self.sizes.append(np.diff(offsets))
        self._write(stored.data)

    def _write(self, stored: memoryview) -> None:
        self.file.write(stored)
        self.end += len(stored)

    def _finish(self) -> None:
        address = self.start if self.end > self.start else None
        if self.dataset.chunks is not None:
            sizes = np.concatenate([np.empty(0, np.int64), *self.sizes])
            addresses = self.start + np.concatenate([[0], np.cumsum(sizes)])[: len(sizes)]
            index, address = hdf5_layout.chunk_index(self.dataset, addresses, sizes, self.end)
            self._write(memoryview(index))
        self.file.seek(0)
        self.file.write(hdf5_layout.head(self.dataset, address, self.end))
        # The head is known only now, so the sum cannot be taken on the way; the pages are still in memory.
        self.file.seek(0)
        self.result = (digest.sha256_stream(self.file), self.end)
