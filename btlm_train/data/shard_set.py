"""The rows of all shards of some folders, end to end."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError, InputError
from btlm_train.data.manifests import check_manifests, find_manifest, splits_in
from btlm_train.data.shard_reader import OPEN_SHARDS, probe_shard

Int64Array = npt.NDArray[np.int64]


class ShardSet:
    """The rows of all *.h5 files of some folders, end to end: sorted by path as text, hidden files too,
    sub-folders not.

    Holds no open file, so it may be pickled and forked. Raises InputError if there is nothing to read,
    DataError if a file is not a shard, does not fit the others, or is not what the manifest beside it says.
    """

    def __init__(self, data_dirs: str | Sequence[str], sort_files: bool = True) -> None:
        folders = [data_dirs] if isinstance(data_dirs, str) else list(data_dirs)
        names = [name for folder in folders for name in _list_shards(folder)]
        if not names:
            splits = [f"{folder}/{split}" for folder in folders for split in splits_in(folder)]
            advice = (
                f"Give the folder of a split: {', '.join(splits)}."
                if splits
                else "Check data_dir: sub-folders are not searched."
            )
            raise InputError(f"There is no *.h5 file in {', '.join(folders)}. {advice}")
        if sort_files:
            names.sort()
        self.names = names
        opened = [probe_shard(name) for name in names]
        self.files = [file for file, _, _ in opened]
        self.trailing, self.dtype = opened[0][1:]
        for name, (_, trailing, dtype) in zip(names, opened, strict=True):
            if (trailing, dtype) != (self.trailing, self.dtype):
                raise DataError(
                    f"{name} holds {dtype} rows of shape {trailing}, {names[0]} {self.dtype} rows of shape "
                    f"{self.trailing}. Give data_dir folders of one kind of shards."
                )
        self.ends = list(itertools.accumulate(file.rows for file in self.files))
        self.manifests = [
            manifest for folder in folders if (manifest := find_manifest(Path(folder))) is not None
        ]
        self.sha256 = check_manifests(self.manifests, folders, self.files, by_row=bool(self.trailing))
        if not len(self):
            raise InputError(
                f"All {len(names)} *.h5 files in {', '.join(folders)} are empty. Check data_dir."
            )

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, starts: Int64Array, length: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (position in `starts`, rows [start, start + length)) in the order they are stored; each file
        is checked once.

        starts: (n,) int64 row numbers.
        """
        order = np.argsort(starts, kind="stable")
        numbers = np.searchsorted(self.ends, starts, side="right")
        current, before, handle = -1, 0, None
        for position, start, number in zip(
            order.tolist(), starts[order].tolist(), numbers[order].tolist(), strict=True
        ):
            stop = start + length
            pieces: list[npt.NDArray[Any]] = []
            while True:
                if number != current or handle is None:
                    if handle is not None:
                        handle.forget()
                        handle = None  # or it could not be closed to make room for the next
                    handle = OPEN_SHARDS.get(self.files[number])
                    current, before = number, self.ends[number] - self.files[number].rows
                if stop <= self.ends[number]:
                    break
                pieces.append(handle.read(start - before, self.ends[number] - before))
                start, number = self.ends[number], bisect.bisect_right(self.ends, self.ends[number])
            last = handle.read(start - before, stop - before)
            yield position, np.concatenate([*pieces, last]) if pieces else last

    def fingerprint(self) -> dict[str, Any]:
        """What the data is, in plain JSON values.

        Its layout, and of each file the name, rows, bytes, probe, and its SHA-256 if a manifest has it.
        """
        files = [
            [
                os.path.basename(file.path),
                file.rows,
                file.num_bytes,
                f"{file.probe:08x}",
                self.sha256.get(file.path),
            ]
            for file in self.files
        ]
        return {"layout": f"{self.dtype} {list(self.trailing)}", "files": files}


def _list_shards(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [str(Path(folder, entry.name)) for entry in entries if entry.name.endswith(".h5")]
    except OSError as error:
        raise InputError(
            f"The data folder {folder} cannot be read ({error.strerror}). Check data_dir, and that it is "
            "mounted."
        ) from None
