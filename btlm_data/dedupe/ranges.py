"""Ranges of documents: in which order edges are put, and what a task that is about documents holds at most."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError

MOST_NARROW = 2**32 - 1  # documents that 32 bits number
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
# Ordinals are uint32 where these suffice, else int64.
Ordinals = npt.NDArray[Any]


class Ranges(msgspec.Struct, frozen=True):
    """Ranges of 2^log documents; range r is the group r + 1 of files by group (by_group.py). wide: ordinals take 64 bits.

    An edge of a range is one number: the place of its later document in the range, and below it `bits` bits of the
    earlier one's ordinal.
    """

    num_documents: int
    log: int
    wide: bool

    @staticmethod
    def plan(num_documents: int, most: int) -> Ranges:
        """Ranges of at most that many documents, as an edge needs them, and no more of them than 32 bits number."""
        bits = bits_of(num_documents)
        log = min(max(0, most.bit_length() - 1, bits - 31), 64 - bits)
        return Ranges(num_documents, log, num_documents > MOST_NARROW)

    @property
    def count(self) -> int:
        """Ranges there are."""
        return -(-self.num_documents >> self.log)

    @property
    def args(self) -> dict[str, int]:
        """For tasks whose files depend on them."""
        return {"log": self.log, "wide": int(self.wide)}

    @property
    def bits(self) -> int:
        """That an ordinal takes in an edge."""
        return bits_of(self.num_documents)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of ordinals, in memory and in files."""
        return dtype_of(wide=self.wide)

    def bounds(self, number: int) -> tuple[int, int]:
        """The documents [first, last) of a range."""
        return number << self.log, min((number + 1) << self.log, self.num_documents)

    def groups_of(self, ordinals: Ordinals) -> UInt32Array:
        """The group of each document, (n,) uint32."""
        groups: UInt32Array = (ordinals >> ordinals.dtype.type(self.log)).astype(np.uint32) + np.uint32(1)
        return groups

    def places_of(self, ordinals: Ordinals) -> UInt32Array:
        """The place of each document in its range, (n,) uint32."""
        places: UInt32Array = (ordinals & ordinals.dtype.type((1 << self.log) - 1)).astype(np.uint32)
        return places

    def pack(self, first: Ordinals, other: Ordinals) -> UInt64Array:
        """Edges as numbers, (n,) uint64, in the ranges of `other`."""
        places: UInt64Array = self.places_of(other).astype(np.uint64) << np.uint64(self.bits)
        return places | first.astype(np.uint64)

    def unpack(
        self, codes: UInt64Array, base: npt.NDArray[np.int64] | int, name: str
    ) -> tuple[Ordinals, Ordinals]:
        """Inverse of pack: (first, other), (n,) each. base: first document of the range, or (n,) of each edge's. Raises DataError
        for a document that there is not, and where the first one is not earlier.
        """
        places, first = codes >> np.uint64(self.bits), codes & np.uint64((1 << self.bits) - 1)
        other = places.astype(np.int64) + base
        if len(codes) and (
            int(places.max()) >> self.log
            or int(other.max()) >= self.num_documents
            or (first.astype(np.int64) >= other).any()
        ):
            raise damaged(name, self.num_documents)
        return first.astype(self.dtype), other.astype(self.dtype)


def bits_of(num_documents: int) -> int:
    """That the ordinals of so many documents take."""
    return max(1, (num_documents - 1).bit_length())


def dtype_of(*, wide: bool) -> np.dtype[Any]:
    """Of ordinals."""
    return np.dtype(np.int64 if wide else np.uint32)


def of_rows(rows: npt.NDArray[np.int64], first_ordinal: int, dtype: np.dtype[Any]) -> Ordinals:
    """Ordinals of rows, (n,) int64, of a block."""
    return (rows + first_ordinal).astype(dtype)


def damaged(name: str, num_documents: int) -> DataError:
    """For a file that connects documents as none does that is whole."""
    return DataError(
        f"{name} connects documents that are not among the {num_documents:,}, or not in their order. Remove the folder dedupe of the "
        "work folder and rerun the same command."
    )
