"""Columns: named arrays in one file, memory-mapped on reading. Every intermediate table of a run is one of these.

Layout, little-endian throughout:

    offset 0   8 bytes   magic  b"BTLMCOL1"
    offset 8   8 bytes   uint64 H, the length of the header in bytes
    offset 16  8 bytes   uint64 xxh3_64 of the header bytes
    offset 24  H bytes   header, UTF-8 JSON: {"arrays": {name: {"dtype": str, "shape": [int], "offset": int, "xxh3": hex}}, "meta": {...}}
    ...                  each array's C-order bytes at its `offset` (a multiple of 64, from the start of the file)
    end                  the file ends with the last array's last byte (padded to a multiple of 64)

dtypes are numpy's explicit little-endian names ("<u4", "|u1"). A reader refuses another magic, a file shorter than its
header says, and (with verify=True) an array whose checksum differs.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from btlm_data.errors import DataError
from btlm_data.formats import atomic

MAGIC = b"BTLMCOL1"
_PREFIX = struct.Struct("<8sQQ")
_ALIGN = 64


@dataclass(frozen=True)
class Columns:
    """The arrays of one file (read-only views of a memory map) and its meta data."""

    arrays: Mapping[str, npt.NDArray[Any]]
    meta: Mapping[str, Any]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.arrays[name]


def write(
    path: Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    meta: Mapping[str, Any] | None = None,
    *,
    durable: bool = False,
) -> int:
    """Write `arrays` and `meta` (JSON values) atomically; returns the file's size in bytes.

    Not durable by default: intermediates are checked against their receipt's size when a run resumes, and what a power
    cut tore is made again. Raises OutputError if the file cannot be written.
    """
    little = {
        name: np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        for name, array in arrays.items()
    }
    described: dict[str, dict[str, Any]] = {
        name: {
            "dtype": a.dtype.str,
            "shape": list(a.shape),
            "offset": 0,
            "xxh3": xxhash.xxh3_64_hexdigest(_bytes(a)),
        }
        for name, a in little.items()
    }
    # The header holds the offsets and its length shifts them: reserve room for the largest, then fill in.
    room = len(json.dumps({"arrays": described, "meta": meta or {}})) + 20 * len(described)
    position = _round_up(_PREFIX.size + room)
    for name, array in little.items():
        described[name]["offset"] = position
        position = _round_up(position + array.nbytes)
    header = json.dumps({"arrays": described, "meta": meta or {}}).encode().ljust(room)
    with atomic.replacing(path, durable=durable) as temporary, temporary.open("wb") as file:
        file.write(_PREFIX.pack(MAGIC, len(header), xxhash.xxh3_64_intdigest(header)))
        file.write(header)
        for name, array in little.items():
            file.write(b"\0" * (described[name]["offset"] - file.tell()))
            file.write(_bytes(array))
        file.write(b"\0" * (position - file.tell()))
    return position


def read(path: Path, names: Iterable[str] | None = None, *, verify: bool = False) -> Columns:
    """Memory-map `path` and give the named arrays (all by default).

    Raises DataError if the file is missing, torn, of another kind, or (verify) has a flipped bit.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_PREFIX.size)
            if len(prefix) < _PREFIX.size or prefix[:8] != MAGIC:
                raise DataError(
                    f"{path} is not a columns file (it starts with {prefix[:8]!r}). Remove it and run the same command again."
                )
            _, header_length, header_hash = _PREFIX.unpack(prefix)
            header_bytes = file.read(min(header_length, size))
            if len(header_bytes) != header_length or xxhash.xxh3_64_intdigest(header_bytes) != header_hash:
                raise DataError(
                    f"{path} has a damaged header. Remove it and run the same command again: it is made anew."
                )
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing. Run the same command again: it is made anew.") from error
    header = json.loads(header_bytes)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, entry in header["arrays"].items():
        if (
            entry["offset"] + int(np.prod(entry["shape"], dtype=np.int64)) * np.dtype(entry["dtype"]).itemsize
            > size
        ):
            raise DataError(
                f"{path} is torn: column {name!r} ends beyond the file's {size} bytes. Remove it and run the same command again."
            )
    for name in header["arrays"] if names is None else names:
        entry = header["arrays"].get(name)
        if entry is None:
            raise DataError(
                f"{path} has no column {name!r} (it has {sorted(header['arrays'])}). It was written by another version: remove it and run again."
            )
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        count = int(np.prod(shape, dtype=np.int64))
        array = (
            np.frombuffer(mapped, dtype=dtype, count=count, offset=entry["offset"]).reshape(shape)
            if count
            else np.empty(shape, dtype)
        )
        if verify and xxhash.xxh3_64_hexdigest(_bytes(np.ascontiguousarray(array))) != entry["xxh3"]:
            raise DataError(
                f"{path} is damaged: column {name!r} does not match its checksum. Remove it and run the same command again."
            )
        arrays[name] = array
    return Columns(arrays, header["meta"])


def _round_up(position: int) -> int:
    return -(-position // _ALIGN) * _ALIGN


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    """The array's bytes without a copy (an empty array has no buffer to cast)."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
