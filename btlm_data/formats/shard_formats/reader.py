"""Read shards: their layout, rows, and all of them in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError

Layout = Literal["sample", "vsl", "corpus", "other"]


@dataclass(frozen=True)
class ShardLayout:
    """What a file holds, as far as can be told without reading its data; n_examples is the attribute (None: not there)."""

    layout: Layout
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None
    compression: str | None
    hdf5_shuffle: bool
    n_examples: int | None
    num_bytes: int


def read_shard_info(path: Path) -> ShardLayout:
    """What `path` holds. Raises DataError if it is not a shard: missing, torn, or without a dataset `data`."""
    with _open(path) as data:
        layout: Layout = "other"
        if data.ndim == 1:
            layout = "corpus"
        elif data.ndim == 3 and data.shape[1] in (3, 5):
            layout = "sample" if data.shape[1] == 3 else "vsl"
        n_examples = data.file.attrs.get("n_examples")
        return ShardLayout(
            layout=layout,
            shape=tuple(data.shape),
            dtype=str(data.dtype),
            chunks=data.chunks,
            compression=data.compression,
            hdf5_shuffle=bool(data.shuffle),
            n_examples=None if n_examples is None else int(n_examples),
            num_bytes=path.stat().st_size,
        )


def read_rows(path: Path, start: int, stop: int) -> npt.NDArray[Any]:
    """Rows [start, stop) of `data` (tokens in the corpus layout), in the file's type. Raises DataError if they cannot be read."""
    with _open(path) as data:
        return _read(path, data, start, min(stop, len(data)))


def iter_chunks(path: Path, max_bytes: int = 1 << 26) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """All of `data` in order, as (first row, rows), at most max_bytes (but at least one row) at a time.

    Raises DataError that names the first unreadable row.
    """
    with _open(path) as data:
        row_bytes = max(1, int(np.prod(data.shape[1:], dtype=np.int64)) * data.dtype.itemsize)
        step = max(1, max_bytes // row_bytes)
        if data.chunks and step > data.chunks[0]:
            step -= step % data.chunks[0]  # never unpack a chunk twice
        for start in range(0, len(data), step):
            yield start, _read(path, data, start, min(start + step, len(data)))


_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises for damaged files
_REMEDY = "Restore it from a copy, or remove it and run the command that made it again."


@contextlib.contextmanager
def _open(path: Path) -> Iterator[h5py.Dataset]:
    """Give `data` of a shard; what the HDF5 library cannot open or make sense of becomes a DataError."""
    if not path.is_file():
        raise DataError(
            f"The shard {path} is missing. Restore it from a copy, or run the command that made it again."
        )
    try:
        file = h5py.File(path, "r")
    except _HDF5_ERRORS as error:
        raise DataError(f"{path} is not a readable HDF5 file: {error}. {_REMEDY}") from error
    with file:
        try:
            data = file["data"]
            usable = isinstance(data, h5py.Dataset) and data.ndim >= 1 and data.dtype.kind in "iuf"
            found = f"its `data` is a {type(data).__name__} of type {getattr(data, 'dtype', None)}"
        except _HDF5_ERRORS as error:
            usable, found = False, f"it has no readable dataset `data` ({error})"
        if not usable:
            raise DataError(f"{path} is not a shard: {found}. {_REMEDY}")
        yield data


def _read(path: Path, data: h5py.Dataset, start: int, stop: int) -> npt.NDArray[Any]:
    try:
        rows: npt.NDArray[Any] = data[start:stop]
    except _HDF5_ERRORS as error:
        bad = start
        while bad < stop:
            try:
                data[bad : bad + 1]
            except _HDF5_ERRORS:
                break
            bad += 1
        raise DataError(
            f"{path} is damaged: row {bad} of {len(data)} cannot be unpacked ({error}). {_REMEDY}"
        ) from error
    return rows
