"""generations.json: the generations of a dataset that documents were added to, in order.

Each generation is a complete dataset: the first one in the dataset's own folder, each later one in a folder
below it (`generation-0002`), with a dataset.json, shards and tables of its own. A generation is a part of the
dataset if this file lists it, by its folder and the checksum of its dataset.json; so a folder that an
unfinished `btlm-data add` left is none. A dataset that nothing was added to has no such file, and is one
generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from btlm_data.errors import DataError
from btlm_data.formats import dataset
from btlm_data.formats.dataset import Dataset, SetList
from btlm_data.formats.sealed_json import (
    NO_CHECKSUM,
    Sha256,
    read_small,
    sealed,
    unsealed,
)

FILE_NAME = "generations.json"
INDEX_FOLDER = ".dedupe-index"  # beside the first generation: what new documents are compared with
INDEX_WORK_FOLDER = ".dedupe-index.work"
MAX_BYTES = 1 << 22
MAX_GENERATIONS = 9999
_FOLDER = r"^(generation-[0-9]{4})?\Z"


class Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A generation. folder: "" for the first. checksum: of its dataset.json."""

    folder: Annotated[str, Meta(pattern=_FOLDER)]
    checksum: Sha256


class GenerationList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """generations.json. generations: at least two, the oldest first."""

    generations: Annotated[list[Listed], Meta(min_length=2, max_length=MAX_GENERATIONS)]
    checksum: Sha256 = NO_CHECKSUM
    format_version: Literal[1] = 1

    def __post_init__(self) -> None:
        for number, listed in enumerate(self.generations, 1):
            if listed.folder != folder_of(number):
                raise ValueError(
                    f"generation {number} is in {listed.folder!r}, expected {folder_of(number)!r}"
                )


class Generation(msgspec.Struct, frozen=True):
    """One generation of a dataset. number: from 1. root: its folder. manifest: its dataset.json."""

    number: int
    root: Path
    manifest: Dataset | SetList


def folder_of(number: int) -> str:
    """The folder of a generation below the dataset's, "" for the first."""
    return "" if number == 1 else f"generation-{number:04d}"


def encode(value: GenerationList) -> bytes:
    """The file. Raises DataError for what `decode` would refuse."""
    data = sealed(msgspec.to_builtins(value))
    decode(data, FILE_NAME)
    return data


def decode(data: bytes, shown: str) -> GenerationList:
    """Raises DataError, naming the key, for what is no generations.json with the right checksum."""
    return unsealed(data, GenerationList, shown, {_FOLDER: "a folder such as generation-0002, or nothing"})


def listed(root: Path) -> Sequence[Listed]:
    """The generations that the file in a folder lists; none where there is no such file. Raises DataError if
    it is damaged.
    """
    path = root / FILE_NAME
    return decode(read_small(path, MAX_BYTES), str(path)).generations if path.exists() else ()


def read(root: Path) -> list[Generation]:
    """Every generation of the dataset in a folder, the oldest first; one where nothing was added.

    Raises DataError if a dataset.json is missing or damaged, or is not the one that is listed.
    """
    generations = []
    for number, entry in enumerate(listed(root) or [Listed("", NO_CHECKSUM)], 1):
        folder = root / entry.folder if entry.folder else root
        manifest = dataset.read(folder)
        if entry.checksum not in (NO_CHECKSUM, manifest.checksum):
            raise DataError(
                f"{folder / dataset.FILE_NAME} has checksum {manifest.checksum}, {root / FILE_NAME} says "
                f"{entry.checksum}. The two do not belong together: restore them from one copy."
            )
        generations.append(Generation(number, folder, manifest))
    return generations


def read_sets(root: Path) -> dict[str, Dataset]:
    """Every set of every generation, by its folder below the dataset's; "" for that folder itself."""
    return {
        "/".join(filter(None, (folder_of(generation.number), name))): value
        for generation in read(root)
        for name, value in dataset.read_sets(generation.root).items()
    }


def unfinished(root: Path) -> Path | None:
    """The folder of the generation that an `add` has begun, and not made a part of the dataset; None if there is none."""
    folder = root / folder_of(max(1, len(listed(root))) + 1)
    is_ours = any((folder / name).exists() for name in (dataset.FILE_NAME, dataset.UNFINISHED_NAME))
    return folder if is_ours and not folder.is_symlink() else None


def whole_of(folder: Path) -> Path | None:
    """The folder of the dataset that a folder is a later generation of; None if it is none."""
    above = folder.absolute().parent
    names = [entry.folder for entry in listed(above)]
    return above if folder.name in names else None
