"""Write a shard: an HDF5 file with one dataset `data`, chunk by chunk, into a file that a store has opened.

Chunks go through HDF5's own gzip filter (and its shuffle filter on request), or the data is one stretch,
uncompressed. The file attribute `n_examples` repeats the length of axis 0. There are no timestamps; the same
rows and options give the same bytes. What rows are is each format's (sample.py, corpus.py, vsl.py).

Level 1 is kernels/deflate.py, which knows what a sample is; it is faster and smaller than zlib's default
level and does not depend on a library's version. Higher levels are zlib's, and the shuffle filter's chunks
are ISA-L's at level 1: other versions of those libraries may give other bytes (of the same data).
"""

from __future__ import annotations

import zlib
from types import TracebackType
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from btlm_data.formats.shard_formats import hdf5_layout
from btlm_data.storage import digest

Compression = Literal["gzip", "none"]
ElementType = Literal["int32", "uint16"]

BATCH_UNITS = 1 << 23  # elements compressed at once, with one Huffman code: bounds memory


class ShardOptions(msgspec.Struct, frozen=True):
    """How a shard's bytes are stored; the values a reader gets do not depend on it.

    level: 1 (fast) to 9, of gzip; hdf5_shuffle: HDF5's shuffle filter before gzip (5% smaller, half the
    reading speed); dtype: int32, or uint16 where the vocabulary fits.
    """

    compression: Compression = "gzip"
    level: int = 1
    hdf5_shuffle: bool = False
    dtype: ElementType = "int32"


class ShardInfo(msgspec.Struct, frozen=True):
    """A finished shard: rows (tokens in the corpus layout), real label positions, the file's checksums and size
    in bytes.
    """

    n_examples: int
    num_tokens: int
    sha256: str
    xxh3: str
    num_bytes: int


def sample_planes(rows: npt.NDArray[Any], num_real: npt.NDArray[np.int64] | None) -> npt.NDArray[np.uint32]:
    """Token rows (k, L+1) as planes (k, 3, L): inputs, mask, labels; 0 after num_real (k,) positions. Tokens
    of any integer dtype; returns uint32.
    """
    k, length = rows.shape[0], rows.shape[1] - 1
    planes = np.empty((k, 3, length), np.uint32)
    planes[:, 0], planes[:, 1], planes[:, 2] = rows[:, :-1], 1, rows[:, 1:]
    if num_real is not None:
        planes *= (np.arange(length) < num_real[:, None])[:, None]
    return planes


def layout(shape: tuple[int, ...], chunks: tuple[int, ...], options: ShardOptions) -> hdf5_layout.Dataset:
    """What a shard of this shape holds. chunks: their shape, where it is compressed."""
    zipped = options.compression == "gzip"
    return hdf5_layout.Dataset(
        shape=shape,
        dtype="<i4" if options.dtype == "int32" else "<u2",
        chunks=chunks if zipped else None,
        gzip=options.level if zipped else None,
        shuffle=zipped and options.hdf5_shuffle,
        attributes={"n_examples": shape[0]},
    )


def compressed(
    rows: npt.NDArray[Any], dataset: hdf5_layout.Dataset
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Chunks as a shard stores them, end to end, and where each begins and the last one ends. rows: (k, ...), a chunk
    each, in the dtype of the shard, which is compressed; returns (bytes,) uint8 and (k + 1,) int64.
    """
    assert dataset.gzip is not None
    rows = np.ascontiguousarray(rows, dataset.dtype).reshape(len(rows), -1)
    if _is_plain(dataset):
        from btlm_data.kernels import deflate  # numba: readers of shards do without it

        labels = (
            2 * dataset.shape[2] - 1 if len(dataset.shape) == 3 else 0
        )  # how far behind the inputs they repeat them
        return deflate.deflate_units(rows.view(f"<u{rows.itemsize}"), rows.itemsize, labels)
    pieces = []
    for row in rows:
        stored = (
            row.view(np.uint8).reshape(-1, rows.itemsize).T.tobytes() if dataset.shuffle else row.tobytes()
        )
        pieces.append(
            isal_zlib.compress(stored, 1) if dataset.gzip == 1 else zlib.compress(stored, dataset.gzip)
        )
    joined = np.frombuffer(b"".join(pieces), np.uint8)
    return joined, np.cumsum([0, *map(len, pieces)], dtype=np.int64)


def _is_plain(dataset: hdf5_layout.Dataset) -> bool:
    """Whether chunks go through this program's own compression alone."""
    return dataset.gzip == 1 and not dataset.shuffle


class ShardWriter:
    """One shard under construction: chunks are appended to an open file; leaving the block completes it."""

    def __init__(
        self, file: BinaryIO, shape: tuple[int, ...], chunks: tuple[int, ...], options: ShardOptions
    ) -> None:
        self.file = file
        self.dataset = layout(shape, chunks, options)
        self.is_plain = _is_plain(self.dataset)
        self.start = self.end = hdf5_layout.head_size(self.dataset)
        self.sizes: list[npt.NDArray[np.int64]] = []
        self.result = ("", "", 0)

    def __enter__(self) -> ShardWriter:
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
        """Append token rows as samples; rows that are not full go the general way. rows: (k, L + 1) of an
        integer dtype; full: (k,) bool; num_real: (k,) int64.
        """
        from btlm_data.kernels import deflate  # numba: readers of shards do without it

        borders = np.flatnonzero(np.diff(full)) + 1
        for first, last in zip([0, *borders], [*borders, len(rows)], strict=True):
            if full[first]:
                self._append(*deflate.deflate_samples(rows[first:last]))
            else:
                assert num_real is not None
                self.add(sample_planes(rows[first:last], num_real[start + first : start + last]))

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Append rows, one chunk each (contiguous where the shard is not compressed). rows: (k, planes, L) or
        (k,) in the dtype of the shard.
        """
        rows = np.ascontiguousarray(rows, self.dataset.dtype)
        if self.dataset.chunks is None:
            self._write(rows.reshape(-1).view(np.uint8).data)
            return
        self._append(*compressed(rows, self.dataset))

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
        # The head is known only now, so the sums cannot be taken on the way; the pages are still in memory.
        self.file.seek(0)
        self.result = (*digest.both_of_stream(self.file), self.end)
