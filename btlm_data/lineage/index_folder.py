"""Indexes beside the shards of each set: made in a folder beside their place, and moved there when they are whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from btlm_data.errors import DataError, InputError
from btlm_data.formats.arrow import leave_pandas_out
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.staging import lock_of, removed_on_failure
from btlm_data.storage import Store, open_store
from btlm_data.storage.lease import hold


class IndexFile(Protocol):
    """What an index says of itself. dataset: checksum of the dataset.json that it is of."""

    @property
    def dataset(self) -> str: ...  # noqa: D102
    @property
    def entries(self) -> int: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102


class Made(msgspec.Struct, frozen=True):
    """What was done. made, present: sets whose index was made, or was there already."""

    made: int
    present: int
    entries: int
    bytes: int


class IndexKind(msgspec.Struct, frozen=True):
    """A kind of index. folder, work_folder: in a set's folder; read: what an index says of itself, None where there is
    none (raises DataError for a damaged one); build: into an empty folder.
    """

    folder: str
    work_folder: str
    read: Callable[[Path], IndexFile | None]
    build: Callable[[SetView, Path], None]


def make(path: Path, kind: IndexKind) -> Made:
    """Make the index of every set of a dataset that has none of its dataset.json. A call that is killed leaves no index,
    and what it left is removed by the next.

    Raises DataError if the dataset is not whole, OutputError if the disk is full, and what building raises.
    """
    leave_pandas_out()
    sets = open_dataset(path)
    root = (sets[0].root if not sets[0].name else sets[0].root.parent).absolute()
    with hold(open_store(root.parent), lock_of(root), f"The dataset {root} is", option="folder"):
        to_make = [of_set for of_set in sets if not _is_current(of_set, kind)]
        for of_set in to_make:
            _make(of_set, kind)
    present = [index for of_set in sets if (index := kind.read(of_set.root)) is not None]
    return Made(
        len(to_make),
        len(present) - len(to_make),
        sum(index.entries for index in present),
        sum(index.bytes for index in present),
    )


def compare(
    root: Path,
    checksum: str,
    kind: IndexKind,
    problems: Callable[[Store, Any], Iterator[str]],
    summary: Callable[[Any], str],
) -> tuple[str | None, str]:
    """(what is wrong or None, what was compared) of the index of a set, whose dataset.json has that checksum. problems: of
    its files, in words that begin with a file's name; it reads every byte. Raises nothing. A stale index is nothing wrong: it is not used.
    """
    try:
        index = kind.read(root)
        if index is None:
            return f"{kind.folder}/index.json: missing", ""
        if index.dataset != checksum:
            return None, "stale: of another dataset.json, and not used; `btlm-data index` makes it again"
        problem = next(problems(open_store(root / kind.folder), index), None)
    except DataError as error:
        return str(error).partition(". Rerun")[0], ""
    return (f"{kind.folder}/{problem}", "") if problem is not None else (None, summary(index))


def _is_current(of_set: SetView, kind: IndexKind) -> bool:
    try:
        index = kind.read(of_set.root)
    except DataError:  # made again
        return False
    return index is not None and index.dataset == of_set.manifest.checksum


def _make(of_set: SetView, kind: IndexKind) -> None:
    """The index of one set."""
    work, place = of_set.root / kind.work_folder, of_set.root / kind.folder
    for folder in (work, place):
        if folder.is_symlink() or folder.is_file():
            raise InputError(f"{folder} is in the way: it is not a folder that btlm-data made. Remove it.")
        if folder.exists():
            shutil.rmtree(folder)
    work.mkdir()
    with removed_on_failure(work):
        kind.build(of_set, work)
        os.rename(work, place)
