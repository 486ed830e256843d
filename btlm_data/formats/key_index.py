"""The key index of a set: in which row groups of its tables a document can be, by what names it, beside its shards.

    .key-index/index.json   what it is of, and its parts; sealed
    .key-index/KIND-NNNN    columns (columns.py): edge (2^b + 1,) uint32, check (n,) uint8, group (n,) uint16 (uint32
                            where there are more than 65,536 row groups)

Each key has a hash of 64 bits. Part k of 2^p of a kind has the keys whose hashes begin with the p bits of k; the next b
bits are the number of a bucket, whose entries are [edge[bucket], edge[bucket + 1]); the 8 bits behind are `check`.
`group` counts the row groups of the tables as index.json lists them. Entries of a bucket ascend by (check, group), each once.
So an entry is a proposal, about one in 16 of which is wrong, and none is missing; a document takes 3.3 bytes for each kind.

    id       the document's own id, UTF-8            XXH3
    url      each kept field that is a URL, UTF-8    XXH3
    hash     of its text                             its first 8 bytes, as a big-endian number
    offset   file and offset                         XXH3 of the file's name, mixed with the number (`pairs`)
    line     file and line, from 0                   the same

The index is of one dataset.json, which it names by its checksum: beside another one it is stale, and not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash
from msgspec import Meta

from btlm_data.formats.sealed_json import NO_CHECKSUM, Sha256, read_small, sealed, unsealed

FOLDER = ".key-index"
WORK_FOLDER = ".key-index.work"
FILE_NAME = "index.json"
MAX_BYTES = 1 << 24
MAX_PARTS = 4096
Kind = Literal["id", "url", "hash", "offset", "line"]
CHECK_BITS = 8
_XXH3 = r"^[0-9a-f]{32}\Z"
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64
_Count = Annotated[int, Meta(ge=0, le=2**62)]
UInt64Array = npt.NDArray[np.uint64]


class IndexedTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the set, by the name of its file. groups: row groups."""

    name: str
    groups: _Count
    rows: _Count


class KeyPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of columns. checksum: of its head, as columns.py has it."""

    bytes: _Count
    checksum: Annotated[str, Meta(pattern=_XXH3)]
    entries: _Count


class KeyIndexFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """index.json. dataset: checksum of the dataset.json that it is of."""

    dataset: Sha256
    tables: list[IndexedTable]
    kinds: dict[Kind, Annotated[list[KeyPart], Meta(min_length=1, max_length=MAX_PARTS)]]
    checksum: Sha256 = NO_CHECKSUM
    format_version: Literal[1] = 1

    def __post_init__(self) -> None:
        for kind, parts in self.kinds.items():
            if len(parts) & (len(parts) - 1):
                raise ValueError(f"there are {len(parts)} parts of {kind}, expected a power of two")

    @property
    def groups(self) -> int:
        """Row groups of all tables."""
        return sum(table.groups for table in self.tables)

    @property
    def entries(self) -> int:
        """Of all parts."""
        return sum(part.entries for parts in self.kinds.values() for part in parts)

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for parts in self.kinds.values() for part in parts)


def part_name(kind: Kind, number: int) -> str:
    """The file of a part."""
    return f"{kind}-{number:04d}"


def encode(value: KeyIndexFile) -> bytes:
    """index.json as it is stored, with its checksum."""
    return sealed(msgspec.to_builtins(value))


def read(root: Path) -> KeyIndexFile | None:
    """index.json of the set in a folder; None if there is none. Raises DataError, naming the mistake, if it cannot be used."""
    path = root / FOLDER / FILE_NAME
    if not path.exists():
        return None
    words = {_XXH3: "32 hexadecimal digits"}
    return unsealed(read_small(path, MAX_BYTES), KeyIndexFile, str(path), words)


def of_text(value: str) -> int:
    """The hash of an id, a URL or the name of a file."""
    return xxhash.xxh3_64_intdigest(value.encode("utf-8", "surrogatepass"))


def of_digest(value: bytes) -> int:
    """The hash of a text's hash of 16 bytes."""
    return int.from_bytes(value[:8], "big")


def pairs(files: UInt64Array, numbers: UInt64Array) -> UInt64Array:
    """Hashes of a file and a number in it: the finaliser of splitmix64. files: (n,) uint64 of `of_text`; numbers: (n,) uint64.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014 (as in Java's SplittableRandom).
    """
    first, second, third = (np.uint64(value) for value in _MULTIPLIERS)
    mixed = files + (numbers + np.uint64(1)) * first
    mixed = (mixed ^ (mixed >> np.uint64(30))) * second
    mixed = (mixed ^ (mixed >> np.uint64(27))) * third
    result: UInt64Array = mixed ^ (mixed >> np.uint64(31))
    return result
