"""Where the bytes of a shard come from: whatever knows its size and reads ranges. Here: a local file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Protocol

from btlm_data.errors import DataError

MISSING = "Restore it from a copy, or run the command that made it again."


class ByteSource(Protocol):
    """Random access to the bytes of one file.

    name: the file, as messages show it. size: bytes.
    """

    name: str
    size: int

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, fewer where the file ends. Raises OSError."""
        ...

    def close(self) -> None:
        """Release what is open; reading ends."""
        ...


class LocalFile:
    """A regular file of this machine, opened without any lock, so that another process's lock does not
    matter.

    Raises DataError where `path` is missing, cannot be opened, or is a folder, a pipe or a device (which is
    never waited for); OSError where this process has too many open files.
    """

    def __init__(self, path: str | os.PathLike[str], *, reads_few: bool = False) -> None:
        """reads_few: little is read, here and there, so that the system need not read what follows."""
        self.name = os.fspath(path)
        self._descriptor = -1
        try:
            # O_NONBLOCK: opening a pipe would otherwise wait for a writer. It means nothing for regular
            # files.
            descriptor = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"The shard {self.name} is missing. {MISSING}") from None
        except ValueError as error:  # a NUL in the name
            raise DataError(f"The shard {self.name!r} cannot be opened: {error}. {MISSING}") from None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise DataError(
                f"The shard {self.name} cannot be opened: {error.strerror}. Check its permissions."
            ) from error
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise DataError(
                f"{self.name} is not a regular file but a {_kind(status.st_mode)}. Shards are regular files: "
                "remove it from the data folder, or restore the shard."
            )
        self.size = status.st_size
        if reads_few and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # a file system that takes no advice
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, fewer where the file ends. Raises OSError."""
        data = os.pread(self._descriptor, count, offset)
        if len(data) == count or not data:
            return data
        parts = [data]  # more than the system gives in one call (2 GiB), or an interruption
        missing = count - len(data)
        while missing and (data := os.pread(self._descriptor, missing, offset + count - missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        """Close the file. Does nothing the second time."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "folder"),
        (stat.S_ISFIFO, "pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "device"),
        (stat.S_ISBLK, "device"),
    ):
        if test(mode):
            return name
    return "special file"
