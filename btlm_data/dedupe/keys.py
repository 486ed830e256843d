"""Keys of documents: two documents with the same key are a candidate pair. Partitioned by range, so that
memory is bounded.

dedupe/split-KIND/GROUP.cols, split-KIND-N/...  of a group of blocks, by the keys' highest k bits (by_group.py; partition p is group
                               p + 1) and in source order, tables `keys` uint64, `low` uint64 or empty, `ordinals` uint32 (int64 of more
                               than 2^32 - 1 documents)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data import by_group
from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.by_group import Piece
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.dedupe.ranges import Ordinals
from btlm_data.dedupe.settings import ClusterSettings, KeyKind
from btlm_data.errors import DataError
from btlm_data.kernels import buckets
from btlm_data.task import Artifact
from btlm_data.task_files import TaskFiles

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
TABLES = ("keys", "low", "ordinals")


class Keys(msgspec.Struct, frozen=True):
    """keys (m,) uint64; low (m,) uint64, a second half of each key, or (0,); ordinals (m,) uint32 or int64."""

    keys: UInt64Array
    low: UInt64Array
    ordinals: Ordinals

    def __len__(self) -> int:
        return len(self.keys)

    @staticmethod
    def empty(dtype: np.dtype[Any]) -> Keys:
        """No keys. dtype: of ordinals."""
        return Keys(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, dtype))

    def take(self, chosen: npt.NDArray[Any]) -> Keys:
        """Only the chosen rows (a mask, or indices in a new order). chosen: (n,) bool or (m,) of an integer
        dtype.
        """
        return Keys(self.keys[chosen], self.low[chosen] if len(self.low) else self.low, self.ordinals[chosen])

    @staticmethod
    def concatenate(parts: Sequence[Keys]) -> Keys:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        return Keys(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("keys", "low", "ordinals"))
        )


class Chosen(msgspec.Struct, frozen=True):
    """Some documents: those of which `column` of a list of files (by_ordinal.py) is true, or is the
    document itself.
    """

    listed: Artifact
    column: str

    def rows(self, files: TaskFiles, first: int, last: int) -> BoolArray:
        """Which of the documents [first, last), (last - first,) bool."""
        values = ByOrdinal(files, self.listed).rows(self.column, first, last)
        if values.dtype == np.bool_:
            return values
        return np.asarray(values == np.arange(first, last, dtype=values.dtype))


def partitioned(
    files: TaskFiles,
    blocks: Sequence[Block],
    settings: ClusterSettings,
    kind: KeyKind,
    log_partitions: int,
    takes_part: BoolArray | None,
    dtype: np.dtype[Any],
) -> tuple[Keys, Int64Array]:
    """All keys of some blocks in partition order, and the bounds (P + 1,) of the partitions.

    dtype: of ordinals. takes_part: (n,) bool, of the blocks' documents in order, whose keys are wanted; None: of all.
    """
    counts = np.zeros(1 << log_partitions, np.int64)
    for keys, _, chosen, _ in _sketches(files, blocks, settings, kind, takes_part):
        buckets.count_partitions(keys, chosen, log_partitions, counts)
    bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    total = int(bounds[-1])
    low = np.empty(total if kind == "exact" else 0, np.uint64)
    out = Keys(np.empty(total, np.uint64), low, np.empty(total, dtype))
    cursors = bounds[:-1].copy()
    for keys, low_halves, chosen, block in _sketches(files, blocks, settings, kind, takes_part):
        buckets.scatter(
            keys,
            low_halves,
            chosen,
            block.first_ordinal,
            log_partitions,
            cursors,
            out.keys,
            out.low,
            out.ordinals,
        )
        advance(block.num_documents)
    return out, bounds


def _sketches(
    files: TaskFiles,
    blocks: Sequence[Block],
    settings: ClusterSettings,
    kind: KeyKind,
    takes_part: BoolArray | None,
) -> Iterator[tuple[UInt64Array, UInt64Array, BoolArray, Block]]:
    """Keys (n, B), low halves (n,) or (0,) and the rows that take part, block by block."""
    base = blocks[0].first_ordinal if blocks else 0
    for block in blocks:
        if block.split != "train" and not settings.dedupe.holdout:
            continue
        assert block.sketch is not None
        values = files.columns(block.sketch)[kind]
        if len(values) != block.num_documents:
            raise DataError(
                f"{block.sketch.name} has {len(values)} rows for {block.num_documents} documents."
            )
        chosen = np.ones(block.num_documents, np.bool_)
        if takes_part is not None:
            chosen = takes_part[block.first_ordinal - base : block.last_ordinal - base]
        if kind == "exact":
            yield np.ascontiguousarray(values[:, :1]), np.ascontiguousarray(values[:, 1]), chosen, block
        else:
            yield values, np.empty(0, np.uint64), chosen, block


def write_group(files: TaskFiles, name: str, keys: Keys, bounds: Int64Array) -> Artifact:
    """Write one group's keys, already in partition order. bounds: (partitions + 1,) int64."""
    columns: list[npt.NDArray[Any]] = [getattr(keys, table) for table in TABLES]
    item_sizes = np.array([column.itemsize * (len(column) > 0) for column in columns])
    counts = np.diff(bounds)
    present = np.flatnonzero(counts)
    sizes = counts[present, None] * item_sizes
    in_file = by_group.bounds_of(sizes.reshape(-1))
    out = np.empty(int(in_file[-1]), np.uint8)
    for number, column in enumerate(columns):
        begins = bounds[present] * item_sizes[number]
        by_group.copy_table(column.view(np.uint8), begins, sizes, in_file, number, out)
    return by_group.write_piece(files, name, Piece((present + 1).astype(np.uint32), TABLES, in_file, out))


def partition_chunks(
    files: TaskFiles, groups: Artifact, partition: int, limit: int, num_documents: int, dtype: np.dtype[Any]
) -> Iterator[Keys]:
    """One partition over all groups, in source order, at most `limit` keys at a time (unless one file has
    more). groups: list of files. dtype: of ordinals.

    Raises DamagedError for a file that is not what its receipt says, DataError for an ordinal that no
    document has.
    """
    held: list[Keys] = []
    size = 0
    for piece in by_group.of_group(files, groups, partition + 1):
        tables = zip(piece.of(*TABLES), (np.dtype(np.uint64), np.dtype(np.uint64), dtype), strict=True)
        part = Keys(*(by_group.as_records(table, of_table) for table, of_table in tables))
        check_ordinals(part.ordinals, num_documents, f"A file of {groups.name}")
        if len(part.keys) != len(part.ordinals) or len(part.low) not in (0, len(part.keys)):
            raise DataError(
                f"A file of {groups.name} has {len(part.keys):,} keys of {len(part.ordinals):,} documents. Remove the work folder and "
                "rerun the same command."
            )
        if held and size + len(part) > limit:
            yield Keys.concatenate(held)
            held, size = [], 0
        held.append(part)
        size += len(part)
    if held:
        yield Keys.concatenate(held)


def check_ordinals(ordinals: Ordinals, num_documents: int, name: str) -> None:
    """Raise DataError if an ordinal read from a file is beyond the documents: kernels index by them without
    looking. ordinals: (n,) uint32 or int64.
    """
    if len(ordinals) and (int(ordinals.max()) >= num_documents or int(ordinals.min()) < 0):
        raise DataError(
            f"{name} names document {int(ordinals.max()):,}, and there are {num_documents:,}. "
            "Remove the work folder and rerun the same command."
        )
