"""Blocks of remote shards on the local disk: bounded, checksummed, shared by the processes of a node.

    FOLDER/used                     bytes in the cache, counted before they are written
    FOLDER/locks/0 ... 255          who fetches a stretch holds its lock, so that it is fetched once
    FOLDER/KEY/NUMBER               one block after its checksum; KEY names an object in one state
    FOLDER/KEY/NUMBER.part          being written
    FOLDER/KEY/digests              checksums of all blocks of a file that was checked as a whole

The oldest blocks make room for new ones. A block that was flipped on the disk is dropped and fetched again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

logger = logging.getLogger(__name__)
BLOCK_BYTES = 2**16  # two or three compressed samples of 8,192 tokens
STRETCH = 64  # blocks that one request may bring
DIGEST_BYTES = 16
_LOCKS = 256
_ROOM = 0.9  # how full the cache is left when room was made
_MEMORY_BYTES = 2**25  # blocks held in memory by a process


@dataclass(frozen=True)
class CacheSettings:
    """Where blocks are kept, and how many bytes of them. folder: an absolute path."""

    folder: str
    num_bytes: int

    @staticmethod
    def of(folder: str | None, num_bytes: int) -> CacheSettings:
        """`folder`, or one in the user's cache folder."""
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        return CacheSettings(os.path.abspath(folder or os.path.join(base, "btlm-data", "blocks")), num_bytes)


def digest(data: bytes) -> bytes:
    """The checksum of a block."""
    return xxhash.xxh3_128_digest(data)


class BlockCache:
    """See the module. Every call may be made from any thread and process."""

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self.folder = Path(settings.folder)
        self._warned = False

    def has(self, key: str, number: int) -> bool:
        """Whether a block is there; if so, it counts as just used."""
        try:
            os.utime(self._path(key, number))
        except OSError:
            return False
        return True

    def load(self, key: str, number: int) -> bytes | None:
        """A block, or None if it is not there, or no longer what was written."""
        try:
            file = os.open(self._path(key, number), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            check = os.read(file, DIGEST_BYTES)
            data = os.read(file, BLOCK_BYTES + 1)
        except OSError:
            return None
        finally:
            os.close(file)
        if digest(data) == check:
            return data
        self.discard(key, [number])
        return None

    def part(self, key: str, number: int, start: int, count: int) -> bytes | None:
        """`count` bytes of a block from `start` on, not compared with its checksum; None if they are not there."""
        try:
            file = os.open(self._path(key, number), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            data = os.pread(file, count, DIGEST_BYTES + start)
        except OSError:
            return None
        finally:
            os.close(file)
        return data if len(data) == count else None

    def fetch(
        self, key: str, numbers: Sequence[int], ask: Callable[[int, int], Sequence[bytes]]
    ) -> dict[int, bytes]:
        """Blocks that were not there: `ask(first, stop)` brings blocks [first, stop), in one request each.

        numbers: ascending. Blocks that another process has brought meanwhile are not requested; they are left
        out of the answer if they had been there before.
        """
        blocks: dict[int, bytes] = {}
        for first, stop in _stretches(numbers):
            with self._fetching(key, first // STRETCH):
                missing = [number for number in range(first, stop) if not self.has(key, number)]
                for begin, end in _stretches(missing):
                    for number, data in zip(range(begin, end), ask(begin, end), strict=True):
                        self._store(key, number, data)
                        blocks[number] = data
        return blocks

    def discard(self, key: str, numbers: Sequence[int]) -> None:
        """Drop blocks."""
        for number in numbers:
            with contextlib.suppress(OSError):
                os.unlink(self._path(key, number))

    def digests(self, key: str) -> list[bytes] | None:
        """The checksums of all blocks of a file that was checked as a whole; None if it was not."""
        try:
            stored = (self.folder / key / "digests").read_bytes()
        except OSError:
            return None
        data, check = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
        if digest(data) != check or len(data) % DIGEST_BYTES:
            return None
        return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]

    def keep_digests(self, key: str, values: Sequence[bytes]) -> None:
        """Remember the checksums of all blocks of a file that was checked as a whole."""
        data = b"".join(values)
        self._write(self.folder / key / "digests", data + digest(data))

    def _path(self, key: str, number: int) -> str:
        return f"{self.settings.folder}/{key}/{number}"

    def _store(self, key: str, number: int, data: bytes) -> None:
        self._write(self.folder / key / str(number), digest(data) + data)

    def _write(self, path: Path, stored: bytes) -> None:
        """Write a file whole. A disk that is full or read-only costs the cache, not the run."""
        part = path.with_name(f"{path.name}.part-{os.getpid()}-{threading.get_ident()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._room(len(stored)):
                path.parent.mkdir(exist_ok=True)
                part.write_bytes(stored)
                part.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            if not self._warned:
                logger.warning(
                    "The cache %s cannot be written (%s), so blocks are fetched each time they are needed. "
                    "Give another place with cache_dir.",
                    self.folder, error.strerror or error,
                )  # fmt: skip
                self._warned = True

    @contextlib.contextmanager
    def _fetching(self, key: str, stretch: int) -> Iterator[None]:
        """Hold the lock of a stretch. A process that dies lets go of it."""
        number = zlib.crc32(f"{key}/{stretch}".encode()) % _LOCKS
        folder = self.folder / "locks"
        with contextlib.ExitStack() as held:
            # Read-only, or a file system without locks: each process fetches for itself.
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(open(folder / str(number), "ab"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _room(self, num_bytes: int) -> Iterator[None]:
        """Count bytes that are written within; the oldest files go if they would not fit. One at a time."""
        with open(self.folder / "used", "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read(32)
            used = int(text) if text.isdigit() else None
            if used is None or used + num_bytes > self.settings.num_bytes:
                used = self._evict(num_bytes)
            file.truncate(0)
            file.write(b"%d" % (used + num_bytes))
            file.flush()
            yield

    def _evict(self, num_bytes: int) -> int:
        """Remove the least recently used files if there is no room; returns the bytes that stay."""
        files = []
        for folder in _entries(self.folder):
            if folder.is_dir(follow_symlinks=False) and folder.name != "locks":
                for entry in _entries(folder.path):
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        files.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        if total + num_bytes <= self.settings.num_bytes:
            return total
        goal = int(self.settings.num_bytes * _ROOM) - num_bytes
        for _, size, path in sorted(files):
            if total <= goal:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(path))  # where it was the last one
        return total


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as ranges [first, stop) of neighbours, none across a multiple of STRETCH."""
    first = previous = None
    for number in numbers:
        if first is not None and previous is not None:
            if number == previous + 1 and number % STRETCH:
                previous = number
                continue
            yield first, previous + 1
        first = previous = number
    if first is not None and previous is not None:
        yield first, previous + 1


class BlocksInMemory:
    """The blocks that this process used last, at most 32 MB of them. One for the whole process."""

    def __init__(self) -> None:
        self.clear()
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        """Drop all."""
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0

    def get(self, key: str, number: int) -> bytes | None:
        """A block, if it is held."""
        with self._lock:
            data = self._blocks.get((key, number))
            if data is not None:
                self._blocks.move_to_end((key, number))
            return data

    def put(self, key: str, number: int, data: bytes) -> None:
        """Hold a block."""
        with self._lock:
            before = self._blocks.pop((key, number), b"")
            self._blocks[key, number] = data
            self._bytes += len(data) - len(before)
            while self._bytes > _MEMORY_BYTES:
                self._bytes -= len(self._blocks.popitem(last=False)[1])

    def drop(self, key: str, numbers: Sequence[int]) -> None:
        """Hold these no longer."""
        with self._lock:
            for number in numbers:
                self._bytes -= len(self._blocks.pop((key, number), b""))


IN_MEMORY = BlocksInMemory()
