"""What dataset.json beside a folder of shards says about them, as far as a reader checks it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from btlm_data.errors import DataError
from btlm_data.formats import dataset as dataset_file
from btlm_data.formats.dataset import Dataset
from btlm_data.formats.ledger import SPLITS
from btlm_data.formats.sealed_json import read_small
from btlm_train.data.shard_reader import ShardFile


@dataclass(frozen=True)
class Manifest:
    """A dataset.json: where it lies, and what it holds."""

    path: Path
    dataset: Dataset

    def shards(self) -> Iterator[tuple[Path, dataset_file.ShardFile]]:
        """Each shard it lists, with the path where it should lie: in the folder of its split, or beside a
        copied file.
        """
        for name, split in self.dataset.splits.items():
            folder = self.path.parent / name
            for shard in split.files:
                yield (folder if folder.is_dir() else self.path.parent).absolute() / shard.name, shard


def find_manifest(folder: Path) -> Manifest | None:
    """The dataset.json in the folder itself, else one level above it, else two.

    None if there is none, or if it is of another program or of a folder of several sets. Raises DataError if
    it is damaged.
    """
    absolute = folder.absolute()
    for place in (absolute, *absolute.parents[:2]):
        path = place / dataset_file.FILE_NAME
        if not os.path.lexists(path):
            continue
        data = read_small(path, dataset_file.MAX_BYTES)
        if _is_foreign(data):
            return None
        try:
            value = dataset_file.decode(data, str(path))
        except DataError as error:
            raise DataError(f"{error} Or remove {path} to read the shards without it.") from None
        return Manifest(path, value) if isinstance(value, Dataset) else None
    return None


def _is_foreign(data: bytes) -> bool:
    """Whether a dataset.json is a JSON object of another program: ours has a fingerprint and a version."""
    try:
        tree = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return False
    return isinstance(tree, dict) and not tree.keys() & {"fingerprint", "format_version", "checksum"}


def split_folder(folder: str, splits: tuple[str, ...]) -> str:
    """The folder of the first of `splits` where `folder` is a whole dataset with one; else `folder`
    itself.
    """
    path = Path(folder)
    if (path / dataset_file.FILE_NAME).is_file() and not any(path.glob("*.h5")):
        for name in splits:
            if (path / name).is_dir():
                return str(path / name)
    return folder


def splits_in(folder: str) -> list[str]:
    """The splits that a folder has as sub-folders, for messages."""
    return [name for name in SPLITS if (Path(folder) / name).is_dir()]


def check_manifests(
    manifests: list[Manifest], folders: list[str], files: list[ShardFile], by_row: bool
) -> dict[str, str]:
    """The SHA-256 of each shard by path, as the manifests have it.

    Raises DataError if a listed shard of these folders is missing, or has another size or number of rows.
    """
    present = {file.path: file for file in files}
    read = {os.path.abspath(folder) for folder in folders}
    sha256 = {}
    for manifest in manifests:
        for path, shard in manifest.shards():
            if str(path.parent) not in read:
                continue
            file = present.get(str(path))
            if file is None:
                raise DataError(
                    f"The shard {path} is missing: {manifest.path} lists it. Restore it, or prepare the data "
                    "again."
                )
            if by_row and shard.n_examples != file.rows:
                raise DataError(
                    f"The shard {path} has {file.rows} samples, {manifest.path} says {shard.n_examples}. "
                    "Restore it, or prepare the data again."
                )
            if shard.bytes != file.num_bytes:
                raise DataError(
                    f"The shard {path} has {file.num_bytes} bytes, {manifest.path} says {shard.bytes}. "
                    "Restore it, or prepare the data again."
                )
            sha256[str(path)] = shard.sha256
    return sha256
