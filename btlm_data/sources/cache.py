"""A bounded folder of fetched files, shared by every process of one machine, that no crash can spoil.

    lock              held (flock) for the moment that the books below are read or changed
    files/KEY         a whole, verified file; a shared flock on it is a pin: it is in use and stays
    files/KEY.sha256  its SHA-256 in hex (64 bytes)
    partial/KEY.SIZE  a file on its way, of SIZE bytes at last; the process that fetches it holds an exclusive flock on it
    used/KEY          empty: the file has been used (it may go first); stays after the file so that nobody fetches it ahead again
    slots/0 ...       one exclusive flock for each connection
    pause             its modification time is the moment before which no server is to be asked again

KEY is 32 hex digits, made from address, size and version, so no name from a listing ever becomes a path. All locks are
flock: they end with their process, so a killed one blocks nobody; what it left is a partial file that the next one
goes on with, or that is dropped when room is needed. The sum of whole files and of the final sizes of partial files never exceeds the limit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from btlm_data.errors import OutputError
from btlm_data.formats.atomic import as_output_error

CHECKSUM_BYTES = 64
_POLL = 0.02  # seconds between two looks at what other processes do; grows to ten times as much
_LONGEST_PAUSE = 3600.0

_open_locks: set[int] = set()
_open_locks_guard = threading.Lock()


def _drop_inherited_locks() -> None:
    """A forked child shares its parent's flocks until it closes them; it must not keep the parent's files pinned."""
    global _open_locks_guard
    for descriptor in _open_locks:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _open_locks.clear()
    _open_locks_guard = threading.Lock()


os.register_at_fork(after_in_child=_drop_inherited_locks)


def _lock(path: Path, *, exclusive: bool, wait: bool, create: bool = False) -> int | None:
    """Open and flock `path`; the descriptor, or None if it is locked by another (without `wait`) or is not there."""
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
            f"The cache folder {path.parent} is on a file system without file locks ({error.strerror}). "
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
    """The name under which a file is cached."""
    return hashlib.sha256(f"{url}\0{size}\0{version}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _cannot_write(error: OSError, path: Path, cache: Cache) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"The disk of the cache folder {cache.folder} is full, and --cache-size lets the cache grow to {cache.limit / 1e9:.3f} GB. "
            "Free space, lower --cache-size or choose another --cache-dir, and run the same command again: it goes on from here."
        )
    return as_output_error(error, path)


@dataclass
class Pin:
    """A whole file that stays until `release`."""

    path: Path
    _cache: Cache
    _key: str
    _descriptor: int

    def release(self, *, used: bool = True) -> None:
        """Let it go. used: it has been read, and may be the first to be dropped."""
        if used:
            with contextlib.suppress(
                OSError
            ):  # the mark is advice only; a full disk must not fail the reader
                self._cache.mark_used(self._key)
        _unlock(self._descriptor)


@dataclass
class Partial:
    """A file being fetched by this process; nobody else touches it until it is finished or left."""

    path: Path
    size: int
    _cache: Cache
    _key: str
    _descriptor: int

    @property
    def have(self) -> int:
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
            raise _cannot_write(error, self.path, self._cache) from error

    def restart(self) -> None:
        """Forget what there is."""
        os.ftruncate(self._descriptor, 0)

    def pieces(self, size: int = 2**20) -> Iterator[bytes]:
        """What there is, from the start."""
        position = 0
        while piece := os.pread(self._descriptor, size, position):
            position += len(piece)
            yield piece

    def finish(self, sha256: str) -> Pin:
        """Give it its place among the whole files, pinned."""
        os.fsync(self._descriptor)
        return self._cache.install(self, sha256)

    def leave(self) -> None:
        """Let it go as it is, for whoever goes on with it."""
        _unlock(self._descriptor)


class Cache:
    """See the module. limit: bytes. keep: never drop a file to make room."""

    def __init__(self, folder: Path, limit: int, *, keep: bool = False, connections: int = 8) -> None:
        self.folder = folder
        self.limit = limit
        self.keep = keep
        self.connections = connections
        try:
            for name in ("files", "partial", "used", "slots"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise as_output_error(error, folder) from error

    @contextlib.contextmanager
    def _books(self) -> Iterator[None]:
        descriptor = _lock(self.folder / "lock", exclusive=True, wait=True, create=True)
        assert descriptor is not None
        try:
            yield
        finally:
            _unlock(descriptor)

    def obtain(self, key: str, size: int, may_drop: Callable[[str], bool]) -> Pin | Partial | None:
        """The whole file, pinned; or the right to fetch it, with room for all of it; or None: ask again later.

        may_drop(key): whether a fetched but not yet used file may be dropped to make room. Raises OutputError if the file
        can never fit.
        """
        needed = size + CHECKSUM_BYTES
        if needed > self.limit:
            raise OutputError(
                f"One file of the source has {size / 1e9:.3f} GB, more than the whole cache may hold ({self.limit / 1e9:.3f} GB). "
                f"Raise --cache-size to at least {needed * 1.05 / 1e9:.3f}GB (enough for one file a worker is better)."
            )
        with self._books():
            pin = self._pin(key)
            if pin is not None:
                return pin
            path = self.folder / "partial" / f"{key}.{size}"
            begun = path.exists()
            if not begun and not self._make_room(needed, key, may_drop):
                return None
            descriptor = _lock(path, exclusive=True, wait=False, create=True)
            return None if descriptor is None else Partial(path, size, self, key, descriptor)

    def find(self, key: str) -> Pin | None:
        """The whole file, pinned, if it is there."""
        with self._books():
            return self._pin(key)

    def _pin(self, key: str) -> Pin | None:
        path = self.folder / "files" / key
        descriptor = _lock(
            path, exclusive=False, wait=True
        )  # nobody holds it exclusively without holding the books
        return None if descriptor is None else Pin(path, self, key, descriptor)

    def install(self, partial: Partial, sha256: str) -> Pin:
        """Move a verified partial file among the whole ones and turn its lock into a pin."""
        path = self.folder / "files" / partial._key
        try:
            with self._books():
                (self.folder / "files" / f"{partial._key}.sha256").write_text(sha256)
                partial.path.rename(path)
                fcntl.flock(
                    partial._descriptor, fcntl.LOCK_SH
                )  # not atomic, but whoever would slip in needs the books
        except OSError as error:
            raise _cannot_write(error, path, self) from error
        return Pin(path, self, partial._key, partial._descriptor)

    def checksum(self, key: str) -> str | None:
        """SHA-256 of a whole file, noted when it was verified."""
        try:
            return (self.folder / "files" / f"{key}.sha256").read_text() or None
        except OSError:
            return None

    def usage(self) -> int:
        """Bytes taken and promised."""
        return sum(size for size, _ in self._whole().values()) + sum(size for _, size, _ in self._partial())

    def _whole(self) -> dict[str, tuple[int, float]]:
        """Key -> (bytes with its checksum, mtime) of the whole files."""
        found = {}
        with os.scandir(self.folder / "files") as entries:
            for entry in entries:
                if len(entry.name) == 32:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        found[entry.name] = (status.st_size + CHECKSUM_BYTES, status.st_mtime)
        return found

    def _partial(self) -> list[tuple[str, int, float]]:
        """(name, bytes promised, mtime) of the files on their way."""
        found = []
        with os.scandir(self.folder / "partial") as entries:
            for entry in entries:
                _, dot, size = entry.name.partition(".")
                if dot and size.isdigit():
                    with contextlib.suppress(FileNotFoundError):
                        found.append((entry.name, int(size) + CHECKSUM_BYTES, entry.stat().st_mtime))
        return found

    def _make_room(self, needed: int, key: str, may_drop: Callable[[str], bool]) -> bool:
        """Drop files until `needed` more bytes fit; False, and nothing dropped, if they cannot now. Holds the books."""
        whole = self._whole()
        partial = self._partial()
        lacking = (
            sum(size for size, _ in whole.values())
            + sum(size for _, size, _ in partial)
            + needed
            - self.limit
        )
        if lacking <= 0:
            return True
        if self.keep:
            raise OutputError(
                f"The cache {self.folder} is full ({self.limit / 1e9:.3f} GB), and --keep-downloads keeps every file in it. "
                "Raise --cache-size to the size of the whole source, or leave --keep-downloads out."
            )
        used: list[tuple[float, str]] = []
        unused: list[tuple[float, str]] = []
        for name, (_, changed) in whole.items():
            try:
                used.append(((self.folder / "used" / name).stat().st_mtime, name))
            except FileNotFoundError:
                unused.append((-changed, name))  # what came last is needed last
        # First what has been used (longest ago first), then what a dead process left, then what was fetched ahead.
        candidates = [(self.folder / "files" / name, whole[name][0]) for _, name in sorted(used)]
        candidates += [
            (self.folder / "partial" / name, size)
            for name, size, _ in sorted(partial, key=lambda item: item[2])
        ]
        candidates += [
            (self.folder / "files" / name, whole[name][0]) for _, name in sorted(unused) if may_drop(name)
        ]
        locked: list[tuple[Path, int]] = []
        try:
            for path, size in candidates:
                if lacking <= 0:
                    break
                descriptor = _lock(path, exclusive=True, wait=False)
                if descriptor is not None:
                    locked.append((path, descriptor))
                    lacking -= size
            if lacking > 0:
                return False
            for path, _ in locked:
                path.unlink(missing_ok=True)
                (self.folder / "files" / f"{path.name}.sha256").unlink(missing_ok=True)
            return True
        finally:
            for _, descriptor in locked:
                _unlock(descriptor)

    def mark_used(self, key: str) -> None:
        """Note that the file has served."""
        (self.folder / "used" / key).touch()

    def was_used(self, key: str) -> bool:
        """Whether the file has served, since `forget_use`."""
        return (self.folder / "used" / key).exists()

    def forget_use(self, key: str) -> None:
        """It will be needed (again)."""
        (self.folder / "used" / key).unlink(missing_ok=True)

    def drop(self, key: str, size: int) -> None:
        """Remove a file, whole or partial, unless somebody uses it."""
        with self._books():
            for path in (self.folder / "files" / key, self.folder / "partial" / f"{key}.{size}"):
                descriptor = _lock(path, exclusive=True, wait=False)
                if descriptor is not None:
                    path.unlink(missing_ok=True)
                    (self.folder / "files" / f"{path.name}.sha256").unlink(missing_ok=True)
                    _unlock(descriptor)
            self.forget_use(key)

    # Connections ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def connection(self, check: Callable[[], None]) -> Iterator[None]:
        """One of the few connections this machine may have open at once. check: called while waiting; may raise."""
        waited = _POLL
        while True:
            for number in range(self.connections):
                descriptor = _lock(
                    self.folder / "slots" / str(number), exclusive=True, wait=False, create=True
                )
                if descriptor is not None:
                    try:
                        yield
                    finally:
                        _unlock(descriptor)
                    return
            check()
            time.sleep(waited)
            waited = min(waited * 1.5, 10 * _POLL)

    def ask_to_pause(self, seconds: float) -> None:
        """A server wants to be left alone: so every process of this machine waits."""
        until = time.time() + min(seconds, _LONGEST_PAUSE)
        path = self.folder / "pause"
        with contextlib.suppress(OSError):
            path.touch()
            if path.stat().st_mtime < until:
                os.utime(path, (until, until))

    def pause_left(self) -> float:
        """Seconds before a server may be asked again (bounded, whatever the clock did)."""
        try:
            return min(_LONGEST_PAUSE, max(0.0, (self.folder / "pause").stat().st_mtime - time.time()))
        except OSError:
            return 0.0
