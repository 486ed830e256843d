"""What deduplication leaves on disk between its steps, and the list of clusters it leaves for people.

split/GROUP     a columns file per group of blocks: `keys` (m,) uint64 [, `low` (m,) uint64], `ordinals` (m,) uint32, in P = 2^k
partitions by the keys' highest k bits; partition p is rows bounds[p]:bounds[p + 1], in source order.
`bounds` (P + 1,) int64
sort/PARTITION  a columns file per partition: edges `first`, `other` (e,) uint32 with first < other, and `known` (u,) uint32, the
documents found in an index; meta: {"compared", "rejected"} pairs of a verification
exact.cols      `root` (N,) uint32: the first document with the same normalised text; `known` as above
clusters.cols   `cluster` (N,) uint32: the smallest ordinal of the document's connected component
fates.cols      `fate` (N,) uint8 by ordinal: stages/fates.py

clusters.parquet   a row per document of each cluster of two or more, in source order:
document  uint32   ordinal: row number over all blocks
cluster   uint32   ordinal of the cluster's first document
kept      bool     whether deduplication keeps it
fate      string   "kept", or the reason it is dropped
split     string   train, validation or test, as the source has it
source    string   the record's source name
file      string   name of its file in the source
offset    uint64   where the record begins there: bytes decompressed, or row
bytes     uint32   UTF-8 bytes of its cleaned text
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.formats import atomic, columns

UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
_ROWS_AT_ONCE = 200_000  # of a row group: about 10 MB while it is written


@dataclass(frozen=True)
class Keys:
    """Keys of documents: keys (m,), low (m,) or (0,), ordinals (m,). The same key twice is a candidate pair."""

    keys: UInt64Array
    low: UInt64Array
    ordinals: UInt32Array

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, chosen: npt.NDArray[Any]) -> Keys:
        """Only the chosen rows (a mask, or indices in a new order)."""
        return Keys(self.keys[chosen], self.low[chosen] if len(self.low) else self.low, self.ordinals[chosen])

    @staticmethod
    def concatenate(parts: Sequence[Keys]) -> Keys:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        return Keys(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("keys", "low", "ordinals"))
        )


def write_partitions(path: Path, keys: Keys, bounds: Int64Array) -> None:
    """Write one group's keys, already in partition order."""
    arrays: dict[str, npt.NDArray[Any]] = {"keys": keys.keys, "ordinals": keys.ordinals, "bounds": bounds}
    if len(keys.low):
        arrays["low"] = keys.low
    columns.write(path, arrays)


def read_partition(path: Path, partition: int) -> Keys:
    """One partition of one group, memory-mapped. Raises DataError if the file is torn."""
    found = columns.read(path)
    rows = slice(int(found["bounds"][partition]), int(found["bounds"][partition + 1]))
    return Keys(
        found["keys"][rows],
        found.arrays["low"][rows] if "low" in found.arrays else np.empty(0, np.uint64),
        found["ordinals"][rows],
    )


@dataclass
class Links:
    """What a partition's keys say: edges first-other, documents known to an index, and what verification compared."""

    first: list[UInt32Array] = field(default_factory=list)
    other: list[UInt32Array] = field(default_factory=list)
    known: list[UInt32Array] = field(default_factory=list)
    compared: int = 0
    rejected: int = 0

    def write(self, path: Path) -> None:
        """Write as a columns file."""
        arrays = {name: _joined(getattr(self, name)) for name in ("first", "other", "known")}
        columns.write(path, arrays, {"compared": self.compared, "rejected": self.rejected})

    @staticmethod
    def read(path: Path) -> Links:
        """Inverse of write; memory-mapped. Raises DataError if the file is torn."""
        found = columns.read(path)
        first, other, known = ([found[name]] for name in ("first", "other", "known"))
        return Links(first, other, known, found.meta["compared"], found.meta["rejected"])


def _joined(parts: Sequence[UInt32Array]) -> UInt32Array:
    return np.concatenate(parts) if parts else np.empty(0, np.uint32)


class ClusterRows:
    """Writes clusters.parquet, row groups as they fill."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = pa.dictionary(pa.int32(), pa.string())
        types = [pa.uint32(), pa.uint32(), pa.bool_(), names, names, names, names, pa.uint64(), pa.uint32()]
        columns_ = ["document", "cluster", "kept", "fate", "split", "source", "file", "offset", "bytes"]
        self._schema = pa.schema(list(zip(columns_, types, strict=True)))
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._held: list[Any] = []
        self._num_held = 0

    def add(
        self,
        split: str,
        fate_names: Sequence[str],
        source_names: Sequence[str],
        file_names: Sequence[str],
        rows: dict[str, Any],
    ) -> None:
        """Add documents of one block. rows: document, cluster, kept, offset, bytes as arrays; fate, source, file as codes."""
        import pyarrow as pa

        def named(codes: npt.NDArray[Any], names: Sequence[str]) -> Any:
            return pa.DictionaryArray.from_arrays(
                pa.array(codes.astype(np.int32)), pa.array(list(names), pa.string())
            )

        count = len(rows["document"])
        rows = rows | {
            "split": named(np.zeros(count, np.int32), [split]),
            "fate": named(rows["fate"], fate_names),
            "source": named(rows["source"], source_names),
            "file": named(rows["file"], file_names),
        }
        self._held.append(pa.table([rows[name] for name in self._schema.names], schema=self._schema))
        self._num_held += count
        if self._num_held >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a row group."""
        import pyarrow as pa

        if self._held:
            self._writer.write_table(pa.concat_tables(self._held).unify_dictionaries())
        self._held, self._num_held = [], 0

    def close(self) -> None:
        """Write the rest and the footer."""
        self.flush()
        self._writer.close()


@contextlib.contextmanager
def writing_clusters(path: Path) -> Iterator[ClusterRows]:
    """Write clusters.parquet; it appears under its name only if the block ends well. Raises OutputError if it cannot be written."""
    with atomic.replacing(path, durable=False) as temporary:
        rows = ClusterRows(temporary)
        yield rows
        rows.close()
