"""What dataset.json beside a folder of shards says about them, as far as a reader checks it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from btlm_data.errors import DataError
from btlm_data.formats import dataset as dataset_file
from btlm_data.formats.dataset import Dataset
from btlm_data.formats.ledger import SPLITS
from btlm_train.data.places import Place, open_place
from btlm_train.data.shard_reader import ShardFile


@dataclass(frozen=True)
class Manifest:
    """A dataset.json: the folder where it lies, and what it holds."""

    place: Place
    dataset: Dataset

    @property
    def path(self) -> str:
        """The file, for messages."""
        return f"{self.place.absolute}/{dataset_file.FILE_NAME}"

    def shards(self) -> Iterator[tuple[Place, dataset_file.ShardFile]]:
        """Each shard it lists, with the folder where it should lie: that of its split, or that of a copied
        dataset.json.
        """
        for name, split in self.dataset.splits.items():
            folder = self.place.child(name)
            folder = folder if folder.exists() else self.place
            for shard in split.files:
                yield folder, shard


def find_manifest(place: Place) -> Manifest | None:
    """The dataset.json in the folder itself, else one level above it, else two.

    None if there is none, or if it is of another program or of a folder of several sets. Raises DataError if
    it is damaged.
    """
    above: Place | None = place
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
    place = open_place(folder)
    if not place.shards() and place.read(dataset_file.FILE_NAME, dataset_file.MAX_BYTES) is not None:
        for name in splits:
            child = place.child(name)
            if child.exists():
                return child.name
    return folder


def splits_in(folder: str) -> list[str]:
    """The splits that a folder has as sub-folders, for messages."""
    place = open_place(folder)
    return [name for name in SPLITS if place.child(name).exists()]


def listed_sha256(manifests: Sequence[Manifest], places: Sequence[Place]) -> dict[str, str]:
    """The SHA-256 of each shard in `places` by its full name, as the manifests have it."""
    read = {place.absolute for place in places}
    return {
        f"{folder.absolute}/{shard.name}": shard.sha256
        for manifest in manifests
        for folder, shard in manifest.shards()
        if folder.absolute in read
    }


def check_manifests(
    manifests: Sequence[Manifest], places: Sequence[Place], files: Sequence[ShardFile], by_row: bool
) -> None:
    """Raise DataError if a listed shard of these folders is missing, or has another size or number of rows."""
    present = {file.path: file for file in files}
    read = {place.absolute for place in places}
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
