"""Hashed entries put apart by the first bits of their hashes, out of core, so that an index is sorted by parts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PART_ENTRIES = 1 << 23  # sorted at once: about 300 MB
_BUFFERED = 1 << 28  # bytes of entries that wait to be written
_MOST_BITS = 12
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]


def part_bits(entries: int, part_entries: int) -> int:
    """How many first bits of a hash number its part, for so many entries."""
    return min(_MOST_BITS, max(0, (entries // part_entries).bit_length()))


def bits_of(hashes: UInt64Array, first: int, count: int) -> Int64Array:
    """Bits [first, first + count) of each hash, from the highest, as a number. first + count: at most 63. Returns (n,) int64."""
    if not count:
        return np.zeros(len(hashes), np.int64)
    return ((hashes << np.uint64(first)) >> np.uint64(64 - count)).astype(np.int64)


class HashParts:
    """Entries by the first bits of their field `hash`, in files, until they are sorted. dtype: of an entry."""

    def __init__(self, folder: Path, bits: int, dtype: np.dtype[Any]) -> None:
        self._folder, self._bits, self._dtype = folder, bits, dtype
        self._waiting: list[list[npt.NDArray[Any]]] = [[] for _ in range(1 << bits)]
        self._counts = np.zeros(1 << bits, np.int64)
        self._most = max(1, min(1 << 20, _BUFFERED >> bits) // dtype.itemsize)

    def add(self, entries: npt.NDArray[Any]) -> None:
        """Entries, (n,) of the dtype."""
        number = bits_of(entries["hash"], 0, self._bits)
        order = np.argsort(number, kind="stable")
        entries, edges = entries[order], np.searchsorted(number[order], np.arange((1 << self._bits) + 1))
        for part, (low, high) in enumerate(pairwise(edges.tolist())):
            if low < high:
                self._waiting[part].append(entries[low:high].copy())
                self._counts[part] += high - low
                if self._counts[part] >= self._most:
                    self._write(part)

    def taken(self, part: int) -> npt.NDArray[Any]:
        """All entries of a part, (n,) of the dtype; their file is gone then."""
        self._write(part)
        path = self._path(part)
        if not path.exists():
            return np.empty(0, self._dtype)
        entries = np.fromfile(path, self._dtype)
        path.unlink()
        return entries

    def _write(self, part: int) -> None:
        if self._waiting[part]:
            with self._path(part).open("ab") as file:
                file.write(np.concatenate(self._waiting[part]).tobytes())
            self._waiting[part], self._counts[part] = [], 0

    def _path(self, part: int) -> Path:
        return self._folder / f"entries-{part:04d}"
