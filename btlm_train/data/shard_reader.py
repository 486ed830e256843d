"""Read rows of shards fast, in no more open files than a process may have.

HDF5 inflates under one lock of the whole process and with plain zlib. Here the stored bytes of a chunk are read
(`read_direct_chunk`, about 3 us) and inflated outside the lock by ISA-L; a contiguous dataset is read with one `pread`.
Whatever is stored in another way is read through h5py. A shard that disappears or changes while it is in use is an error,
never zeros.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from isal.igzip_lib import IsalError

from btlm_data.errors import DataError, InputError


@dataclass(frozen=True)
class ShardFile:
    """One file as it was when the data was opened: enough to open it later and to notice that it has changed.

    rows is the length of axis 0; probe is the CRC-32 of the first, middle and last row (of a corpus: of at most 1,024
    tokens each).
    """

    path: str
    rows: int
    num_bytes: int
    mtime_ns: int
    probe: int

    def check(self) -> None:
        """Raise DataError if the file is gone or has changed."""
        try:
            now = os.stat(self.path)
        except OSError as error:
            raise DataError(
                f"The shard {self.path} cannot be found any more ({error.strerror}). "
                "Restore it, then run the same command again."
            ) from None
        if (now.st_size, now.st_mtime_ns) != (self.num_bytes, self.mtime_ns):
            raise DataError(
                f"The shard {self.path} changed while it was in use ({self.num_bytes} bytes when opened, "
                f"{now.st_size} now, or written again). Restore it, or start again with the new data."
            )


class OpenShard:
    """The dataset `data` of one open file. Reads rows in the stored dtype.

    A block is what one step of chunks along axis 0 holds. The last block decoded is cached where it holds several rows.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = _open_file(path)
        try:
            data = self.file["data"]
        except KeyError:
            raise DataError(
                f'{path} has no dataset "data". Remove the file from the data folder, or make it again.'
            ) from None
        if not isinstance(data, h5py.Dataset) or data.ndim == 0 or data.dtype.kind not in "iufb":
            raise DataError(
                f'"data" in {path} is not an array of numbers ({data!r}). Remove the file, or make it again.'
            )
        if data.is_virtual:
            raise DataError(
                f'"data" in {path} is a virtual dataset, whose missing sources HDF5 would read as zeros. '
                "Give the folder of the source files as data_dir."
            )
        properties = data.id.get_create_plist()
        if properties.get_external_count():
            raise DataError(
                f'"data" in {path} is stored in other files (HDF5 external storage), which are not read. '
                "Remove the file from the data folder, or copy the data into it."
            )
        self.data = data
        self.shape: tuple[int, ...] = data.shape
        self.dtype: np.dtype[Any] = data.dtype
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        # (position in the pipeline, whether it is deflate), in the order in which reading undoes them
        self.undo = [
            (position, code == h5py.h5z.FILTER_DEFLATE)
            for position, code in reversed(list(enumerate(filters)))
        ]
        self.chunks: tuple[int, ...] | None = None
        self.offset: int | None = None
        if data.chunks is not None and set(filters) <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}:
            self.chunks = data.chunks
            self.chunk_bytes = math.prod(data.chunks) * self.dtype.itemsize
            starts = (range(0, *axis) for axis in zip(self.shape[1:], data.chunks[1:], strict=True))
            self.corners = list(itertools.product(*starts))
            self.one_chunk_a_row = data.chunks == (1, *self.shape[1:])
            self.storage = data.id
        elif properties.get_layout() == h5py.h5d.CONTIGUOUS and not self.file.userblock_size:
            self.offset = data.id.get_offset()
            self.descriptor = self.file.id.get_vfd_handle()
        self.cached_block: tuple[int, npt.NDArray[Any]] | None = None

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop), within the file: (stop - start, *trailing shape). Raises DataError if they cannot be read."""
        try:
            if self.chunks is not None and self.one_chunk_a_row and stop - start == 1:  # our own shards
                return self._chunk((start, *self.corners[0]))
            if self.chunks is not None:
                return self._from_chunks(start, stop)
            if self.offset is not None:
                return self._from_bytes(start, stop)
            rows: npt.NDArray[Any] = self.data[start:stop]
        except (OSError, RuntimeError, ValueError, IsalError) as error:  # type: ignore[misc]  # untyped in its stub
            raise DataError(
                f"Rows {start} to {stop} of {self.path} cannot be read ({error}). "
                "Restore the file from its source, or make it again."
            ) from error
        return rows

    def _from_bytes(self, start: int, stop: int) -> npt.NDArray[Any]:
        assert self.offset is not None
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        first_byte = self.offset + start * math.prod(self.shape[1:]) * self.dtype.itemsize
        if os.preadv(self.descriptor, [rows.data.cast("B")], first_byte) != rows.nbytes:
            raise OSError("the file ends early")
        return rows

    def _from_chunks(self, start: int, stop: int) -> npt.NDArray[Any]:
        assert self.chunks is not None
        step = self.chunks[0]
        pieces = []
        for number in range(start // step, (stop - 1) // step + 1):
            first = number * step
            pieces.append(self._block(number)[max(start - first, 0) : stop - first])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _block(self, number: int) -> npt.NDArray[Any]:
        """Rows [number * chunk rows, ...), a whole chunk's worth: beyond the end of the dataset they mean nothing."""
        assert self.chunks is not None
        if self.cached_block is not None and self.cached_block[0] == number:
            return self.cached_block[1]
        first = number * self.chunks[0]
        if len(self.corners) == 1:
            block = self._chunk((first, *self.corners[0]))[(slice(None), *map(slice, self.shape[1:]))]
        else:
            block = np.empty((self.chunks[0], *self.shape[1:]), self.dtype)
            for corner in self.corners:
                spans = (slice(i, i + n) for i, n in zip(corner, self.chunks[1:], strict=True))
                target = block[(slice(None), *spans)]
                target[...] = self._chunk((first, *corner))[tuple(map(slice, target.shape))]
        if self.chunks[0] > 1:
            self.cached_block = number, block
        return block

    def _chunk(self, corner: tuple[int, ...]) -> npt.NDArray[Any]:
        """The chunk at `corner`. A chunk that was never written holds the fill value, which HDF5 knows."""
        assert self.chunks is not None
        try:
            skipped, stored = self.storage.read_direct_chunk(corner)
        except RuntimeError:
            if self.storage.get_chunk_info_by_coord(corner).byte_offset is not None:
                raise
            return np.full(self.chunks, self.data.fillvalue, self.dtype)
        for position, deflated in self.undo:
            if skipped >> position & 1:  # HDF5 leaves a filter out where it did not help
                continue
            if deflated:
                stored = isal_zlib.decompress(stored, zlib.MAX_WBITS, self.chunk_bytes)
            else:  # byte shuffle: all first bytes, then all second bytes, ...
                shuffled = np.frombuffer(stored, np.uint8).reshape(self.dtype.itemsize, -1)
                values = np.empty(shuffled.shape[::-1], np.uint8)
                for byte, plane in enumerate(shuffled):  # twice as fast as one transposed copy
                    values[:, byte] = plane
                stored = values.data.cast("B")
        if len(stored) != self.chunk_bytes:
            raise ValueError(f"a chunk holds {len(stored)} bytes instead of {self.chunk_bytes}")
        return np.frombuffer(stored, self.dtype).reshape(self.chunks)


def _open_file(path: str) -> h5py.File:
    """Open an HDF5 file without HDF5's own file locks, which some file systems lack and other programs may hold.

    Raises DataError if it is not an HDF5 file, and OSError where the process may open no more files. Where this process
    has the same file open with locks, HDF5 demands the same of us.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        try:
            return h5py.File(path, "r")
        except OSError:
            raise DataError(
                f"{path} is not a readable HDF5 file ({error}). Restore it from its source, or make it again."
            ) from error


class OpenShards:
    """The open shards of this process, least recently used first: at most half of its limit of open files, and 1,024.

    One for the whole process, because the limit is the process's. A shard that leaves is closed when its last user drops
    it. After a fork the child starts with none, so that no two processes share HDF5's state of a file.
    """

    def __init__(self) -> None:
        self.clear()
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        """Drop all open shards."""
        self.lock = threading.Lock()
        self.shards: OrderedDict[ShardFile, OpenShard] = OrderedDict()

    def get(self, file: ShardFile) -> OpenShard:
        """`file`, opened. Raises DataError if it has changed, InputError if the process may open no more files."""
        with self.lock:
            file.check()
            shard = self.shards.get(file)
            if shard is None:
                while len(self.shards) >= self.capacity():
                    self.shards.popitem(last=False)
                shard = self.shards[file] = self.open(file.path)
            self.shards.move_to_end(file)
            return shard

    def open(self, path: str) -> OpenShard:
        """`path`, newly opened; where the process's limit is reached, half of the others are dropped first."""
        while True:
            try:
                return OpenShard(path)
            except OSError as error:
                if not self.shards:
                    raise InputError(
                        f"{path} cannot be opened ({error.strerror or error}): other files use up the process's limit. "
                        "Raise it (ulimit -n)."
                    ) from error
                for _ in range((len(self.shards) + 1) // 2):
                    self.shards.popitem(last=False)

    @staticmethod
    def capacity() -> int:
        """How many shards may be open. Asked each time, since a test or a user may change the limit."""
        try:
            import resource
        except ImportError:  # not on Windows, which has no such limit
            return 256
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return 1024 if soft == resource.RLIM_INFINITY else max(1, min(1024, soft // 2))


OPEN_SHARDS = OpenShards()


def probe_shard(name: str) -> tuple[ShardFile, tuple[int, ...], np.dtype[Any]]:
    """Open a shard once and close it: what it is, the shape of a row (() in a corpus), and its dtype."""
    path = os.path.abspath(name)
    before = os.stat(path)
    shard = OPEN_SHARDS.open(path)
    rows, trailing = shard.shape[0], shard.shape[1:]
    length = 1 if trailing else min(1024, rows)
    probe = 0
    for start in sorted({0, (rows - length) // 2, rows - length}) if rows else ():
        stored = np.ascontiguousarray(shard.read(start, start + length))
        probe = zlib.crc32(stored.view(np.uint8).data, probe)
    return ShardFile(path, rows, before.st_size, before.st_mtime_ns, probe), trailing, shard.dtype
