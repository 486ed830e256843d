"""Write a shard once more with some of its stretches replaced, in one pass over the old file: what stays is copied as it
is stored, and the SHA-256 of both files are taken on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import FileIO
from typing import IO

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats import hdf5_layout
from btlm_data.formats.shard_formats.writer import ShardInfo
from btlm_data.storage.direct import DirectFile

_PIECE = 1 << 17


def rewrite(
    old: FileIO,
    ranges: npt.NDArray[np.int64],
    dataset: hdf5_layout.Dataset,
    new: DirectFile,
    replaced: Mapping[int, int],
    stored: IO[bytes],
    num_tokens: int,
) -> tuple[str, ShardInfo]:
    """Returns the SHA-256 of the old file, and what was written.

    old: a shard that was written with this layout, at its start. ranges: (n, 2) int64, offset and
    bytes of each of its chunks, or of stretches that are all of its data, in order. dataset: the layout of both. new: an empty
    file. replaced: number of a range -> bytes that take its place; stored: these bytes, end to end, in order. num_tokens: of the
    shard. Raises DataError where the old file is laid out in another way.
    """
    offsets, sizes = ranges.T
    if (offsets[1:] != offsets[:-1] + sizes[:-1]).any():
        raise DataError(f"{old.name} is not laid out as this program writes shards. Restore it from a copy.")
    new_sizes = sizes.copy()
    for number, size in replaced.items():
        new_sizes[number] = size
    passed = _Pass(old, new)
    start = hdf5_layout.head_size(dataset)
    begins = start + np.concatenate([[0], np.cumsum(new_sizes)])
    end, index, address = int(begins[-1]), b"", start if len(ranges) else None
    if dataset.chunks is not None:
        index, address = hdf5_layout.chunk_index(dataset, begins[:-1], new_sizes, end)
    head = hdf5_layout.head(dataset, address, end + len(index))
    passed.replace(int(offsets[0]) if len(ranges) else 0, head)
    for number in sorted(replaced):
        passed.copy(int(offsets[number]))
        passed.replace(int(offsets[number] + sizes[number]), stored.read(replaced[number]))
    passed.copy(int(offsets[-1] + sizes[-1]) if len(ranges) else 0)
    passed.replace(None, index)
    before, after = passed.sums.hexdigests()
    return before, ShardInfo(dataset.shape[0], num_tokens, after, end + len(index))


class _Pass:
    """One pass over a file while another is written; sums: of both, the old file first."""

    def __init__(self, old: FileIO, new: DirectFile) -> None:
        from btlm_data.kernels.sha256 import sha256_pair  # numba: readers of shards do without it

        self.old, self.new, self.sums = old, new, sha256_pair()
        self.position = 0
        self._replaced = memoryview(bytearray(_PIECE))

    def copy(self, until: int) -> None:
        """Copy what is before a position of the old file."""
        while self.position < until:
            piece = self.new.fill(self.old.readinto, until - self.position)
            if not piece:
                return  # the end; of a file that is cut short, its hash tells
            self.position += len(piece)
            self.sums.update(piece, piece)

    def replace(self, until: int | None, data: bytes) -> None:
        """Write `data` instead of what is before a position of the old file; None: instead of all that is left."""
        self.new.write(data)
        while until is None or self.position < until:
            wanted = _PIECE if until is None else min(_PIECE, until - self.position)
            size = self.old.readinto(self._replaced[:wanted])
            if not size:
                break
            self.position += size
            self.sums.update(self._replaced[:size], data)
            data = b""
        self.sums.update(b"", data)
