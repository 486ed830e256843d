"""Shards: what training reads. One HDF5 file holds one dataset `data`.

    sample   (n, 3, L) int32, chunks (1, 3, L): plane 0 input_ids, plane 1 attention_mask (1 on real positions: it is the
             loss mask), plane 2 labels = the next token; 0 in all three planes where padded
    vsl      (n, 5, L) int32, chunks (1, 5, L): the same three, then attention_span and position_ids
    corpus   (n,) uint16 or int32: the token stream itself

The file attribute `n_examples` repeats the length of axis 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from btlm_data.errors import DataError
from btlm_data.formats import atomic

CORPUS_CHUNK = 8192


@dataclass(frozen=True)
class ShardOptions:
    """How a shard's bytes are stored; what a reader gets does not depend on it."""

    compression: Literal["gzip", "none"] = "gzip"
    level: int = 1
    hdf5_shuffle: bool = False
    dtype: Literal["int32", "uint16"] = "int32"


@dataclass(frozen=True)
class ShardInfo:
    """What a finished shard holds: n_examples (axis 0), real label positions, and the file's sha256 and size in bytes."""

    n_examples: int
    num_tokens: int
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class ShardLayout:
    """What `read_shard_info` finds: shape and dtype of `data`, its chunks, filters, and the n_examples attribute if there."""

    layout: Literal["sample", "vsl", "corpus", "other"]
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None
    compression: str | None
    hdf5_shuffle: bool
    n_examples: int | None
    num_bytes: int


def write_samples(
    path: Path, rows: npt.NDArray[Any], num_real: npt.NDArray[np.int64] | None = None, options: ShardOptions | None = None
) -> ShardInfo:
    """Write token rows (n, L+1) as a sample shard; num_real[i] label positions of row i are real (all L by default)."""
    n, length = rows.shape[0], rows.shape[1] - 1
    planes = np.empty((n, 3, length), np.int32)
    planes[:, 0], planes[:, 1], planes[:, 2] = rows[:, :-1], 1, rows[:, 1:]
    real = n * length
    if num_real is not None:
        real = int(num_real.sum())
        planes *= (np.arange(length) < num_real[:, None])[:, None]
    return _write(path, planes, real, options or ShardOptions())


def write_vsl(path: Path, planes: npt.NDArray[np.int32], options: ShardOptions | None = None) -> ShardInfo:
    """Write VSL planes (n, 5, L) as a shard."""
    return _write(path, planes, int(planes[:, 1].sum()), options or ShardOptions())


def write_corpus(
    path: Path, tokens: npt.NDArray[Any] | Iterable[npt.NDArray[Any]], total: int | None = None, options: ShardOptions | None = None
) -> ShardInfo:
    """Write a token stream (one array, or arrays that hold `total` tokens together) as a corpus shard."""
    options = options or ShardOptions(dtype="uint16")
    whole = tokens if isinstance(tokens, np.ndarray) else np.concatenate(list(tokens))
    return _write(path, whole.astype(options.dtype), len(whole), options)


def _write(path: Path, data: npt.NDArray[Any], real: int, options: ShardOptions) -> ShardInfo:
    data = data.astype(options.dtype, copy=False)
    chunks = (1, *data.shape[1:]) if data.ndim == 3 else (max(1, min(len(data), CORPUS_CHUNK)),)
    with atomic.replacing(path) as temporary:
        with h5py.File(temporary, "w", libver="earliest") as file:
            file.attrs["n_examples"] = len(data)
            zipped = options.compression == "gzip"
            create = file.create_dataset
            maxshape = None if len(data) else (None, *data.shape[1:])
            dataset = create(
                "data", shape=data.shape, dtype=data.dtype, chunks=chunks, maxshape=maxshape, compression="gzip" if zipped else None,
                shuffle=options.hdf5_shuffle, track_times=False,
            )  # fmt: skip
            if data.ndim == 3 and zipped and not options.hdf5_shuffle:
                for i in range(len(data)):
                    dataset.id.write_direct_chunk((i, 0, 0), isal_zlib.compress(data[i], 1))
            elif len(data):
                dataset[:] = data
        with temporary.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = temporary.stat().st_size
    return ShardInfo(len(data), real, digest, size)


def read_shard_info(path: Path) -> ShardLayout:
    """What `path` holds, without reading its data. Raises DataError if it is not such a file."""
    with _dataset(path) as data:
        kind: Literal["sample", "vsl", "corpus", "other"] = "other"
        if data.ndim == 1:
            kind = "corpus"
        elif data.ndim == 3 and data.shape[1] in (3, 5):
            kind = "sample" if data.shape[1] == 3 else "vsl"
        attribute = data.file.attrs.get("n_examples")
        return ShardLayout(
            kind, tuple(data.shape), str(data.dtype), data.chunks, data.compression, bool(data.shuffle),
            None if attribute is None else int(attribute), path.stat().st_size,
        )  # fmt: skip


def read_rows(path: Path, start: int, stop: int) -> npt.NDArray[Any]:
    """Rows [start, stop) of `data` in its own dtype."""
    with _dataset(path) as data:
        rows: npt.NDArray[Any] = data[start:stop]
        return rows


def iter_chunks(path: Path, max_bytes: int = 64 << 20) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """All of `data` in pieces of at most max_bytes (at least one row): (first row, rows)."""
    with _dataset(path) as data:
        row = int(np.prod(data.shape[1:], dtype=np.int64)) * data.dtype.itemsize
        step = max(1, max_bytes // max(1, row))
        for start in range(0, len(data), step):
            yield start, data[start : start + step]


class _dataset:
    """Opens `data` of a shard; turns HDF5's errors into DataError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> h5py.Dataset:
        try:
            self.file = h5py.File(self.path, "r")
            return self.file["data"]
        except (OSError, KeyError) as error:
            raise DataError(f"{self.path} is not a readable shard ({error}). Remove it and run the same command again.") from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.file.close()
        if isinstance(error, OSError):
            raise DataError(f"{self.path} has damaged data ({error}). Remove it and run the same command again.") from error
