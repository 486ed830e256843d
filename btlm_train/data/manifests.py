"""What dataset.json beside a folder of shards says about them, as far as a reader checks it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from btlm_data.errors import DataError
from btlm_train.data.shard_reader import ShardFile


@dataclass(frozen=True)
class Manifest:
    """A dataset.json: where it lies, and what it holds."""

    path: Path
    content: dict[str, Any]

    def files(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Each file it lists, with the place where it should lie."""
        for split, listed in mapping(self.content.get("splits")).items():
            for entry in mapping(listed).get("files") or ():
                name = str(mapping(entry).get("name", ""))
                folder = self.path.parent
                if "/" not in name and (folder / split).is_dir():
                    folder = folder / split
                yield (folder / name).absolute(), entry


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def find_manifest(folder: Path) -> Manifest | None:
    """The dataset.json in the folder itself, else one level above it, else two."""
    absolute = folder.absolute()
    for place in (absolute, *absolute.parents[:2]):
        path = place / "dataset.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise DataError(
                f"The manifest {path} cannot be read ({error}). Restore it, or remove it to read the shards without it."
            ) from None
        if isinstance(content, dict):
            return Manifest(path, content)
    return None


def check_manifests(
    manifests: list[Manifest], folders: list[str], files: list[ShardFile], by_row: bool
) -> dict[str, str]:
    """sha256 by path, as the manifests have it. Raises DataError if a listed file is missing or has another number of rows."""
    present = {file.path: file for file in files}
    read = {os.path.abspath(folder) for folder in folders}
    sha256 = {}
    for manifest in manifests:
        for path, entry in manifest.files():
            if str(path.parent) not in read or path.suffix != ".h5":
                continue
            file = present.get(str(path))
            if file is None:
                raise DataError(
                    f"The shard {path} is missing: {manifest.path} lists it. Restore it, or prepare the data again."
                )
            rows = entry.get("n_examples")
            if by_row and rows is not None and rows != file.rows:
                raise DataError(
                    f"The shard {path} has {file.rows} samples, {manifest.path} says {rows}. Restore it, or prepare the data again."
                )
            if entry.get("sha256"):
                sha256[str(path)] = str(entry["sha256"])
    return sha256
