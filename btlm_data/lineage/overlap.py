"""Texts that two groups of documents have in common, by the hashes in their tables. Memory is bounded: keys are
compared a range at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats import dataset
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.generations import Generation

KEYS_IN_MEMORY = 1 << 26
_HASH_BYTES = 16
UInt64Array = npt.NDArray[np.uint64]


class GenerationDocuments(msgspec.Struct, frozen=True):
    """The tables of a generation's train documents, and of those for validation or test."""

    train: Sequence[DocumentTable]
    holdout: Sequence[DocumentTable]

    @staticmethod
    def of(generation: Generation) -> GenerationDocuments:
        """Of a generation; of sets that have the same documents, those of the first."""
        tables: dict[bool, list[DocumentTable]] = {True: [], False: []}
        for name, value in dataset.read_sets(generation.root).items():
            if value.set.share is not None or value.set.index == 0:
                for split in value.splits:
                    table = DocumentTable(generation.root / name / split / dataset.DOCUMENTS)
                    tables[split == "train"].append(table)
        return GenerationDocuments(tables[True], tables[False])


def first_shared(
    one: Sequence[DocumentTable], other: Sequence[DocumentTable]
) -> tuple[tuple[DocumentTable, int], tuple[DocumentTable, int]] | None:
    """A text that both groups have: (table, row) of one and of the other; None if there is none. Documents that
    were forgotten do not count. Raises DataError if a table is damaged or has no hashes.
    """
    total = sum(table.num_rows for table in (*one, *other))
    parts = max(1, -(-total // KEYS_IN_MEMORY))
    for part in range(parts):
        shared = np.intersect1d(_keys(one, part, parts), _keys(other, part, parts))
        if not len(shared):
            continue
        rows = dict(_places(one, shared))
        for value, place in _places(other, shared):
            if value in rows:
                return rows[value], place
    return None


def those_with(tables: Sequence[DocumentTable], hashes: Set[bytes]) -> set[bytes]:
    """Which of the hashes (16 bytes each) documents of the tables have. Documents that were forgotten do not
    count. Raises DataError if a table is damaged or has no hashes.
    """
    if not hashes:
        return set()
    keys = np.unique(np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2)[:, 0])
    return {value for value, _ in _places(tables, keys) if value in hashes}


def _keys(tables: Sequence[DocumentTable], part: int, parts: int) -> UInt64Array:
    """First halves of the hashes of one range: (n,) uint64."""
    parts_of_keys: list[UInt64Array] = [np.empty(0, np.uint64)]
    for table in tables:
        for _, hashes in _hashes(table):
            keys = hashes[:, 0]
            parts_of_keys.append(keys if parts == 1 else keys[keys % np.uint64(parts) == part])
    return np.unique(np.concatenate(parts_of_keys))


def _places(
    tables: Sequence[DocumentTable], keys: UInt64Array
) -> Iterator[tuple[bytes, tuple[DocumentTable, int]]]:
    """(hash, (table, row)) of documents whose first half is one of `keys`."""
    for table in tables:
        for rows, hashes in _hashes(table):
            for index in np.flatnonzero(np.isin(hashes[:, 0], keys)).tolist():
                yield hashes[index].tobytes(), (table, int(rows[index]))


def _hashes(table: DocumentTable) -> Iterator[tuple[npt.NDArray[np.int64], UInt64Array]]:
    """(rows (n,) int64, hashes (n, 2) uint64) of each row group, without documents that were forgotten."""
    if "hash" not in table.columns:
        raise DataError(
            f"{table.path} has no hashes of texts. Prepare the dataset again with this btlm-data."
        )
    names = ["hash", *(["forgotten"] if "forgotten" in table.columns else [])]
    for group in range(table.num_groups):
        first, last = table.group_rows(group)
        part = table.arrow(group, names)
        hashes = np.concatenate([_chunk(chunk, table) for chunk in part.column("hash").chunks] or [_NONE])
        rows = np.arange(first, last)
        if "forgotten" in names:
            stays = ~part.column("forgotten").to_numpy()
            rows, hashes = rows[stays], hashes[stays]
        yield rows, hashes


_NONE = np.empty((0, 2), np.uint64)


def _chunk(chunk: Any, table: DocumentTable) -> UInt64Array:
    import pyarrow as pa

    if chunk.type != pa.binary(_HASH_BYTES) or chunk.null_count:
        raise DataError(
            f"{table.path}: column 'hash' is of type {chunk.type}, expected {_HASH_BYTES} bytes each."
        )
    data = np.frombuffer(chunk.buffers()[1], np.uint64, 2 * len(chunk), _HASH_BYTES * chunk.offset)
    return data.reshape(-1, 2)
