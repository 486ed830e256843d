"""Read prepared shards for training: the Model Zoo's samples, in its order, resumable at the very next sample.

Top to bottom: `DataConfig` (the Model Zoo's keys) - `ShardFile`, `_OpenShard`, `ShardSet` (rows of *.h5 files) - `_Source`,
`_Mixture`, `HDF5Dataset` (samples by index) - `SampleOrder`, `GlobalBatches` (which index when, and for which rank) -
`RestartableDataLoader`, `GptHDF5MapDataProcessor` (what a trainer uses) - `describe_data` (what is in a folder of shards).

One number says where a run is: how many samples it has consumed, on all ranks together. The stream of samples is epoch 0, epoch 1,
... end to end, each in the order its epoch number and the seed give, so that number alone names the next sample, whatever the batch
size, the count of workers or the count of ranks. What each rank reads is its slice of the global batch.

Storage: HDF5 inflates under one lock of the whole process and with plain zlib. Here a chunk's stored bytes are fetched
(`read_direct_chunk`, about 3 us) and inflated outside the lock by ISA-L; a contiguous dataset is read with one `pread`. Whatever is
stored in another way goes through h5py. A shard that disappears or changes while it is in use is an error, never zeros.
"""

from __future__ import annotations

import bisect
import difflib
import errno
import hashlib
import itertools
import json
import logging
import math
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import torch
from isal import isal_zlib
from isal.igzip_lib import IsalError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError
from torch.utils.data import DataLoader, Dataset, Sampler

from btlm_data.errors import ConfigError, DataError, InputError

logger = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]
Batch = dict[str, torch.Tensor]

FEATURES = ("input_ids", "attention_mask", "labels")
VSL_FEATURES = (*FEATURES, "attention_span", "position_ids")
PAD = -1  # in a batch of indices: a sample of zeros (`pad_last`)
STATE_VERSION = 1


# Configuration --------------------------------------------------------------------------------------------------------------------


def _paths_as_text(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    return value


DataDir = Annotated[str | list[str], BeforeValidator(_paths_as_text)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MixtureEntry(_Settings):
    """One set of a mixture; weights need not sum to 1."""

    data_dir: DataDir
    weight: float = Field(ge=0, allow_inf_nan=False)
    data_subset: str | None = None


class DataConfig(_Settings):
    """The Model Zoo's keys of `train_input` / `eval_input`; meanings as in its GptHDF5MapDataProcessor.

    batch_size is global: all ranks and all micro-batches together. max_sequence_length belongs to the corpus format alone. num_samples
    is the length of an epoch in samples (None: the length of the data). data_subset holds ascending ranges of fractions
    ("0.0-0.5,0.7-1.0"). prefetch_factor (batches per worker) and persistent_workers matter with num_workers only.
    """

    data_dir: DataDir | None = None
    mixture: list[MixtureEntry] | None = None
    batch_size: PositiveInt
    shuffle: bool = False
    shuffle_seed: int = 0
    max_sequence_length: PositiveInt | None = None
    data_subset: str | None = None
    drop_last: bool = True
    num_samples: PositiveInt | None = None
    sort_files: bool = True
    use_vsl: bool = False
    pad_last: bool = False
    num_workers: int = Field(default=0, ge=0)
    prefetch_factor: PositiveInt | None = 10
    persistent_workers: bool = True
    use_worker_cache: bool = False
    # Accepted because published parameter files carry them; this reader has no use for them.
    data_processor: Literal["GptHDF5MapDataProcessor"] | None = None
    micro_batch_size: Any = None
    vocab_size: Any = None
    repeat: Any = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> DataConfig:
        """Check `values`. Raises ConfigError, naming the key, its value and, for an unknown key, the nearest known one."""
        try:
            config = cls(**values)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None
        config.check_sources()
        return config

    def check_sources(self) -> None:
        """Raise ConfigError unless there is exactly one of data_dir and mixture, and something to read in it."""
        if (self.data_dir is None) == (self.mixture is None):
            found = "neither" if self.data_dir is None else "both"
            raise ConfigError(
                f"The data configuration has {found} of data_dir and mixture. Give exactly one of them."
            )
        if self.mixture is not None and not any(entry.weight > 0 for entry in self.mixture):
            raise ConfigError(
                f"No set of mixture has a weight above 0 (weights {[e.weight for e in self.mixture]}). Give at least one such set."
            )

    def unused_keys(self) -> list[str]:
        """Keys that were set and have no effect here, for the caller to report."""
        keys = [key for key in ("vocab_size", "repeat") if getattr(self, key) is not None]
        return [*keys, "use_worker_cache"] if self.use_worker_cache else keys


def _explain(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("str", "list[")))
    key = str(problem["loc"][-1])
    if problem["type"] == "extra_forbidden":
        known = list(MixtureEntry.model_fields if problem["loc"][0] == "mixture" else DataConfig.model_fields)
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        return f'"{place}" is not a key of the data configuration (value {problem["input"]!r}). The nearest known key is "{near[0]}".'
    if problem["type"] == "missing":
        return f'The data configuration lacks "{place}". Add it.'
    return f'"{place}" is {problem["input"]!r} in the data configuration: {problem["msg"]}. Correct it.'


# Shards ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardFile:
    """One file as it was when the data was opened: enough to open it lazily and to notice that it is not the same any more.

    rows is the length of axis 0; probe is the CRC-32 of the first, middle and last row (at most 1,024 tokens each of a corpus).
    """

    path: str
    rows: int
    num_bytes: int
    mtime_ns: int
    probe: int

    def check(self) -> None:
        """Raise DataError if the file is gone or is another one now."""
        try:
            now = os.stat(self.path)
        except OSError as error:
            raise DataError(
                f"The shard {self.path} cannot be found any more ({error.strerror}). Restore it, then run again."
            ) from None
        if (now.st_size, now.st_mtime_ns) != (self.num_bytes, self.mtime_ns):
            raise DataError(
                f"The shard {self.path} changed while it was in use ({self.num_bytes} bytes when opened, {now.st_size} now, or written anew). "
                "Restore it, or start again with the new data."
            )


class _OpenShard:
    """The dataset `data` of one open file. Reads rows in the stored dtype.

    A block is what one step of chunks along axis 0 holds. The last one decoded is kept where it holds several rows.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.file = h5py.File(
                path, "r"
            )  # HDF5 refuses a second open with another `locking`, so it stays at its default
            data = self.file["data"]
        except KeyError:
            raise DataError(
                f'{path} has no dataset "data". Remove the file from the data folder, or make it again.'
            ) from None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise DataError(
                f"{path} is not a readable HDF5 file ({error}). Restore it from its source, or make it again."
            ) from error
        if not isinstance(data, h5py.Dataset) or data.ndim == 0 or data.dtype.kind not in "iufb":
            raise DataError(
                f'"data" in {path} is not an array of numbers ({data!r}). Remove the file, or make it again.'
            )
        if data.is_virtual:
            raise DataError(
                f'"data" in {path} is a virtual dataset, whose missing sources HDF5 would read as zeros. '
                "Give the folder of the source files as data_dir."
            )
        self.data = data
        self.shape: tuple[int, ...] = data.shape
        self.dtype: np.dtype[Any] = data.dtype
        properties = data.id.get_create_plist()
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        self.undo = [
            (position, code == h5py.h5z.FILTER_DEFLATE)
            for position, code in reversed(list(enumerate(filters)))
        ]
        self.chunks: tuple[int, ...] | None = None
        self.offset: int | None = None
        if data.chunks is not None and set(filters) <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}:
            self.chunks = data.chunks
            self.chunk_bytes = math.prod(data.chunks) * self.dtype.itemsize
            self.corners = list(
                itertools.product(
                    *(
                        range(0, size, step)
                        for size, step in zip(self.shape[1:], data.chunks[1:], strict=True)
                    )
                )
            )
            self.whole_row = data.chunks == (1, *self.shape[1:])
            self.storage = data.id
        elif (
            properties.get_layout() == h5py.h5d.CONTIGUOUS
            and not properties.get_external_count()
            and not self.file.userblock_size
        ):
            self.offset = data.id.get_offset()
            self.descriptor = self.file.id.get_vfd_handle()
        self.kept: tuple[int, npt.NDArray[Any]] | None = None

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop), within the file. Raises DataError if they cannot be read."""
        try:
            if self.chunks is not None and self.whole_row and stop - start == 1:  # a sample of our own shards
                return self._chunk((start, *self.corners[0]))
            if self.chunks is not None:
                return self._from_chunks(start, stop)
            if self.offset is not None:
                return self._from_bytes(start, stop)
            rows: npt.NDArray[Any] = self.data[start:stop]
        except (OSError, RuntimeError, ValueError, IsalError) as error:  # type: ignore[misc]  # its stub lacks the base class
            raise DataError(
                f"Rows {start} to {stop} of {self.path} cannot be read ({error}). Restore the file from its source, or make it again."
            ) from error
        return rows

    def _from_bytes(self, start: int, stop: int) -> npt.NDArray[Any]:
        assert self.offset is not None
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        place = self.offset + start * math.prod(self.shape[1:]) * self.dtype.itemsize
        if os.preadv(self.descriptor, [rows.data.cast("B")], place) != rows.nbytes:
            raise OSError("the file ends early")
        return rows

    def _from_chunks(self, start: int, stop: int) -> npt.NDArray[Any]:
        assert self.chunks is not None
        step = self.chunks[0]
        pieces = []
        for number in range(start // step, (stop - 1) // step + 1):
            first = number * step
            pieces.append(self._block(number)[max(start - first, 0) : stop - first])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _block(self, number: int) -> npt.NDArray[Any]:
        """Rows [number * chunk rows, ...), a whole chunk's worth: past the end of the dataset their content has no meaning."""
        assert self.chunks is not None
        if self.kept is not None and self.kept[0] == number:
            return self.kept[1]
        first = number * self.chunks[0]
        if len(self.corners) == 1:
            block = self._chunk((first, *self.corners[0]))[(slice(None), *map(slice, self.shape[1:]))]
        else:
            block = np.empty((self.chunks[0], *self.shape[1:]), self.dtype)
            for corner in self.corners:
                target = block[
                    (
                        slice(None),
                        *(slice(at, at + size) for at, size in zip(corner, self.chunks[1:], strict=True)),
                    )
                ]
                target[...] = self._chunk((first, *corner))[tuple(map(slice, target.shape))]
        if self.chunks[0] > 1:
            self.kept = number, block
        return block

    def _chunk(self, corner: tuple[int, ...]) -> npt.NDArray[Any]:
        """The chunk at `corner`. A chunk never written holds the fill value, which HDF5 knows."""
        assert self.chunks is not None
        try:
            skipped, stored = self.storage.read_direct_chunk(corner)
        except RuntimeError:
            if self.storage.get_chunk_info_by_coord(corner).byte_offset is not None:
                raise
            return np.full(self.chunks, self.data.fillvalue, self.dtype)
        for position, deflated in self.undo:
            if skipped >> position & 1:  # HDF5 leaves a filter out where it did not help
                continue
            if deflated:
                stored = isal_zlib.decompress(stored, zlib.MAX_WBITS, self.chunk_bytes)
            else:  # byte shuffle: all first bytes, then all second bytes, ...
                shuffled = np.frombuffer(stored, np.uint8).reshape(self.dtype.itemsize, -1)
                values = np.empty(shuffled.shape[::-1], np.uint8)
                for byte, plane in enumerate(shuffled):  # twice as fast as one transposed copy
                    values[:, byte] = plane
                stored = values.data.cast("B")
        if len(stored) != self.chunk_bytes:
            raise ValueError(f"a chunk holds {len(stored)} bytes instead of {self.chunk_bytes}")
        return np.frombuffer(stored, self.dtype).reshape(self.chunks)


class _Handles:
    """Open shards of this process, least recently used first; at most half of the process's limit of open files, and 1,024.

    One for the whole process, because the limit is the process's. A handle that leaves is closed when its last user lets go of it.
    After a fork the child starts with none, so that no two processes share HDF5's state of a file.
    """

    def __init__(self) -> None:
        self.forget()
        os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self.lock = threading.Lock()
        self.open: OrderedDict[ShardFile, _OpenShard] = OrderedDict()

    def get(self, shard: ShardFile) -> _OpenShard:
        """`shard`, opened. Raises DataError if it is not what it was, InputError if the process may open no more files."""
        with self.lock:
            shard.check()
            handle = self.open.get(shard)
            if handle is None:
                while len(self.open) >= self.most():
                    self.open.popitem(last=False)
                handle = self.open[shard] = self.opened(shard.path)
            self.open.move_to_end(shard)
            return handle

    def opened(self, path: str) -> _OpenShard:
        """`path`, newly opened; where the process's limit is reached, half of the others are let go first."""
        while True:
            try:
                return _OpenShard(path)
            except OSError as error:
                if not self.open:
                    raise InputError(
                        f"{path} cannot be opened ({error.strerror or error}): other files use up the process's limit. Raise it (ulimit -n)."
                    ) from error
                for _ in range((len(self.open) + 1) // 2):
                    self.open.popitem(last=False)

    @staticmethod
    def most() -> int:
        """How many shards may be open. Asked each time, since a test or a user may change the limit."""
        try:
            import resource
        except ImportError:  # not on Windows, which has no such limit
            return 256
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return 1024 if soft == resource.RLIM_INFINITY else max(1, min(1024, soft // 2))


_HANDLES = _Handles()


class ShardSet:
    """The rows of all *.h5 files of some folders, end to end: sorted by path as text, hidden files included, sub-folders not.

    Holds no open file, so it may be pickled and forked. Raises InputError if there is nothing to read, DataError if a file is not
    a shard, does not fit the others, or is not what the manifest beside it says.
    """

    def __init__(self, data_dirs: str | Sequence[str], sort_files: bool = True) -> None:
        folders = [data_dirs] if isinstance(data_dirs, str) else list(data_dirs)
        names = [name for folder in folders for name in _list_shards(folder)]
        if not names:
            raise InputError(
                f"There is no *.h5 file in {', '.join(folders)}. Check data_dir: sub-folders are not searched."
            )
        if sort_files:
            names.sort()
        self.names = names
        opened = [_inspect(name) for name in names]
        self.files = [file for file, _, _ in opened]
        self.trailing, self.dtype = opened[0][1:]
        for name, (_, trailing, dtype) in zip(names, opened, strict=True):
            if (trailing, dtype) != (self.trailing, self.dtype):
                raise DataError(
                    f"{name} holds {dtype} rows of shape {trailing}, {names[0]} {self.dtype} rows of shape {self.trailing}. "
                    "Give data_dir folders of one kind of shards."
                )
        self.ends = list(itertools.accumulate(file.rows for file in self.files))
        self.manifests = [
            manifest for folder in folders if (manifest := _find_manifest(Path(folder))) is not None
        ]
        self.sha256 = _check_manifests(self.manifests, folders, self.files, by_row=bool(self.trailing))
        if not len(self):
            raise InputError(
                f"All {len(names)} *.h5 files in {', '.join(folders)} are empty. Check data_dir."
            )

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, starts: Int64Array, length: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (position in `starts`, rows [start, start + length)) in the order they are stored, each file checked once."""
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
                        handle.kept = None
                        handle = None  # or it could not be closed to make room for the next
                    handle = _HANDLES.get(self.files[number])
                    current, before = number, self.ends[number] - self.files[number].rows
                if stop <= self.ends[number]:
                    break
                pieces.append(handle.read(start - before, self.ends[number] - before))
                start, number = self.ends[number], bisect.bisect_right(self.ends, self.ends[number])
            last = handle.read(start - before, stop - before)
            yield position, np.concatenate([*pieces, last]) if pieces else last

    def fingerprint(self) -> dict[str, Any]:
        """What the data is, in plain JSON values: its layout, and per file name, rows, bytes, probe and, if a manifest has it, sha256."""
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
            f"The data folder {folder} cannot be read ({error.strerror}). Check data_dir, and that it is mounted."
        ) from None


def _inspect(name: str) -> tuple[ShardFile, tuple[int, ...], np.dtype[Any]]:
    """Open a shard once, for its shape, dtype and probe, and close it."""
    path = os.path.abspath(name)
    before = os.stat(path)
    shard = _HANDLES.opened(path)
    rows, trailing = shard.shape[0], shard.shape[1:]
    length = 1 if trailing else min(1024, rows)
    probe = 0
    for start in sorted({0, (rows - length) // 2, rows - length}) if rows else ():
        probe = zlib.crc32(np.ascontiguousarray(shard.read(start, start + length)).view(np.uint8).data, probe)
    return ShardFile(path, rows, before.st_size, before.st_mtime_ns, probe), trailing, shard.dtype


# Manifests ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Manifest:
    path: Path
    content: dict[str, Any]

    def files(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Each file it lists, with the place where it should lie."""
        for split, listed in _mapping(self.content.get("splits")).items():
            for entry in _mapping(listed).get("files") or ():
                name = str(_mapping(entry).get("name", ""))
                folder = self.path.parent
                if "/" not in name and (folder / split).is_dir():
                    folder = folder / split
                yield (folder / name).absolute(), entry


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _find_manifest(folder: Path) -> _Manifest | None:
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
            return _Manifest(path, content)
    return None


def _check_manifests(
    manifests: list[_Manifest], folders: list[str], files: list[ShardFile], by_row: bool
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


# Samples by index -----------------------------------------------------------------------------------------------------------------


def _parse_subset(text: str, num_samples: int) -> list[tuple[int, int]]:
    """The sample ranges of a data_subset such as "0.0-0.5,0.7-1.0": [int(n * start), int(n * end)) each."""
    ranges = []
    previous = 0.0
    for part in text.strip().split(","):
        try:
            start, end = (float(bound) for bound in part.split("-"))
        except ValueError:
            raise ConfigError(
                f'data_subset is "{text}", expected ranges of fractions such as "0.0-0.5,0.7-1.0". Correct it.'
            ) from None
        if not previous <= start <= end <= 1:
            raise ConfigError(
                f'data_subset "{text}" has the range {part.strip()}: ranges must ascend, not overlap and lie within 0 to 1. Correct it.'
            )
        ranges.append((int(num_samples * start), int(num_samples * end)))
        previous = end
    return ranges


class _Source:
    """The samples of one data_dir: row i of sample data, or tokens [i * L, i * L + L] (L + 1 of them) of a corpus."""

    def __init__(self, data_dir: str | list[str], subset: str | None, config: DataConfig) -> None:
        self.shards = ShardSet(data_dir, config.sort_files)
        first, trailing, length = self.shards.names[0], self.shards.trailing, config.max_sequence_length
        self.by_sample = bool(trailing)
        if not self.by_sample:
            if length is None:
                raise ConfigError(
                    f"{first} is in corpus format (one stream of tokens). Set max_sequence_length to the length of a sample."
                )
            if config.use_vsl:
                raise ConfigError(
                    f"{first} is in corpus format, which use_vsl cannot read. Prepare the data with --format vsl."
                )
            self.sequence_length, self.stride, self.span = length, length, length + 1
            total = (len(self.shards) - 1) // length
        else:
            if length is not None:
                raise ConfigError(
                    f"max_sequence_length is {length}, and {first} is in sample format, which fixes the length. Remove max_sequence_length."
                )
            if len(trailing) != 2 or trailing[0] < len(FEATURES):
                raise DataError(
                    f"{first} holds rows of shape {trailing}, expected (3, sequence length). Give the folder of prepared shards."
                )
            if config.use_vsl and trailing[0] != len(VSL_FEATURES):
                raise ConfigError(
                    f"use_vsl needs 5 planes a sample, {first} has {trailing[0]}. Prepare the data with --format vsl."
                )
            self.sequence_length, self.stride, self.span = trailing[1], 1, 1
            total = len(self.shards)
        ranges = [(0, total)] if subset is None else _parse_subset(subset, total)
        self.starts = np.array([start for start, _ in ranges], np.int64)
        self.ends = np.cumsum([end - start for start, end in ranges], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, samples: Int64Array) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (position in `samples`, what is stored: planes (P, L), or L + 1 tokens of a corpus)."""
        part = np.searchsorted(self.ends, samples, side="right")
        before = self.ends[part - 1] * (part > 0)
        rows = self.shards.read((samples - before + self.starts[part]) * self.stride, self.span)
        return ((position, row[0]) for position, row in rows) if self.by_sample else rows


class _Mixture:
    """Which (source, sample) each index of a mixture is.

    One epoch is the smallest number of samples T that shows every source of weight above 5% in full: T = max(len / weight), int(T *
    weight) samples of each, a source's own samples repeating in order. Shuffled later on, sources stand one after the other; else
    they are interleaved by a seeded shuffle of the places, each source keeping its own order.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], interleave: bool, seed: int) -> None:
        total = sum(weights)
        shares = [weight / total for weight in weights]
        heavy = [length / share for length, share in zip(lengths, shares, strict=True) if share > 0.05]
        if not heavy:
            raise ConfigError(
                f"No set of mixture has more than 5% of the weight (weights {list(weights)}), so an epoch has no length. "
                "Join some of the sets: data_dir may be a list."
            )
        counts = [int(max(heavy) * share) for share in shares]
        self.lengths = np.array(lengths, np.int64)
        self.bounds = np.cumsum([0, *counts])
        self.place: Int64Array | None = None
        if interleave:
            place = np.arange(self.bounds[-1])
            np.random.default_rng(seed).shuffle(place)
            source = np.searchsorted(self.bounds, place, side="right") - 1
            for number, first in enumerate(self.bounds[:-1]):
                members = np.flatnonzero(source == number)
                place[members] = first + np.arange(len(members))
            self.place = place

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def locate(self, indices: Int64Array) -> tuple[Int64Array, Int64Array]:
        place = indices if self.place is None else self.place[indices]
        source = np.searchsorted(self.bounds, place, side="right") - 1
        return source, (place - self.bounds[source]) % self.lengths[source]


class HDF5Dataset(Dataset[Any]):
    """Samples by index, in the order of the files (or of the mixture). An index gives one sample, a list of indices a batch.

    A sample is a dict of int32 arrays (L,): input_ids, attention_mask, labels, and with use_vsl attention_span and position_ids. A batch
    has the same keys, torch.int32 tensors (number of indices, L); the index PAD there gives zeros. May be pickled and forked.
    """

    def __init__(self, config: DataConfig | Mapping[str, Any]) -> None:
        self.config = config = config if isinstance(config, DataConfig) else DataConfig.parse(config)
        config.check_sources()
        self.features_list = list(VSL_FEATURES if config.use_vsl else FEATURES)
        self._mixture: _Mixture | None = None
        if config.data_dir is not None:
            self._sources = [_Source(config.data_dir, config.data_subset, config)]
        else:
            used = [entry for entry in config.mixture or () if entry.weight > 0]
            self._sources = [_Source(entry.data_dir, entry.data_subset, config) for entry in used]
            for entry, source in zip(used, self._sources, strict=True):
                if not len(source):
                    raise InputError(
                        f"The set {entry.data_dir} of mixture has no sample (data_subset {entry.data_subset}). Remove it."
                    )
            lengths = [len(source) for source in self._sources]
            self._mixture = _Mixture(
                lengths, [entry.weight for entry in used], not config.shuffle, config.shuffle_seed
            )
        kinds = {(source.by_sample, source.sequence_length) for source in self._sources}
        if len(kinds) > 1:
            raise ConfigError(
                f"The sets of mixture differ in format or sequence length: {sorted(kinds)}. Mix sets of one kind."
            )
        self.by_sample, self.sequence_length = kinds.pop()
        if not len(self):
            raise InputError(
                f"No sample is left of {config.data_dir} (data_subset {config.data_subset}). Widen data_subset, or add data."
            )

    def __len__(self) -> int:
        return len(self._sources[0]) if self._mixture is None else len(self._mixture)

    def __getitem__(self, index: int | Sequence[int]) -> Any:
        if isinstance(index, Sequence):
            return self.read_batch(index)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return {name: values[0].numpy() for name, values in self.read_batch([index]).items()}

    def read_batch(self, indices: Sequence[int]) -> Batch:
        """The samples at `indices`, PAD standing for zeros."""
        wanted = np.asarray(indices, np.int64)
        if wanted.size and not PAD <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"samples {wanted.min()} to {wanted.max()} of {len(self)}")
        planes = np.empty((len(self.features_list), len(wanted), self.sequence_length), np.int32)
        padded = wanted == PAD
        planes[:, padded] = 0
        positions = np.flatnonzero(~padded)
        source, sample = np.zeros_like(positions), wanted[positions]
        if self._mixture is not None:
            source, sample = self._mixture.locate(sample)
        for number in np.unique(source).tolist():
            here = np.flatnonzero(source == number)
            rows = positions[here].tolist()
            for found, stored in self._sources[number].read(sample[here]):
                row = rows[found]
                if self.by_sample:
                    planes[:, row] = stored[: len(planes)]
                else:
                    planes[0, row], planes[1, row], planes[2, row] = stored[:-1], 1, stored[1:]
        return {name: torch.from_numpy(plane) for name, plane in zip(self.features_list, planes, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """The settings that decide the samples, under the Model Zoo's names, and (`data`) what the files hold. Plain JSON values."""
        keys = (
            "use_worker_cache", "max_sequence_length", "shuffle", "shuffle_seed", "data_dir", "data_subset", "batch_size", "drop_last",
            "num_samples", "sort_files", "use_vsl", "pad_last",
        )  # fmt: skip
        state: dict[str, Any] = {key: getattr(self.config, key) for key in keys}
        mixture = self.config.mixture
        state["mixture_params"] = (
            None if mixture is None else [entry.model_dump(exclude_unset=True) for entry in mixture]
        )
        state["data"] = [source.shards.fingerprint() for source in self._sources]
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Check that `state` is of the same samples. Raises ConfigError or DataError naming each difference; never with strict=False.

        batch_size and use_worker_cache may differ. A state of the Model Zoo, which has neither data_subset nor `data`, is accepted.
        """
        if not strict:
            return
        ours = self.state_dict()
        may_differ = {"batch_size", "use_worker_cache"}
        optional = may_differ | {"data_subset", "data"}
        differences = [f"{key}: {state[key]!r} then, not a setting now" for key in state if key not in ours]
        for key, now in ours.items():
            if key not in state:
                differences += [] if key in optional else [f"{key}: absent then, {now!r} now"]
            elif key not in may_differ and key != "data" and state[key] != now:
                differences.append(f"{key}: {state[key]!r} then, {now!r} now")
        changed = _data_differences(state["data"], ours["data"]) if "data" in state else []
        if differences or changed:
            kind = ConfigError if differences else DataError
            listing = "\n  ".join(differences + changed)
            raise kind(
                f"The saved state belongs to other data or settings:\n  {listing}\nRestore them, or load with strict=False."
            )


def _data_differences(then: Any, now: list[dict[str, Any]], limit: int = 8) -> list[str]:
    """What changed between two lists of fingerprints, in words; at most `limit` lines and a count of the rest."""
    if len(then) != len(now):
        return [f"{len(then)} data sets then, {len(now)} now"]
    lines = []
    for old, new in zip(then, now, strict=True):
        if old["layout"] != new["layout"]:
            lines.append(f"rows: {old['layout']} then, {new['layout']} now")
        before, after = [list(file) for file in old["files"]], [list(file) for file in new["files"]]
        if before == after:
            continue
        if [file[0] for file in before] == [file[0] for file in after]:
            for (name, *was), (_, *is_now) in zip(before, after, strict=True):
                what = [
                    f"{label} {a} then, {b} now"
                    for label, a, b in zip(("rows", "bytes", "content", "sha256"), was, is_now, strict=True)
                    if a != b and a is not None and b is not None
                ]
                lines += [f"{name}: {'; '.join(what)}"] if what else []
            continue
        gone = [file[0] for file in before if file not in after]
        come = [file[0] for file in after if file not in before]
        lines += [f"{name}: there then, not now (or changed)" for name in gone]
        lines += [f"{name}: here now, not then (or changed)" for name in come]
        lines += [] if gone or come else ["the files stand in another order"]
    return lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more differences"]


# Order ----------------------------------------------------------------------------------------------------------------------------


class SampleOrder:
    """The endless stream of sample indices: epoch 0, epoch 1, ..., each `epoch_length` long.

    Unshuffled an epoch is 0, 1, ... modulo the data's length n. Shuffled it is the start of a permutation drawn with seed + epoch; longer
    than the data, it is ceil(epoch_length / n) - 1 copies in order and a permutation, cut to the length, then permuted as a whole.
    """

    def __init__(
        self, num_samples: int, epoch_length: int | None = None, shuffle: bool = False, seed: int = 0
    ) -> None:
        self.num_samples = num_samples
        self.epoch_length = epoch_length or num_samples
        self.shuffle = shuffle
        self.seed = seed
        self._drawn: tuple[int, npt.NDArray[Any]] | None = None

    def between(self, start: int, stop: int) -> Int64Array:
        """The indices at positions [start, stop) of the stream."""
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self.epoch_length)
            count = min(stop - start, self.epoch_length - offset)
            if self.shuffle:
                pieces.append(self._epoch(epoch)[offset : offset + count].astype(np.int64))
            else:
                pieces.append(np.arange(offset, offset + count, dtype=np.int64) % self.num_samples)
            start += count
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _epoch(self, epoch: int) -> npt.NDArray[Any]:
        if self._drawn is None or self._drawn[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            # The permutation does not depend on its dtype (a test holds this); int32 halves what a large epoch takes in memory.
            dtype = torch.int32 if max(self.num_samples, self.epoch_length) < 2**31 else torch.int64
            order = torch.randperm(self.num_samples, generator=generator, dtype=dtype)
            if self.epoch_length > self.num_samples:
                copies = math.ceil(self.epoch_length / self.num_samples) - 1
                order = torch.cat([torch.arange(self.num_samples, dtype=dtype).repeat(copies), order])[
                    : self.epoch_length
                ]
                order = order[torch.randperm(self.epoch_length, generator=generator, dtype=dtype)]
            self._drawn = epoch, order[: self.epoch_length].numpy()
        return self._drawn[1]


class GlobalBatches(Sampler[list[int]]):
    """The batches of one pass, as indices for one rank: its slice of each global batch.

    A pass covers positions [start, stop) of the stream, which the loader sets. Rank r of W gets items [r * b // W, (r + 1) * b // W) of a
    batch of b, so the ranks' slices end to end are the batch, whatever W is; a rank's slice is empty where b < W.
    """

    def __init__(self, order: SampleOrder, config: DataConfig, rank: int, world_size: int) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"Rank {rank} of {world_size} ranks does not exist. Give a rank from 0 to {world_size - 1}."
            )
        self.order = order
        self.batch_size = config.batch_size
        self.drop_last = config.drop_last
        self.pad_last = config.pad_last
        self.rank = rank
        self.world_size = world_size
        self.start = self.stop = 0
        self.seek(0)

    def seek(self, position: int) -> None:
        """Start the next pass at `position`; it ends with its epoch, or with the next one where less than a batch is left.

        An epoch's samples that fill no batch thus open the next one (drop_last). A first epoch shorter than a batch is joined with the
        second one, as the Model Zoo does; if both are too short, the pass has no batch and the next one ends an epoch later.
        """
        length = self.order.epoch_length
        self.start = position
        self.stop = (position // length + 1) * length
        if self.drop_last and self.stop - position < self.batch_size:
            self.stop += length

    def finish(self, position: int) -> None:
        """A pass is over, `position` samples consumed: go on with the next epoch."""
        self.start = position
        self.stop += self.order.epoch_length

    def spans(self) -> Iterator[tuple[int, int]]:
        """The positions [first, end) of each global batch of this pass."""
        for first in range(self.start, self.stop, self.batch_size):
            end = min(first + self.batch_size, self.stop)
            if self.drop_last and end - first < self.batch_size:
                return
            yield first, end

    def __iter__(self) -> Iterator[list[int]]:
        for first, end in self.spans():
            batch = self.order.between(first, end)
            if self.pad_last:
                batch = np.pad(batch, (0, self.batch_size - len(batch)), constant_values=PAD)
            bounds = [rank * len(batch) // self.world_size for rank in (self.rank, self.rank + 1)]
            yield batch[slice(*bounds)].tolist()

    def __len__(self) -> int:
        count = self.stop - self.start
        return count // self.batch_size if self.drop_last else math.ceil(count / self.batch_size)


# Loader ---------------------------------------------------------------------------------------------------------------------------


def _as_it_is(batch: Any) -> Any:
    return batch


class RestartableDataLoader(DataLoader[Batch]):
    """Batches of this rank, one epoch a pass, and the state to go on from any of them.

    `for batch in loader` consumes samples; finished, the next pass is the next epoch. A pass that is abandoned starts over when the loader
    is iterated again, as an evaluation wants. `state_dict` counts what was handed out, not what workers have read ahead.
    """

    def __init__(self, dataset: HDF5Dataset, batches: GlobalBatches, **options: Any) -> None:
        self.batches = batches
        self.samples_streamed = 0
        super().__init__(dataset, batch_size=None, sampler=batches, collate_fn=_as_it_is, **options)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises its own iterator class; callers only iterate
        self.samples_streamed = self.batches.start
        for (_, end), batch in zip(self.batches.spans(), super().__iter__(), strict=True):
            self.samples_streamed = end
            yield batch
        self.batches.finish(self.samples_streamed)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is: the samples consumed on all ranks together, and what they were samples of. The same on every rank."""
        return {
            "samples_streamed": self.samples_streamed,
            "__version__": STATE_VERSION,
            "dataset": self._hdf5_dataset().state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Go on with the sample after `state`. Raises ConfigError or DataError, naming the differences, if it is of other data or settings."""
        version = state.get("__version__", 0)
        if version not in (0, STATE_VERSION):
            raise DataError(
                f"The saved data state has version {version!r}, this program knows up to {STATE_VERSION}. Use a newer program."
            )
        dataset = self._hdf5_dataset()
        if version == 0:  # the Model Zoo before 2.4: the seed is all there is to compare
            seed = dataset.config.shuffle_seed
            if (
                strict
                and (dataset.config.shuffle or dataset.config.mixture)
                and state.get("seed", seed) != seed
            ):
                raise ConfigError(
                    f"The saved data state has the seed {state['seed']}, shuffle_seed is {seed}. Set shuffle_seed to the former."
                )
        elif "dataset" in state:
            dataset.load_state_dict(state["dataset"], strict=strict)
        elif strict:
            raise DataError(
                'The saved data state lacks "dataset", the settings it was made with. Load another one, or with strict=False.'
            )
        position = state.get("samples_streamed")
        if not isinstance(position, int) or position < 0:
            raise DataError(
                f"The saved data state has samples_streamed {position!r}, expected a count. Load another one."
            )
        self.samples_streamed = position
        self.batches.seek(position)

    def _hdf5_dataset(self) -> HDF5Dataset:
        assert isinstance(self.dataset, HDF5Dataset)
        return self.dataset


class GptHDF5MapDataProcessor:
    """The Model Zoo's data processor of the same name: its configuration in, its batches out, in its order.

    Raises ConfigError for a wrong setting, InputError if there is no data, DataError if the shards are not what they should be; all of
    that happens here, before a batch is asked for.
    """

    def __init__(self, config: DataConfig | Mapping[str, Any]) -> None:
        self.dataset = HDF5Dataset(config)
        self.config = self.dataset.config
        self.features_list = self.dataset.features_list
        if unused := self.config.unused_keys():
            logger.info("Not used by this reader: %s.", ", ".join(unused))
        if self.config.drop_last and self.config.pad_last:
            logger.warning("pad_last has no effect while drop_last is true (the default).")
        if self.dataset.by_sample and self.config.shuffle:
            logger.info(
                "shuffle with sample data reads at random; for one epoch, data shuffled when prepared reads faster."
            )

    def create_dataloader(
        self,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        multiprocessing_context: str | None = None,
        pin_memory: bool = False,
    ) -> RestartableDataLoader:
        """A loader of this rank's slices of the global batches; by default rank and world size are torch.distributed's.

        multiprocessing_context: how workers start ("fork", "spawn" or "forkserver"; None is the platform's default).
        """
        if rank is None or world_size is None:
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = (torch.distributed.get_rank() if distributed else 0) if rank is None else rank
            world_size = (
                (torch.distributed.get_world_size() if distributed else 1)
                if world_size is None
                else world_size
            )
        config = self.config
        order = SampleOrder(len(self.dataset), config.num_samples, config.shuffle, config.shuffle_seed)
        loader = partial(
            RestartableDataLoader,
            self.dataset,
            GlobalBatches(order, config, rank, world_size),
            pin_memory=pin_memory,
        )
        if not config.num_workers:
            return loader()
        return loader(
            num_workers=config.num_workers,
            prefetch_factor=config.prefetch_factor,
            persistent_workers=config.persistent_workers,
            multiprocessing_context=multiprocessing_context,
        )


# Description ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataDescription:
    """What some folders of shards hold, as far as a trainer must know before it builds a model.

    sequence_length and num_samples are None for a corpus of which no length was asked. vocab_size and tokenizer_name are None where no
    manifest says them. digest (hex SHA-256) names the content, wherever the folders lie.
    """

    sequence_length: int | None
    vocab_size: int | None
    tokenizer_name: str | None
    digest: str
    num_samples: int | None
    format: Literal["sample", "corpus", "vsl"]


def describe_data(
    data_dirs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    max_sequence_length: int | None = None,
) -> DataDescription:
    """Look at the shards of `data_dirs` and at their manifests (dataset.json beside them, or one or two levels above).

    max_sequence_length: the length a corpus will be read with. Raises InputError or DataError if the folders cannot be read as one set.
    """
    given = [data_dirs] if isinstance(data_dirs, (str, os.PathLike)) else list(data_dirs)
    shards = ShardSet([os.fspath(folder) for folder in given])
    kind: Literal["sample", "corpus", "vsl"] = "sample"
    length: int | None
    if not shards.trailing:
        kind, length = "corpus", max_sequence_length
        count = None if length is None else max(0, (len(shards) - 1) // length)
    elif len(shards.trailing) == 2 and shards.trailing[0] >= len(FEATURES):
        kind = "vsl" if shards.trailing[0] == len(VSL_FEATURES) else "sample"
        length, count = shards.trailing[1], len(shards)
    else:
        raise DataError(
            f"{shards.names[0]} holds rows of shape {shards.trailing}, expected (3, sequence length). Give a folder of shards."
        )
    digest = hashlib.sha256(json.dumps(shards.fingerprint(), sort_keys=True).encode()).hexdigest()
    tokenizers = [_mapping(manifest.content.get("tokenizer")) for manifest in shards.manifests]
    names = _agreed(tokenizers, "name", shards.manifests)
    vocab_size = _agreed(tokenizers, "vocab_size", shards.manifests)
    return DataDescription(length, vocab_size, names, digest, count, kind)


def _agreed(tokenizers: list[dict[str, Any]], key: str, manifests: list[_Manifest]) -> Any:
    """The one value of `key`, None if no manifest has it. Raises DataError if manifests differ."""
    found = {
        manifest.path: tokenizer[key]
        for tokenizer, manifest in zip(tokenizers, manifests, strict=True)
        if tokenizer.get(key) is not None
    }
    if len(set(found.values())) > 1:
        listing = ", ".join(f"{value!r} in {path}" for path, value in found.items())
        raise DataError(
            f"The data folders were tokenized differently: tokenizer {key} {listing}. Give data_dir folders of one tokenizer."
        )
    return next(iter(found.values()), None)
