"""A bounded folder of downloaded files, shared by the processes of one run. It has no locks, and no crash can
spoil it.

    KEY                  a whole, verified file
    KEY.used             empty: the file has been read; it may be removed first, and is not downloaded ahead
                         again
    KEY.OWNER.reading    a second name (hard link) of a whole file, by which OWNER reads it: its bytes stay
                         while they are read, whatever becomes of KEY
    KEY.SIZE.part        the beginning of a file of SIZE bytes, which no process is downloading now
    KEY.SIZE.OWNER.part  the same, being downloaded by OWNER

KEY is 32 hex digits, made from address, size and version, so no name from a listing ever becomes a path.
OWNER is a process (storage/process.py) and a number in it; what a dead process owned is free for all. A file
gets its next name by one `rename` or `link`, which only one process can do. Who downloads first takes a name,
and with it the room, then looks whether another process did so too or there is too little room; if so it
gives the name back and tries again later. So the sizes of whole files and the final sizes of parts never add
up to more than the limit. In the worst case a file is downloaded twice.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from btlm_data.errors import OutputError
from btlm_data.storage.local import as_output_error
from btlm_data.storage.process import machine, started

_ELSEWHERE = 600.0  # seconds without a change after which what a process of another machine owns is free
_numbers = itertools.count()


def key_of(url: str, size: int, version: str) -> str:
    """The name under which a file is held."""
    return hashlib.sha256(f"{url}\0{size}\0{version}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def machine_name() -> str:
    """Of this machine, in names of owners."""
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


def _new_owner() -> str:
    """A name that no other process or thread has."""
    process = os.getpid()
    return f"{machine_name()}-{process}-{started(process)}-{next(_numbers)}"


class _Entry(msgspec.Struct, frozen=True):
    """One file of the folder, as its name says: KEY[.SIZE][.OWNER][.KIND]. size: taken or promised, in bytes."""

    path: Path
    key: str
    kind: str  # "whole", "reading" or "part"
    owner: str
    size: int
    number: int  # of the file's data on its disk
    changed: float

    @property
    def is_owned(self) -> bool:
        """Whether a process that lives reads or downloads it."""
        name, process, began, _ = self.owner.split("-") if self.owner.count("-") == 3 else ("", "", "", "")
        if not process.isdigit():
            return False
        if name != machine_name():
            return time.time() - self.changed < _ELSEWHERE
        return str(started(int(process))) == began


class Whole(msgspec.Struct):
    """A whole file that stays until `release`. path: of its bytes."""

    path: Path
    _pool: Pool
    _key: str

    def release(self, *, used: bool = True) -> None:
        """Let it go. used: it has been read, and may be the first to be removed."""
        with contextlib.suppress(OSError):  # the mark is advice only; a full disk must not fail the reader
            if used:
                self._pool.mark_used(self._key)
        if self.path.name.endswith(".reading"):
            self.path.unlink(missing_ok=True)


class Partial:
    """A file that this process downloads; no other touches it until it is finished or left."""

    def __init__(self, path: Path, size: int, pool: Pool, key: str) -> None:
        self.path, self.size, self._pool, self._key = path, size, pool, key
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    @property
    def received(self) -> int:
        """Bytes there are."""
        return os.fstat(self._descriptor).st_size

    def append(self, piece: bytes) -> None:
        """Add bytes at the end. Raises OutputError for a full disk."""
        try:
            os.lseek(self._descriptor, 0, os.SEEK_END)
            view = memoryview(piece)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise self._pool.cannot_write(error, self.path) from error

    def restart(self) -> None:
        """Throw away what there is."""
        os.ftruncate(self._descriptor, 0)

    def pieces(self, size: int = 2**20) -> Iterator[bytes]:
        """What there is, from the start."""
        position = 0
        while piece := os.pread(self._descriptor, size, position):
            position += len(piece)
            yield piece

    def finish(self) -> Whole:
        """Give the verified file its name, in use."""
        try:
            os.fsync(self._descriptor)
            whole = self._pool.publish(self.path, self._key)
        except OSError as error:
            raise self._pool.cannot_write(error, self.path) from error
        self._close()
        return whole

    def leave(self) -> None:
        """Let it go as it is; the next one continues it."""
        if self._close():
            self._pool.give_back(self.path, self._key, self.size)

    def _close(self) -> bool:
        """Whether it was open."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        return descriptor >= 0


class Pool:
    """See the module. limit: bytes. kept: where whole files go to stay for good (nothing is removed then), or
    None.
    """

    def __init__(self, folder: Path, limit: int, kept: Path | None = None) -> None:
        self.folder, self.limit, self.kept = folder, limit, kept
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if kept is not None:
                kept.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise as_output_error(error, folder) from error

    def obtain(self, key: str, size: int, may_remove: Callable[[str], bool]) -> Whole | Partial | None:
        """The whole file, in use; or the right to download it, with room for all of it; or None: ask again
        later.

        may_remove(key): whether a file that was downloaded but not yet read may be removed to make room.
        Raises OutputError if the file can never fit.
        """
        if size > self.limit:
            raise OutputError(
                f"One file of the source has {size / 1e9:.3f} GB, more than --cache-size allows ({self.limit / 1e9:.3f} GB). "
                f"Raise --cache-size to at least {size * 1.05 / 1e9 + 0.001:.3f}GB (enough for one file a worker is better)."
            )
        try:
            if (whole := self._read(key)) is not None:
                return whole
            return self._take_part(key, size, may_remove)
        except OSError as error:
            raise self.cannot_write(error, self.folder) from error

    def publish(self, part: Path, key: str) -> Whole:
        """Give a part that is whole its name, in use."""
        if self.kept is not None:
            part.rename(self.kept / key)
            return Whole(self.kept / key, self, key)
        reading = self.folder / f"{key}.{_new_owner()}.reading"
        reading.hardlink_to(part)
        part.rename(self.folder / key)
        return Whole(reading, self, key)

    def give_back(self, part: Path, key: str, size: int) -> None:
        """Let another process continue a part."""
        with contextlib.suppress(FileNotFoundError):
            part.rename(self.folder / f"{key}.{size}.part")

    def usage(self) -> int:
        """Bytes taken and promised in the run's own folder."""
        return _sum(self._entries())

    def mark_used(self, key: str) -> None:
        """Note that the file has been read."""
        (self.folder / f"{key}.used").touch()

    def was_used(self, key: str) -> bool:
        """Whether the file has been read, since `forget_use`."""
        return (self.folder / f"{key}.used").exists()

    def forget_use(self, key: str) -> None:
        """It will be needed (again)."""
        (self.folder / f"{key}.used").unlink(missing_ok=True)

    def remove(self) -> None:
        """The run is over: its folder goes, with all that is not kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def cannot_write(self, error: OSError, path: Path) -> OutputError:
        """What a failed write means for the user."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutputError(
                f"The disk of the download folder {self.folder} is full, and --cache-size lets it grow to {self.limit / 1e9:.3f} GB. "
                "Free space, lower --cache-size or choose another --cache-dir, and run the same command again: it continues from here."
            )
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            return OutputError(
                f"The download folder {self.folder} is on a file system without hard links ({error.strerror}). "
                "Choose another with --cache-dir, best on a local disk."
            )
        return as_output_error(error, path)

    def _read(self, key: str) -> Whole | None:
        """The whole file, in use; None if it is not there."""
        if self.kept is not None:
            return Whole(self.kept / key, self, key) if (self.kept / key).exists() else None
        reading = self.folder / f"{key}.{_new_owner()}.reading"
        try:
            reading.hardlink_to(self.folder / key)
        except FileNotFoundError:
            return None
        return Whole(reading, self, key)

    def _take_part(self, key: str, size: int, may_remove: Callable[[str], bool]) -> Whole | Partial | None:
        """Take a part's name and with it the room; given back where another process did so at the same time."""
        parts = self._parts_of(key)
        if any(part.is_owned for part in parts):
            return None
        own = self.folder / f"{key}.{size}.{_new_owner()}.part"
        try:
            if parts:
                parts[0].path.rename(own)
            else:
                own.touch(exist_ok=False)
        except FileNotFoundError:  # another process took it
            return None
        os.utime(own)  # begun now, for processes of other machines
        partial = Partial(own, size, self, key)
        if any(part.path != own and part.is_owned for part in self._parts_of(key)):
            self._withdraw(partial)
            return None
        if (whole := self._read(key)) is not None:  # it became whole meanwhile
            self._withdraw(partial)
            return whole
        if not self._make_room(may_remove):
            self._withdraw(partial)
            return None
        return partial

    def _withdraw(self, partial: Partial) -> None:
        """Give a part back; an empty one is no use to anybody."""
        if partial.received == 0:
            partial.path.unlink(missing_ok=True)
        partial.leave()

    def _parts_of(self, key: str) -> list[_Entry]:
        return [entry for entry in self._entries() if entry.key == key and entry.kind == "part"]

    def _entries(self) -> list[_Entry]:
        """Whole files, parts and files being read, in the order of their names."""
        entries = []
        with os.scandir(self.folder) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    if (entry := _entry(file)) is not None:
                        entries.append(entry)
        return sorted(entries, key=lambda entry: entry.path.name)

    def _make_room(self, may_remove: Callable[[str], bool]) -> bool:
        """Remove files until no more than the limit is taken and promised; False, and nothing removed, if
        that cannot be now.
        """
        entries = self._entries()
        lacking = _sum(entries) - self.limit
        if (
            lacking <= 0 or self.kept is not None
        ):  # what is kept was counted before the run (Fetcher.check_room)
            return True
        readings = {entry.path: entry for entry in entries if entry.kind == "reading"}
        for path in [path for path, entry in readings.items() if not entry.is_owned]:
            path.unlink(missing_ok=True)
            del readings[path]
        in_use = {entry.number for entry in readings.values()}
        used, parts, unread = [], [], []
        for entry in entries:
            if entry.number in in_use or entry.kind == "reading":
                continue
            if entry.kind == "part":
                if not entry.is_owned:
                    parts.append((entry.changed, entry))
            elif self.was_used(entry.key):
                used.append((entry.changed, entry))
            elif may_remove(entry.key):
                unread.append((-entry.changed, entry))  # what came last is needed last
        # First what has been read, then what a dead process left, then what was downloaded ahead.
        chosen = []
        for group in (used, parts, unread):
            for _, entry in sorted(group, key=lambda item: item[0]):
                if lacking > 0:
                    chosen.append(entry)
                    lacking -= entry.size
        if lacking > 0:
            return False
        for entry in chosen:
            entry.path.unlink(missing_ok=True)
        return _sum(self._entries()) <= self.limit  # not so if one of them was taken into use just now


def _entry(file: os.DirEntry[str]) -> _Entry | None:
    """None for other files: marks, and what is not ours."""
    key, *rest = file.name.split(".")
    if len(key) != 32:
        return None
    match rest:
        case []:
            kind, owner, promised = "whole", "", ""
        case [owner, "reading"]:
            kind, promised = "reading", ""
        case [promised, "part"]:
            kind, owner = "part", ""
        case [promised, owner, "part"]:
            kind = "part"
        case _:
            return None
    status = file.stat()
    size = int(promised) if promised.isdigit() else status.st_size
    return _Entry(Path(file.path), key, kind, owner, size, status.st_ino, status.st_mtime)


def _sum(entries: list[_Entry]) -> int:
    """Bytes taken and promised; a file of two names counts once."""
    return sum({entry.number: entry.size for entry in entries}.values())


def remove_abandoned(folder: Path, older_than: float) -> None:
    """Remove the folders `run-*` of runs that were never finished and in which nothing has happened since
    `older_than`.

    older_than: seconds since the epoch. One in which a file is in use stays, regardless of its age.
    """
    with contextlib.suppress(OSError):  # what is not ours to remove stays
        for path in folder.glob("run-*"):
            if path.stat().st_mtime >= older_than:
                continue
            with os.scandir(path) as files:
                entries = [entry for file in files if (entry := _entry(file)) is not None]
            if not any(entry.is_owned for entry in entries):
                shutil.rmtree(path, ignore_errors=True)
