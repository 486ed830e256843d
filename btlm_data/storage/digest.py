"""The checksums of the project: XXH3 where speed counts (work files), SHA-256 where others compare
(datasets).
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import xxhash

_PIECE = 1 << 20


def sha256_stream(file: BinaryIO) -> str:
    """Hex SHA-256 of an open file, from its current position to its end, a megabyte at a time."""
    hasher = hashlib.sha256()
    while piece := file.read(_PIECE):
        hasher.update(piece)
    return hasher.hexdigest()


def both_of_stream(file: BinaryIO) -> tuple[str, str]:
    """Hex SHA-256, and hex XXH3 (128 bits), of an open file, from its current position to its end."""
    sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_128()
    while piece := file.read(_PIECE):
        sha256.update(piece)
        xxh3.update(piece)
    return sha256.hexdigest(), xxh3.hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file on this machine."""
    with path.open("rb") as file:
        return sha256_stream(file)


def checksum(data: bytes | memoryview) -> str:
    """Hex XXH3 (128 bits) of bytes: what receipts say of work files."""
    return xxhash.xxh3_128_hexdigest(data)


def checksummer() -> xxhash.xxh3_128:
    """Takes the checksum of bytes as they come."""
    return xxhash.xxh3_128()


def checksum_stream(file: BinaryIO) -> str:
    """Hex XXH3 (128 bits) of an open file, from its current position to its end."""
    hasher = xxhash.xxh3_128()
    while piece := file.read(_PIECE):
        hasher.update(piece)
    return hasher.hexdigest()


class HashedWriter:
    """Writes a file from its beginning to its end and takes both checksums on the way, so that nothing of a large file is read again.
    SHA-256, which takes as long as all the rest, is taken in a thread. Use as a context manager.

    size: bytes written so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256, self._xxh3 = hashlib.sha256(), xxhash.xxh3_128()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def write(self, data: bytes | memoryview) -> None:
        """Write the next bytes."""
        if len(data) < _PIECE:
            self._sha256.update(data)
            self._add(data)
            return
        hashing = self._thread.submit(self._sha256.update, data)
        self._add(data)
        hashing.result()

    def _add(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._xxh3.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what was written."""
        return self._sha256.hexdigest()

    @property
    def checksum(self) -> str:
        """Hex XXH3 (128 bits) of what was written."""
        return self._xxh3.hexdigest()
