"""The checksums of the project: XXH3 where speed counts (work files), SHA-256 where others compare
(datasets).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

import xxhash

_PIECE = 1 << 20


def sha256_stream(file: BinaryIO) -> str:
    """Hex SHA-256 of an open file, from its current position to its end, a megabyte at a time."""
    hasher = hashlib.sha256()
    while piece := file.read(_PIECE):
        hasher.update(piece)
    return hasher.hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file on this machine."""
    with path.open("rb") as file:
        return sha256_stream(file)


def checksum(data: bytes | memoryview) -> str:
    """Hex XXH3 (128 bits) of bytes: what receipts say of work files."""
    return xxhash.xxh3_128_hexdigest(data)


def checksum_stream(file: BinaryIO) -> str:
    """Hex XXH3 (128 bits) of an open file, from its current position to its end."""
    hasher = xxhash.xxh3_128()
    while piece := file.read(_PIECE):
        hasher.update(piece)
    return hasher.hexdigest()
