"""Write a large file past the page cache: nobody reads it soon, and taking pages of memory for it costs more processor time than
writing it does, and takes them from what others read.

Direct writes come from memory at whole blocks and go to whole blocks (O_DIRECT, open(2)); the end is cut afterwards. A file
system without them gets the same writes by way of the cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BLOCK = 4096  # bytes; a multiple of every disk's own
# Bytes; a large page of Linux on most processors, which a direct write takes as one piece of memory.
_BUFFER = 2 << 20
# Buffers of files that are closed: the system need not clear them for the next file.
_FREE: list[memoryview] = []
_MOST_FREE = 8
_DIRECT: int = getattr(os, "O_DIRECT", 0)  # not on every system


class DirectFile(io.RawIOBase):
    """A new file that is written from its beginning to its end, in whole blocks. `flush` has everything in the file, which
    then is as long as it should be.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = _open(path)
        try:
            self._buffer = _FREE.pop()
        except IndexError:
            self._buffer = _large_page()
        self._offset, self._filled = 0, 0  # bytes that are in the file, bytes of the buffer behind them

    def write(self, data: ReadableBuffer, /) -> int:
        """Add bytes; all of them are taken."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            room = self._room(len(rest))
            room[:] = rest[: len(room)]
            self._filled, rest = self._filled + len(room), rest[len(room) :]
        return size

    def _room(self, most: int) -> memoryview:
        """Where the next bytes go, at least one and at most `most` of them."""
        if self._filled == _BUFFER:
            self._put(_BUFFER)
            self._offset, self._filled = self._offset + _BUFFER, 0
        return self._buffer[self._filled : min(_BUFFER, self._filled + most)]

    def flush(self) -> None:
        """Write what is collected; the last block is filled up with zeros, which are cut off again."""
        if self.closed or not self._filled:
            return
        whole = -(-self._filled // BLOCK) * BLOCK
        self._buffer[self._filled : whole] = bytes(whole - self._filled)
        self._put(whole)
        os.ftruncate(self._descriptor, self._offset + self._filled)

    def fileno(self) -> int:
        """The descriptor, as for os.fsync."""
        return self._descriptor

    def tell(self) -> int:
        """Bytes written so far."""
        return self._offset + self._filled

    def writable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Write what is collected, and close the file."""
        if not self.closed:
            try:
                super().close()
            finally:
                os.close(self._descriptor)
                if len(_FREE) < _MOST_FREE:
                    _FREE.append(self._buffer)
                del self._buffer

    def _put(self, size: int) -> None:
        """Write the buffer's first bytes, whole blocks, behind what is in the file."""
        done = 0
        while done < size:
            try:
                done += os.pwrite(self._descriptor, self._buffer[done:size], self._offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not _by_way_of_the_cache(self._descriptor):
                    raise


def _large_page() -> memoryview:
    """Memory of _BUFFER bytes that begins at a multiple of them, in one page where the system has such."""
    memory = mmap.mmap(-1, 2 * _BUFFER)
    begin = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _BUFFER
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)[begin : begin + _BUFFER]


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with contextlib.suppress(OSError):  # refused by the file system; whatever else is wrong is said below
        return os.open(path, flags | _DIRECT, 0o666)
    return os.open(path, flags, 0o666)


def _by_way_of_the_cache(descriptor: int) -> bool:
    """Have a file written by way of the cache from now on; whether it was not already."""
    import fcntl  # not on every system; where it is not, nothing is written past the cache

    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
    return bool(flags & _DIRECT)
