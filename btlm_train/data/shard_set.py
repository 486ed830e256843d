"""The rows of all shards of some folders, end to end."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError, InputError
from btlm_train.data.block_cache import CacheSettings
from btlm_train.data.folders import Folder, RemoteFolder, open_folder, shown
from btlm_train.data.generations import Chosen, folders_of
from btlm_train.data.manifests import check_manifests, find_manifest, listed_sha256, splits_in
from btlm_train.data.read_ahead import Rows
from btlm_train.data.remote_shard import RemoteObject
from btlm_train.data.settings import CACHE_BYTES
from btlm_train.data.shard_reader import OPEN_SHARDS, ShardFile, probe_shard

Int64Array = npt.NDArray[np.int64]
PROBES = 16  # shards in stores looked at together


class ShardSet:
    """The rows of all *.h5 files of some folders, end to end: sorted by path as text, hidden files too,
    sub-folders not.

    data_dirs: paths and URLs; `cache` is where blocks of the latter are kept. generation: where documents were
    added to a dataset, which generations of it (None: all); they come one after the other, the oldest first.
    Holds no open file, so it may be pickled and forked. Raises InputError if there is nothing to read, DataError if a file is not a shard,
    does not fit the others, or is not what the manifest beside it says.
    """

    def __init__(
        self,
        data_dirs: str | Sequence[str],
        sort_files: bool = True,
        cache: CacheSettings | None = None,
        generation: Chosen = None,
    ) -> None:
        chosen = folders_of([data_dirs] if isinstance(data_dirs, str) else list(data_dirs), generation)
        folders, opened = [name for _, name in chosen], [open_folder(name) for _, name in chosen]
        ranks = {id(folder): number for folder, (number, _) in zip(opened, chosen, strict=True)}
        shards = [(location, name) for location in opened for name in _shards_of(location)]
        if not shards:
            splits = [f"{folder}/{split}" for folder in folders for split in splits_in(folder)]
            advice = (
                f"Give the folder of a split: {', '.join(splits)}."
                if splits
                else "Check data_dir: sub-folders are not searched."
            )
            raise InputError(f"There is no *.h5 file in {', '.join(map(shown, folders))}. {advice}")
        if sort_files:
            shards.sort(key=lambda pair: (ranks[id(pair[0])], _full_name(*pair)))
        manifests = [find_manifest(location) for location in opened]
        self.manifests = [manifest for manifest in manifests if manifest is not None]
        self.sha256 = listed_sha256(self.manifests, opened)
        self.names = [shown(_full_name(location, name)) for location, name in shards]
        probed = _probed(
            [self._target(*pair, cache or CacheSettings.of(None, CACHE_BYTES)) for pair in shards]
        )
        self.files = [file for file, _, _ in probed]
        self.trailing, self.dtype = probed[0][1:]
        for name, (_, trailing, dtype) in zip(self.names, probed, strict=True):
            if (trailing, dtype) != (self.trailing, self.dtype):
                raise DataError(
                    f"{name} holds {dtype} rows of shape {trailing}, {self.names[0]} {self.dtype} rows of "
                    f"shape {self.trailing}. Give data_dir folders of one kind of shards."
                )
        self.ends = list(itertools.accumulate(file.rows for file in self.files))
        check_manifests(self.manifests, opened, self.files, by_row=bool(self.trailing))
        if not len(self):
            raise InputError(
                f"All {len(self.names)} *.h5 files in {', '.join(map(shown, folders))} are empty. Check "
                "data_dir."
            )

    def _target(self, folder: Folder, name: str, cache: CacheSettings) -> str | RemoteObject:
        """What a shard is opened by: its path, or the object in the state that the listing found."""
        if not isinstance(folder, RemoteFolder):
            return _full_name(folder, name)
        entry = folder.entries()[name]
        sha256 = self.sha256.get(f"{folder.absolute}/{name}")
        return RemoteObject(folder.name, name, entry.size, entry.tag, sha256, cache)

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

    def remote_rows(self, starts: Int64Array, length: int) -> Iterator[Rows]:
        """Of rows [start, start + length), those that are in stores. starts: (n,) int64."""
        numbers = np.searchsorted(self.ends, starts, side="right")
        for start, number in zip(starts.tolist(), numbers.tolist(), strict=True):
            stop = start + length
            while start < stop and number < len(self.files):
                file, end = self.files[number], min(stop, self.ends[number])
                before = self.ends[number] - file.rows
                if file.remote is not None and start < end:
                    yield file.remote, start - before, end - before
                start, number = max(start, end), number + 1

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


def _shards_of(folder: Folder) -> list[str]:
    names = folder.shards()
    if names is None:
        raise InputError(
            f"There is no data folder {shown(folder.name)}. Check data_dir, and that it is mounted or that its "
            "store can be reached."
        )
    return names


def _full_name(folder: Folder, name: str) -> str:
    return f"{folder.name}/{name}" if isinstance(folder, RemoteFolder) else str(Path(folder.name, name))


def _probed(
    targets: Sequence[str | RemoteObject],
) -> list[tuple[ShardFile, tuple[int, ...], np.dtype[Any]]]:
    """Each shard looked at once; those in stores at the same time, since most of it is waiting."""
    if not any(isinstance(target, RemoteObject) for target in targets):
        return [probe_shard(target) for target in targets]
    with ThreadPoolExecutor(PROBES) as pool:
        return list(pool.map(probe_shard, targets))
