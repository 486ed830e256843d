"""Columns: named arrays in one file. Every intermediate table of a run is one of these; every byte read is
checked.

Layout, little-endian throughout:

    offset 0   8 bytes   magic  b"BTLMCOL2"
    offset 8   8 bytes   uint64 H, the length of the header in bytes
    offset 16  16 bytes  XXH3 (128 bits, big-endian) of the header bytes
    offset 32  H bytes   header, UTF-8 JSON: {"arrays": {name: {"dtype", "shape", "offset", "sums"}}, "chunk",
                         "sums", "sums_xxh3", "meta"}
    ...                  each array's C-order bytes at its `offset` (a multiple of 64, from the start of the
                         file)
    at "sums"            uint64 XXH3 of every chunk of every array: `chunk` bytes each, the last of an array
                         shorter; an array's begin at its "sums" (counted in chunks)

The header's hash is the file's checksum: it covers the checksums of the chunks (by "sums_xxh3"), and these
cover the arrays. So a part of a large array can be read and checked without reading the rest. dtypes are
numpy's explicit little-endian names ("<u4", "|u1"). A reader refuses another magic, a file shorter than its
header says, and bytes that do not match their checksum.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from btlm_data.errors import DataError
from btlm_data.storage import Store
from btlm_data.task import Artifact

MAGIC = b"BTLMCOL2"
_PREFIX = struct.Struct("<8sQ16s")
_ALIGN = 64
CHUNK = 16 * 1024  # bytes under one checksum
_HEAD_BYTES = 64 * 1024  # what opening reads first; arrays that lie within are kept with it
_GAP_BYTES = 256 * 1024  # between arrays that are read together
_MAX_HEADER = 256 * 2**20
Array = npt.NDArray[Any]


class DamagedError(DataError):
    """A work file is not what its receipt says. The runner removes it, so that the next run makes it again."""

    def __init__(self, message: str, artifact: Artifact) -> None:
        super().__init__(message)
        self.artifact = artifact

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.artifact)


class Columns:
    """One open file: its meta data, and its arrays or parts of them, each byte checked before it is given
    out.
    """

    def __init__(
        self, store: Store, artifact: Artifact, checked: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Raises DamagedError if the file is missing, torn, of another kind, or not the one named.

        checked: which chunks of this very file this process has checked before (an earlier object's
        `checked`).
        """
        self._store, self._artifact = store, artifact
        self._buffer: memoryview | None = None
        self._near: list[tuple[int, memoryview]] = []  # parts of the file that were read: offset, bytes
        self._held: dict[str, Array] = {}
        if store.is_local:
            try:
                self._buffer = store.map(artifact.name)
            except DataError as error:
                raise self._damaged(str(error)) from error
        head = self._bytes(0, min(_HEAD_BYTES, artifact.size))
        if len(head) < _PREFIX.size or bytes(head[:8]) != MAGIC:
            raise self._damaged(f"it is no columns file (it starts with {bytes(head[:8])!r})")
        _, length, header_hash = _PREFIX.unpack(head[: _PREFIX.size])
        if header_hash.hex() != artifact.checksum or length > _MAX_HEADER:
            raise self._damaged("it is another file than its receipt names")
        self._near = [(0, head)]
        header_bytes = bytes(self._bytes(_PREFIX.size, _PREFIX.size + length))
        if len(header_bytes) != length or xxhash.xxh3_128_digest(header_bytes) != header_hash:
            raise self._damaged("its header does not match its checksum")
        header = json.loads(header_bytes)
        self._arrays: dict[str, dict[str, Any]] = header["arrays"]
        self.meta: Mapping[str, Any] = header["meta"]
        self._chunk: int = header["chunk"]
        sums = self._bytes(header["sums"], header["sums"] + header["num_sums"] * 8)
        if xxhash.xxh3_128_hexdigest(sums) != header["sums_xxh3"]:
            raise self._damaged("the checksums in it do not match their own")
        self._sums = np.frombuffer(sums, "<u8")
        self._near = self._arrays_in(head)
        is_known = checked is not None and len(checked) == len(self._sums)
        self.checked = checked if is_known and checked is not None else np.zeros(len(self._sums), np.bool_)

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, without reading it."""
        return tuple(self._entry(name)["shape"])

    def __getitem__(self, name: str) -> Array:
        """A whole array, read-only, checked."""
        return self.rows(name, 0, self.shape(name)[0])

    def hold(self, *names: str) -> Columns:
        """Read whole arrays and keep them with this object, which is returned. Those that stand near each other are read at once,
        with what is between them.
        """
        bounds = sorted(self._bounds(name) for name in names)
        while bounds:
            begin, end = bounds.pop(0)
            while bounds and bounds[0][0] - end <= _GAP_BYTES:
                end = bounds.pop(0)[1]
            if begin < end:
                self._near.append((begin, self._bytes(begin, end)))
        self._held.update((name, self[name]) for name in names)
        del self._near[1:]
        return self

    def rows(self, name: str, first: int, last: int) -> Array:
        """Rows [first, last) of an array, read-only; only the chunks that hold them are read and checked."""
        entry = self._entry(name)
        shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
        if not 0 <= first <= last <= shape[0]:
            raise self._damaged(f"rows {first} to {last} of {name!r} are requested, and it has {shape[0]}")
        if name in self._held:
            return self._held[name][first:last]
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        if first == last or row_bytes == 0:
            return np.empty((last - first, *shape[1:]), dtype)
        begin, end = first * row_bytes, last * row_bytes
        data = self._checked_bytes(name, entry, begin, end)
        return np.frombuffer(data, dtype).reshape(last - first, *shape[1:])

    def scattered(self, name: str, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Array:
        """A whole array of which only rows [starts[i], starts[i] + counts[i]) will be looked at.

        Those are checked (their chunks are); the rest is given as it is in the file. Raises DamagedError if a
        row requested is outside the array: the caller may index it without looking again. starts, counts:
        (n,) int64.
        """
        entry = self._entry(name)
        shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
        if len(starts) and (
            int(starts.min()) < 0 or int(counts.min()) < 0 or int((starts + counts).max()) > shape[0]
        ):
            raise self._damaged(f"rows beyond the {shape[0]} of {name!r} are requested")
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        if self._buffer is None or row_bytes == 0 or shape[0] == 0:
            return self[name]
        used = np.zeros(self._num_chunks(entry) + 1, np.int64)
        some = counts > 0
        np.add.at(used, starts[some] * row_bytes // self._chunk, 1)
        np.add.at(used, ((starts[some] + counts[some]) * row_bytes - 1) // self._chunk + 1, -1)
        self._check_chunks(name, entry, np.flatnonzero(np.cumsum(used[:-1])))
        data = self._bytes(entry["offset"], entry["offset"] + shape[0] * row_bytes)
        return np.frombuffer(data, dtype).reshape(shape)

    def check(self) -> None:
        """Read and check everything. Raises DamagedError."""
        for name in self.names:
            self[name]

    def _entry(self, name: str) -> dict[str, Any]:
        entry = self._arrays.get(name)
        if entry is None:
            raise self._damaged(f"it has no column {name!r} (it has {sorted(self._arrays)})")
        return entry

    def _bounds(self, name: str) -> tuple[int, int]:
        """Where an array begins and ends in the file."""
        entry = self._entry(name)
        begin: int = entry["offset"]
        return begin, begin + math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize

    def _arrays_in(self, head: memoryview) -> list[tuple[int, memoryview]]:
        """The part of the head that has whole arrays: what of it is kept."""
        end = max((end for _, end in map(self._bounds, self._arrays) if end <= len(head)), default=0)
        return [(0, head[:end] if self._buffer is not None else memoryview(bytes(head[:end])))]

    def _num_chunks(self, entry: Mapping[str, Any]) -> int:
        size: int = math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize
        return -(-size // self._chunk)

    def _checked_bytes(self, name: str, entry: Mapping[str, Any], begin: int, end: int) -> memoryview:
        """Bytes [begin, end) of an array, each chunk of them checked."""
        first, last = begin // self._chunk, -(-end // self._chunk)
        if self._buffer is not None:
            self._check_chunks(name, entry, np.arange(first, last))
            return self._bytes(entry["offset"] + begin, entry["offset"] + end)
        size = math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize
        aligned = first * self._chunk
        data = self._bytes(entry["offset"] + aligned, entry["offset"] + min(last * self._chunk, size))
        for chunk in range(first, last):
            piece = data[(chunk - first) * self._chunk : (chunk - first + 1) * self._chunk]
            self._compare(name, entry, chunk, piece)
        return data[begin - aligned : end - aligned]

    def _check_chunks(self, name: str, entry: Mapping[str, Any], chunks: npt.NDArray[np.int64]) -> None:
        """Check those of the chunks of an array that have not been; the file is mapped."""
        assert self._buffer is not None
        base, begin = entry["sums"], entry["offset"]
        end = begin + math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize
        todo = chunks[~self.checked[base + chunks]]
        expected = self._sums[base + todo].tolist()
        buffer, size, hash_of = self._buffer, self._chunk, xxhash.xxh3_64_intdigest
        if end > len(buffer):
            raise self._damaged(f"it has {len(buffer):,} bytes, at least {end:,} are needed")
        for chunk, value in zip(todo.tolist(), expected, strict=True):
            at = begin + chunk * size
            if hash_of(buffer[at : min(at + size, end)]) != value:
                raise self._damaged(f"column {name!r} does not match its checksum near byte {chunk * size:,}")
        self.checked[base + todo] = True

    def _compare(self, name: str, entry: Mapping[str, Any], chunk: int, piece: memoryview) -> None:
        if xxhash.xxh3_64_intdigest(piece) != self._sums[entry["sums"] + chunk]:
            raise self._damaged(
                f"column {name!r} does not match its checksum near byte {chunk * self._chunk:,}"
            )
        self.checked[entry["sums"] + chunk] = True

    def _bytes(self, begin: int, end: int) -> memoryview:
        """Bytes [begin, end) of the file, unchecked."""
        for start, data in self._near:
            if start <= begin and end <= start + len(data):
                return data[begin - start : end - start]
        return self._read(begin, end)

    def _read(self, begin: int, end: int) -> memoryview:
        if self._buffer is not None:
            if end > len(self._buffer):
                raise self._damaged(f"it has {len(self._buffer):,} bytes, at least {end:,} are needed")
            return self._buffer[begin:end]
        try:
            return memoryview(self._store.read(self._artifact.name, begin, end))
        except DataError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> DataError:
        return DamagedError(
            f"The work file {self._store.shown}/{self._artifact.name} is damaged: {reason}. "
            "Rerun the same command: the file is made again.",
            self._artifact,
        )


def write(
    store: Store,
    name: str,
    arrays: Mapping[str, Array],
    meta: Mapping[str, Any] | None = None,
    *,
    durable: bool = False,
) -> Artifact:
    """Write `arrays` and `meta` (JSON values) atomically; returns the file as a receipt names it.

    Not fsynced unless `durable`: after a power cut the checksums tell what is whole, and the rest is made
    again. Raises OutputError if the file cannot be written.
    """
    little = {
        key: np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        for key, array in arrays.items()
    }
    sums: list[int] = []
    described: dict[str, dict[str, Any]] = {}
    for key, array in little.items():
        described[key] = {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "offset": 0,
            "sums": len(sums),
        }
        data = _flat_bytes(array)
        sums += [xxhash.xxh3_64_intdigest(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
    sum_bytes = np.array(sums, "<u8").tobytes()
    header: dict[str, Any] = {
        "arrays": described,
        "chunk": CHUNK,
        "sums": 0,
        "num_sums": len(sums),
        "sums_xxh3": xxhash.xxh3_128_hexdigest(sum_bytes),
        "meta": meta or {},
    }
    # The header holds the offsets and its length shifts them: reserve room for the largest, then fill in.
    room = len(json.dumps(header)) + 20 * (len(described) + 1)
    position = _round_up(_PREFIX.size + room)
    for key, array in little.items():
        described[key]["offset"] = position
        position = _round_up(position + array.nbytes)
    header["sums"] = position
    header_bytes = json.dumps(header).encode().ljust(room)
    header_hash = xxhash.xxh3_128_digest(header_bytes)
    with store.create(name, durable=durable) as creating:
        file = creating.file
        file.write(_PREFIX.pack(MAGIC, len(header_bytes), header_hash))
        file.write(header_bytes)
        for key, array in little.items():
            file.write(b"\0" * (described[key]["offset"] - file.tell()))
            file.write(_flat_bytes(array))
        file.write(b"\0" * (position - file.tell()))
        file.write(sum_bytes)
    return Artifact(name, position + len(sum_bytes), header_hash.hex())


def _round_up(position: int) -> int:
    return -(-position // _ALIGN) * _ALIGN


def _flat_bytes(array: Array) -> memoryview:
    """The array's bytes without a copy (an empty array has no buffer to cast)."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def find(store: Store, name: str) -> Artifact | None:
    """The columns file of this name as a receipt would name it; None if there is none that can be opened.

    For files of an interrupted task, which no receipt names yet: their own meta data say what they were made
    from.
    """
    size = store.size(name)
    if size is None or size < _PREFIX.size:
        return None
    magic, _, header_hash = _PREFIX.unpack(store.read(name, 0, _PREFIX.size))
    if magic != MAGIC:
        return None
    artifact = Artifact(name, size, header_hash.hex())
    try:
        Columns(store, artifact)
    except DamagedError:
        return None
    return artifact
