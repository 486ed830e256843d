"""Shards in an object store: read by ranges, through blocks on the local disk.

Only bytes that carry a checksum are trusted. The chunks of our own shards do (gzip's), so they are read one
by one. Any other file is fetched whole once, compared with its SHA-256 in dataset.json where that is known,
and the checksums of its blocks are remembered. What arrives wrong is fetched again, and then refused; a file
that was replaced since it was opened is refused at once.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.storage.remote import RemoteStore
from btlm_train.data.block_cache import (
    BLOCK_BYTES,
    IN_MEMORY,
    STRETCH,
    BlockCache,
    CacheSettings,
    digest,
)

TRIES = 4  # how often bytes that arrive wrong are fetched
THREADS = 8  # requests under way while a file is fetched whole


@dataclass(frozen=True)
class RemoteObject:
    """One shard in a store, in the state that was found when the data was opened.

    url: the folder. tag: what changes when the object is replaced. sha256: of dataset.json, None if it is not
    listed there.
    """

    url: str
    name: str
    num_bytes: int
    tag: str
    sha256: str | None
    cache: CacheSettings

    def __hash__(self) -> int:  # of all fields it would cost as much as reading a block
        return hash((self.name, self.tag))

    @property
    def key(self) -> str:
        """Names the object in this state, and the size of its blocks, in the cache."""
        text = f"{self.url}/{self.name}\n{self.num_bytes}\n{self.tag}\n{BLOCK_BYTES}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def shown(self) -> str:
        """The object as messages name it."""
        return f"{_store(self.url).shown}/{self.name}"


@functools.lru_cache(maxsize=256)
def _store(url: str) -> RemoteStore:
    return RemoteStore(url)


class StoreError(DataError):
    """The store does not give an object any more, or not the one that was opened: not cured by asking again."""


class RemoteFile:
    """A `ByteSource` over the blocks of one object.

    used: blocks that were read since what they gave was last found right. carries_checksums: set once the head
    was read, where all that is read from then on has checksums of its own; it then need not be compared with
    those of the cache, and of a block only the part that is asked for is read from the disk.
    """

    def __init__(self, target: RemoteObject) -> None:
        self.target = target
        self.name = target.shown
        self.size = target.num_bytes
        self.used: set[int] = set()
        self.carries_checksums = False
        self.digests: Sequence[bytes] | None = None
        self._key = target.key
        self._cache = _cache(target.cache)

    @property
    def num_blocks(self) -> int:
        """How many blocks the object has."""
        return math.ceil(self.size / BLOCK_BYTES)

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, fewer where the file ends. Raises StoreError."""
        stop = min(offset + count, self.size)
        if stop <= offset:
            return b""
        first, last = offset // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        if self.carries_checksums:
            return b"".join(
                self._part(
                    number,
                    max(0, offset - number * BLOCK_BYTES),
                    min(BLOCK_BYTES, stop - number * BLOCK_BYTES),
                )
                for number in range(first, last + 1)
            )
        if first == last:
            block = IN_MEMORY.get(self._key, first)
            if block is None:
                (block,) = self._blocks(range(first, first + 1))
            else:
                self.used.add(first)
            return block[offset - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]
        blocks = self._blocks(range(first, last + 1))
        blocks[-1] = blocks[-1][: stop - last * BLOCK_BYTES]
        blocks[0] = blocks[0][offset - first * BLOCK_BYTES :]
        return b"".join(blocks)

    def close(self) -> None:
        """Nothing is open."""

    def bring(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Have these blocks (ascending) in the cache; the ones that were fetched for it."""
        return self._cache.fetch(self._key, numbers, self._ask)

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """Those of these blocks that are not in the cache; the others count as just used."""
        return [number for number in numbers if not self._cache.has(self._key, number)]

    def discard_used(self) -> None:
        """Drop the used blocks: one of them is wrong."""
        numbers = sorted(self.used)
        IN_MEMORY.drop(self._key, numbers)
        self._cache.discard(self._key, numbers)
        self.used.clear()

    def verify_whole(self) -> None:
        """Read every block once and remember their checksums. Raises DataError if the SHA-256 is another one."""
        self.digests = self._cache.digests(self._key)
        if self.digests is not None and len(self.digests) == self.num_blocks:
            return
        self.digests = None
        for _ in range(TRIES):
            digests, sha256 = self._hashes()
            if self.target.sha256 in (None, sha256):
                self._cache.keep_digests(self._key, digests)
                self.digests = digests
                return
            self.discard_used()
        raise DataError(
            f"{self.name} has the SHA-256 {sha256}, and dataset.json says {self.target.sha256}: "
            f"it was fetched {TRIES} times. Upload it again from a copy that verify accepts."
        )

    def _hashes(self) -> tuple[list[bytes], str]:
        """The checksum of each block, and the SHA-256 of the whole."""
        whole = hashlib.sha256()
        digests = []
        stretches = [
            range(first, min(first + STRETCH, self.num_blocks))
            for first in range(0, self.num_blocks, STRETCH)
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            for group in _groups(stretches, THREADS):
                for stretch in pool.map(self._whole_stretch, group):
                    for block in stretch:
                        whole.update(block)
                        digests.append(digest(block))
        return digests, whole.hexdigest()

    def _whole_stretch(self, numbers: range) -> list[bytes]:
        self.used.update(numbers)
        brought = self.bring(numbers)
        return [brought[number] if number in brought else self._block(number) for number in numbers]

    def _part(self, number: int, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a block."""
        self.used.add(number)
        data = self._cache.part(self._key, number, start, stop - start)
        return self._blocks(range(number, number + 1))[0][start:stop] if data is None else data

    def _blocks(self, numbers: range) -> list[bytes]:
        self.used.update(numbers)
        held = {number: IN_MEMORY.get(self._key, number) for number in numbers}
        absent = [number for number, data in held.items() if data is None]
        if absent:
            loaded = {number: self._load(number) for number in absent}
            brought = self.bring([number for number, data in loaded.items() if data is None])
            for number in absent:
                data = loaded[number] or brought.get(number) or self._block(number)
                IN_MEMORY.put(self._key, number, data)
                held[number] = data
        return [data for data in held.values() if data is not None]

    def _block(self, number: int) -> bytes:
        """One block, from the cache or the store."""
        data = self._load(number)
        return data if data is not None else self._ask(number, number + 1)[0]

    def _load(self, number: int) -> bytes | None:
        data = self._cache.load(self._key, number)
        if data is not None and (len(data) != self._length(number) or not self._is_right(number, data)):
            self._cache.discard(self._key, [number])
            return None
        return data

    def _ask(self, first: int, stop: int) -> list[bytes]:
        """Blocks [first, stop) by one request."""
        target = self.target
        begin, end = first * BLOCK_BYTES, min(stop * BLOCK_BYTES, self.size)
        for _ in range(TRIES):
            try:
                data = _store(target.url).read_unchanged(target.name, begin, end, target.tag)
            except DataError as error:
                raise StoreError(str(error)) from None
            if data is None:
                raise StoreError(
                    f"The shard {self.name} changed or went away while it was in use. Restore it, or start "
                    "again with the new data."
                )
            blocks = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
            if all(self._is_right(first + offset, block) for offset, block in enumerate(blocks)):
                return blocks
        raise StoreError(
            f"Bytes {begin:,} to {end:,} of {self.name} arrive differently than before, {TRIES} times. "
            "Check the store and the network, and run the same command again."
        )

    def _is_right(self, number: int, data: bytes) -> bool:
        return self.digests is None or digest(data) == self.digests[number]

    def _length(self, number: int) -> int:
        return min(BLOCK_BYTES, self.size - number * BLOCK_BYTES)


@functools.lru_cache(maxsize=16)
def _cache(settings: CacheSettings) -> BlockCache:
    return BlockCache(settings)


def _groups(items: Sequence[range], size: int) -> Iterator[Sequence[range]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


class RemoteShard:
    """Rows of a shard in a store, as `ShardReader` gives them. Raises DataError where the store's bytes stay
    wrong.
    """

    def __init__(self, target: RemoteObject) -> None:
        self.target = target
        self._open: tuple[RemoteFile, ShardReader] | None = None
        self._head: set[int] = set()  # blocks from which the head and the table of chunks were read
        self.shape = self._repeated(lambda reader: reader.shape)
        self.dtype = self._repeated(lambda reader: reader.dtype)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop). Returns (stop - start, ...) in the dtype of the file."""
        rows: npt.NDArray[Any] = self._repeated(lambda reader: reader.read(start, stop))
        self.file.used.clear()
        return rows

    def blocks_of(self, start: int, stop: int) -> set[int]:
        """The blocks that hold rows [start, stop)."""
        ranges: list[tuple[int, int]] = self._repeated(lambda reader: reader.stored_ranges(start, stop))
        return {
            number
            for offset, size in ranges
            for number in range(offset // BLOCK_BYTES, (offset + size - 1) // BLOCK_BYTES + 1)
        }

    @property
    def file(self) -> RemoteFile:
        """The object's bytes."""
        return self._opened()[0]

    def forget(self) -> None:
        """Drop the block of rows decoded last."""
        if self._open is not None:
            self._open[1].forget()

    def _opened(self) -> tuple[RemoteFile, ShardReader]:
        if self._open is None:
            file = RemoteFile(self.target)
            try:
                reader = ShardReader(file)
                file.carries_checksums = reader.carries_checksums()
                if not file.carries_checksums:
                    file.verify_whole()
                    reader = ShardReader(file)
            except StoreError:
                raise
            except DataError:
                file.discard_used()
                raise
            self._head = set(file.used)
            self._open = file, reader
        return self._open

    def _repeated(self, ask: Any) -> Any:
        """`ask` of a reader; where bytes are wrong, of new ones."""
        for attempt in range(TRIES):
            try:
                return ask(self._opened()[1])
            except StoreError:
                raise
            except DataError:
                if self._open is not None:
                    if attempt:  # the chunk's own blocks were not what was wrong
                        self._open[0].used |= self._head
                    self._open[0].discard_used()
                    self._open = None
                if attempt == TRIES - 1:
                    raise
        raise AssertionError
