"""What every store can do, and which names are allowed in it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from btlm_data.errors import DataError

TEMPORARY_SUFFIX = ".btlm-tmp"  # of files being written; no other program's temporary files end so
LEASE_SUFFIXES = (".lease", ".lock")  # of the files by which a run holds a folder (lease.py)


class Entry(NamedTuple):
    """One file of a listing: its name relative to the store's root, and its size in bytes."""

    name: str
    size: int


class Creating(Protocol):
    """A file being written: seekable, readable and writable; it has its name only once the block has ended
    well.
    """

    @property
    def file(self) -> BinaryIO:
        """The open file, positioned where the last write ended."""

    @property
    def path(self) -> Path:
        """Its temporary place on this machine, for libraries that insist on a path."""


class Store(Protocol):
    """A tree of files named by relative '/'-separated names. Reads raise DataError, writes OutputError, in
    words.
    """

    @property
    def url(self) -> str:
        """The absolute place, by which another process can open the same store."""

    @property
    def shown(self) -> str:
        """The place as people should see it: no user, password or signature."""

    @property
    def is_local(self) -> bool:
        """Whether files are on a file system of this machine, so that `map` costs no copy."""

    def reach(self) -> None:
        """Raise OutputError, within ten seconds, where nothing answers at this place."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not there."""

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """What changes whenever the file is written (inode, times, size); None where the store cannot tell
        cheaply.
        """

    def list(self, prefix: str = "") -> list[Entry]:
        """All files whose names begin with the folder `prefix` ("" for all), sorted by name.

        Temporary files are left out, folders that are links are not entered.
        """

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of a file (to its end by default). Raises DataError if it is missing or
        shorter.
        """

    def map(self, name: str) -> memoryview:
        """The whole file: memory-mapped where it is local, read where it is not. Raises DataError if it is
        missing.
        """

    def open(self, name: str) -> BinaryIO:
        """The file for reading with seek, by ranges. Raises DataError if it is missing."""

    def create(self, name: str, *, durable: bool = True) -> AbstractContextManager[Creating]:
        """Write a file under a temporary name; it gets `name`, whole, only if the block ends without an
        exception.

        durable: it also survives a power cut. Raises OutputError for a full disk or a missing permission.
        """

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write one small file atomically."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are passed over. A link is removed, never its target."""

    def sweep(self) -> int:
        """Remove the temporary files that killed processes left; returns how many. Only for the holder of the
        lease.
        """

    def create_new(self, name: str, data: bytes) -> str | None:
        """Write `name` only if it is not there, decided by the store itself; returns its version, None if it
        was there.
        """

    def replace_version(self, name: str, data: bytes, version: str) -> str | None:
        """Write `name` only if it still has `version`; returns the new version, or None if another process
        was first.
        """

    def read_version(self, name: str) -> tuple[bytes, str] | None:
        """A small file and its version, or None if it is not there."""


def is_remote(location: str) -> bool:
    """Whether a location is a URL other than file://."""
    return "://" in location and not location.startswith("file://")


def check_name(name: str) -> str:
    """The name, if it is one that a store takes: relative, '/'-separated, no empty, "." or ".." part, no
    control character.

    Raises DataError otherwise: names come from dataset.json and receipts, which others may have written.
    """
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "\\" in name or min(name) < " ":
        raise DataError(
            f"{name!r} is not the name of a file inside a folder. Names are relative, with '/' between their parts and "
            "without '..'. The file that contains it was damaged, or written by another program."
        )
    return name
