"""Write a shard once more with some of its stretches replaced, in one pass over the old file: what stays is copied as it
is stored, and the checksums of both files are taken on the way.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from io import FileIO
from typing import IO

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats import hdf5_layout
from btlm_data.storage import digest
from btlm_data.storage.direct import DirectFile

_PIECE = 1 << 18  # bytes at a time: still in the processor's cache when they are copied
_READ_AHEAD = 1 << 22  # bytes, whole pages
_POPULATE_READ = 22  # madvise(2): reads pages now, and fails where one cannot be read


class Rewriting:
    """A shard that is written once more.

    old: a shard that was written with this layout, at its start. ranges: (n, 2) int64, offset and
    bytes of each of its chunks, or of stretches that are all of its data, in order. dataset: the layout of both. new: an empty
    file. replaced: number of a range -> bytes that take its place; stored: these bytes, end to end, in order. Raises DataError
    where the old file is laid out in another way.
    """

    def __init__(
        self,
        old: FileIO,
        ranges: npt.NDArray[np.int64],
        dataset: hdf5_layout.Dataset,
        new: DirectFile,
        replaced: Mapping[int, int],
        stored: IO[bytes],
    ) -> None:
        offsets, sizes = ranges.T
        if (offsets[1:] != offsets[:-1] + sizes[:-1]).any():
            raise DataError(
                f"{old.name} is not laid out as this program writes shards. Restore it from a copy."
            )
        self._old, self._new = _Mapped(old), new
        self._offsets, self._sizes, self._dataset = offsets, sizes, dataset
        self._replaced, self._stored = replaced, stored
        self._position = 0  # in the old file
        self._old_sum, self._new_sum = digest.checksummer(), digest.checksummer()

    def pieces(self) -> Iterator[memoryview]:
        """Write it; what is written, each piece there until the next one is asked for."""
        new_sizes = self._sizes.copy()
        for number, size in self._replaced.items():
            new_sizes[number] = size
        start = hdf5_layout.head_size(self._dataset)
        begins = start + np.concatenate([[0], np.cumsum(new_sizes)])
        end, index, address = int(begins[-1]), b"", start if len(self._sizes) else None
        if self._dataset.chunks is not None:
            index, address = hdf5_layout.chunk_index(self._dataset, begins[:-1], new_sizes, end)
        yield self._write(hdf5_layout.head(self._dataset, address, end + len(index)))
        self._pass(int(self._offsets[0]) if len(self._sizes) else 0)
        for number in sorted(self._replaced):
            yield from self._copy(int(self._offsets[number]))
            yield self._write(self._stored.read(self._replaced[number]))
            self._pass(int(self._offsets[number] + self._sizes[number]))
        yield from self._copy(int(self._offsets[-1] + self._sizes[-1]) if len(self._sizes) else 0)
        yield self._write(index)
        self._pass(None)

    def xxh3(self) -> tuple[str, str]:
        """Hex XXH3 (128 bits) of the old and of the new file, once all pieces were taken."""
        return self._old_sum.hexdigest(), self._new_sum.hexdigest()

    def _copy(self, until: int) -> Iterator[memoryview]:
        """Copy what is before a position of the old file. Who takes the pieces reads them first, as slowly as SHA-256 is: then
        they are in the processor's cache.
        """
        for piece in self._pieces(until):
            yield piece
            self._new.write(piece)
            self._old_sum.update(piece)
            self._new_sum.update(piece)

    def _pieces(self, until: int | None) -> Iterator[memoryview]:
        """What is before a position of the old file, or all that is left of it; of a file that is cut short, up to its end, and its
        checksum tells.
        """
        end = self._old.size if until is None else min(until, self._old.size)
        while self._position < end:
            piece = self._old.piece(self._position, min(self._position + _PIECE, end))
            self._position += len(piece)
            yield piece

    def _write(self, data: bytes) -> memoryview:
        self._new.write(data)
        self._new_sum.update(data)
        return memoryview(data)

    def _pass(self, until: int | None) -> None:
        """Read what is before a position of the old file, or all that is left of it, and leave it out."""
        for piece in self._pieces(until):
            self._old_sum.update(piece)


class _Mapped:
    """A file as memory: its pages are used where the system has them, and not copied. For one pass."""

    def __init__(self, file: FileIO) -> None:
        self._name = file.name
        self.size = os.fstat(file.fileno()).st_size
        self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        self._view = memoryview(self._memory or b"")
        self._ready = (
            0 if sys.platform == "linux" else self.size
        )  # bytes from the beginning that need no more advice

    def piece(self, begin: int, end: int) -> memoryview:
        """Bytes [begin, end). Raises OSError where they cannot be read."""
        while self._memory is not None and self._ready < end:
            try:
                self._memory.madvise(_POPULATE_READ, self._ready, min(_READ_AHEAD, self.size - self._ready))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), self._name) from None
                self._ready = self.size  # older than Linux 5.14: pages come as they are touched
            self._ready += _READ_AHEAD
        return self._view[begin:end]
