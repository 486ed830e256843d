"""A bounded folder of downloaded files, shared by the processes of one run; no crash can spoil it.

    lock           held (flock) for the moment in which the files below are counted or removed
    KEY            a whole, verified file; a shared flock on it says that it is being read, and it stays
    KEY.used       empty: the file has been read; it may be removed first, and is not downloaded ahead again
    KEY.SIZE.part  a file being downloaded, of SIZE bytes in the end; its downloader holds an exclusive flock

KEY is 32 hex digits, made from address, size and version, so no name from a listing ever becomes a path. All
locks are flock: they end with their process, so a killed one blocks no other, and the next one continues the
part it left. The sizes of whole files and the final sizes of parts never add up to more than the limit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from btlm_data.errors import OutputError
from btlm_data.storage.local import as_output_error

_open_locks: set[int] = set()
_open_locks_guard = threading.Lock()


def _drop_inherited_locks() -> None:
    """A forked child shares its parent's flocks until it closes them; the parent's files must not stay in use."""
    global _open_locks_guard
    for descriptor in _open_locks:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _open_locks.clear()
    _open_locks_guard = threading.Lock()


os.register_at_fork(after_in_child=_drop_inherited_locks)


def _lock(path: Path, *, exclusive: bool, wait: bool, create: bool = False) -> int | None:
    """Open and flock `path`; None if it is locked by another (without `wait`) or is not there."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(
            descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
        )
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise OutputError(
            f"The download folder {path.parent} is on a file system without file locks ({error.strerror}). "
            "Choose another with --cache-dir, best on a local disk."
        ) from error
    with _open_locks_guard:
        _open_locks.add(descriptor)
    return descriptor


def _unlock(descriptor: int) -> None:
    with _open_locks_guard:
        if descriptor not in _open_locks:
            return
        _open_locks.discard(descriptor)
    os.close(descriptor)


def key_of(url: str, size: int, version: str) -> str:
    """The name under which a file is held."""
    return hashlib.sha256(f"{url}\0{size}\0{version}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass
class Whole:
    """A whole file that stays until `release`."""

    path: Path
    _pool: Pool
    _key: str
    _descriptor: int

    def release(self, *, used: bool = True) -> None:
        """Let it go. used: it has been read, and may be the first to be removed."""
        if used:
            with contextlib.suppress(
                OSError
            ):  # the mark is advice only; a full disk must not fail the reader
                self._pool.mark_used(self._key)
        _unlock(self._descriptor)


@dataclass
class Partial:
    """A file that this process downloads; no other touches it until it is finished or left."""

    path: Path
    size: int
    _pool: Pool
    _key: str
    _descriptor: int

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
        path = self._pool.path_of(self._key)
        try:
            os.fsync(self._descriptor)
            with self._pool.counting():
                self.path.rename(path)
                # From exclusive to shared is not one step, but what could come between needs the other lock.
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        except OSError as error:
            raise self._pool.cannot_write(error, path) from error
        return Whole(path, self._pool, self._key, self._descriptor)

    def leave(self) -> None:
        """Let it go as it is; the next one continues it."""
        _unlock(self._descriptor)


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

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Hold the lock under which files are counted, given room and removed."""
        descriptor = _lock(self.folder / "lock", exclusive=True, wait=True, create=True)
        assert descriptor is not None
        try:
            yield
        finally:
            _unlock(descriptor)

    def path_of(self, key: str) -> Path:
        """Where a whole file lies."""
        return (self.kept or self.folder) / key

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
        with self.counting():
            path = self.path_of(key)
            # A whole file is only ever locked exclusively under the lock of this block.
            descriptor = _lock(path, exclusive=False, wait=True)
            if descriptor is not None:
                return Whole(path, self, key, descriptor)
            part = self.folder / f"{key}.{size}.part"
            if not part.exists() and not self._make_room(size, may_remove):
                return None
            descriptor = _lock(part, exclusive=True, wait=False, create=True)
            return None if descriptor is None else Partial(part, size, self, key, descriptor)

    def usage(self) -> int:
        """Bytes taken and promised in the run's own folder."""
        return sum(size for _, size, _ in self._files())

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
        return as_output_error(error, path)

    def _files(self) -> list[tuple[str, int, float]]:
        """(name, bytes taken or promised, mtime) of whole files and parts."""
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                key, _, rest = entry.name.partition(".")
                if len(key) != 32 or rest == "used":
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    promised = rest.removesuffix(".part")
                    size = int(promised) if promised.isdigit() else status.st_size
                    files.append((entry.name, size, status.st_mtime))
        return files

    def _make_room(self, needed: int, may_remove: Callable[[str], bool]) -> bool:
        """Remove files until `needed` more bytes fit; False, and nothing removed, if they cannot now. Holds
        the lock.
        """
        files = self._files()
        lacking = sum(size for _, size, _ in files) + needed - self.limit
        if (
            lacking <= 0 or self.kept is not None
        ):  # what is kept was counted before the run (Fetcher.check_room)
            return True
        used: list[tuple[float, str, int]] = []
        parts: list[tuple[float, str, int]] = []
        unread: list[tuple[float, str, int]] = []
        for name, size, changed in files:
            if name.endswith(".part"):
                parts.append((changed, name, size))
            elif self.was_used(name):
                used.append((changed, name, size))
            elif may_remove(name):
                unread.append((-changed, name, size))  # what came last is needed last
        # First what has been read, then what a dead process left, then what was downloaded ahead.
        locked: list[tuple[Path, int]] = []
        try:
            for _, name, size in sorted(used) + sorted(parts) + sorted(unread):
                if lacking <= 0:
                    break
                path = self.folder / name
                descriptor = _lock(path, exclusive=True, wait=False)
                if descriptor is not None:
                    locked.append((path, descriptor))
                    lacking -= size
            if lacking > 0:
                return False
            for path, _ in locked:
                path.unlink(missing_ok=True)
            return True
        finally:
            for _, descriptor in locked:
                _unlock(descriptor)


def remove_abandoned(folder: Path, older_than: float) -> None:
    """Remove the folders `run-*` of runs that were never finished and in which nothing has happened since
    `older_than`.

    older_than: seconds since the epoch. One in which a file is in use stays, whatever its age.
    """
    try:
        abandoned = [path for path in folder.glob("run-*") if path.stat().st_mtime < older_than]
    except OSError:
        return
    for path in abandoned:
        descriptors = []
        try:
            for inside in path.iterdir():
                descriptor = _lock(inside, exclusive=True, wait=False)
                if descriptor is None:
                    break
                descriptors.append(descriptor)
            else:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # not ours to remove
            continue
        finally:
            for descriptor in descriptors:
                _unlock(descriptor)
