"""The text index of a set: which documents have which word n-grams, beside its shards.

    .text-index/index.json   what it is of, and its parts; sealed
    .text-index/part-NNNN    columns (columns.py): hash (n,) uint64, ascending, and document (n,) uint32, ascending for
                             each hash; part k of 2^b has the hashes whose first b bits are k

The n-grams are those of kernels/word_samples.py, of the normalised text (kernels/normalisation.py) of each document that is
not forgotten. `document` counts through the splits as index.json lists them. The index is of one dataset.json, which it
names by its checksum: beside another one it is stale, and not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from btlm_data.formats.sealed_json import NO_CHECKSUM, Sha256, read_small, sealed, unsealed

FOLDER = ".text-index"
WORK_FOLDER = ".text-index.work"
FILE_NAME = "index.json"
MAX_BYTES = 1 << 24
MAX_PARTS = 4096
_PART = r"^part-[0-9]{4}\Z"
_XXH3 = r"^[0-9a-f]{32}\Z"
_Count = Annotated[int, Meta(ge=0, le=2**62)]


class IndexedSplit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A split. documents: rows of its table."""

    name: str
    documents: _Count


class IndexPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of columns. checksum: of its head, as columns.py has it."""

    name: Annotated[str, Meta(pattern=_PART)]
    bytes: _Count
    checksum: Annotated[str, Meta(pattern=_XXH3)]
    entries: _Count


class TextIndexFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """index.json. dataset: checksum of the dataset.json that it is of. words, grams: of the sample."""

    dataset: Sha256
    words: _Count
    grams: _Count
    splits: list[IndexedSplit]
    parts: Annotated[list[IndexPart], Meta(min_length=1, max_length=MAX_PARTS)]
    checksum: Sha256 = NO_CHECKSUM
    format_version: Literal[1] = 1

    def __post_init__(self) -> None:
        if len(self.parts) & (len(self.parts) - 1):
            raise ValueError(f"there are {len(self.parts)} parts, expected a power of two")
        if [part.name for part in self.parts] != [part_name(k) for k in range(len(self.parts))]:
            raise ValueError("its parts are not named in order")

    @property
    def entries(self) -> int:
        """Of all parts."""
        return sum(part.entries for part in self.parts)

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for part in self.parts)


def part_name(number: int) -> str:
    """The file of a part."""
    return f"part-{number:04d}"


def encode(value: TextIndexFile) -> bytes:
    """index.json as it is stored, with its checksum."""
    return sealed(msgspec.to_builtins(value))


def read(root: Path) -> TextIndexFile | None:
    """index.json of the set in a folder; None if there is none. Raises DataError, naming the mistake, if it cannot be used."""
    path = root / FOLDER / FILE_NAME
    if not path.exists():
        return None
    words = {_PART: "part-NNNN", _XXH3: "32 hexadecimal digits"}
    return unsealed(read_small(path, MAX_BYTES), TextIndexFile, str(path), words)
