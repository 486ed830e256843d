"""What dataset.json beside a folder of shards says about them, as far as a reader checks it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from btlm_data.errors import DataError
from btlm_data.formats import dataset as dataset_file
from btlm_data.formats.dataset import Dataset
from btlm_data.formats.ledger import SPLITS
from btlm_train.data.folders import Folder, open_folder
from btlm_train.data.shard_reader import ShardFile


@dataclass(frozen=True)
class Manifest:
    """A dataset.json: the folder that holds it, and its content."""

    folder: Folder
    dataset: Dataset

    @property
    def path(self) -> str:
        """The file, for messages."""
        return f"{self.folder.absolute}/{dataset_file.FILE_NAME}"

    def shards(self) -> Iterator[tuple[Folder, dataset_file.ShardFile]]:
        """Each shard it lists, with the folder that should hold it: that of its split, or that of a copied
        dataset.json.
        """
        for name, split in self.dataset.splits.items():
            folder = self.folder.child(name)
            folder = folder if folder.exists() else self.folder
            for shard in split.files:
                yield folder, shard


def find_manifest(folder: Folder) -> Manifest | None:
    """The dataset.json in the folder itself, else one level above it, else two.

    None if there is none, or if it is of another program or of a folder of several sets. Raises DataError if
    it is damaged.
    """
    above: Folder | None = folder
    for _ in range(3):
        if above is None:
            return None
        data = above.read(dataset_file.FILE_NAME, dataset_file.MAX_BYTES)
        if data is None:
            above = above.parent()
            continue
        if _is_foreign(data):
            return None
        path = f"{above.absolute}/{dataset_file.FILE_NAME}"
        try:
            value = dataset_file.decode(data, path)
        except DataError as error:
            raise DataError(f"{error} Or remove {path} to read the shards without it.") from None
        return Manifest(above, value) if isinstance(value, Dataset) else None
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
    opened = open_folder(folder)
    if not opened.shards() and opened.read(dataset_file.FILE_NAME, dataset_file.MAX_BYTES) is not None:
        for name in splits:
            child = opened.child(name)
            if child.exists():
                return child.name
    return folder


def splits_in(folder: str) -> list[str]:
    """The splits that a folder has as sub-folders, for messages."""
    opened = open_folder(folder)
    return [name for name in SPLITS if opened.child(name).exists()]


def listed_sha256(manifests: Sequence[Manifest], folders: Sequence[Folder]) -> dict[str, str]:
    """The SHA-256 of each shard in `folders` by its full name, as the manifests have it."""
    read = {folder.absolute for folder in folders}
    return {
        f"{folder.absolute}/{shard.name}": shard.sha256
        for manifest in manifests
        for folder, shard in manifest.shards()
        if folder.absolute in read
    }


def check_manifests(
    manifests: Sequence[Manifest], folders: Sequence[Folder], files: Sequence[ShardFile], by_row: bool
) -> None:
    """Raise DataError if a listed shard of these folders is missing, or has another size or number of rows."""
    present = {file.path: file for file in files}
    read = {folder.absolute for folder in folders}
    for manifest in manifests:
        for folder, shard in manifest.shards():
            if folder.absolute not in read:
                continue
            path = f"{folder.absolute}/{shard.name}"
            file = present.get(path)
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
