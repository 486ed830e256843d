"""Make the key index of a dataset, and ask it: in which row groups of its tables a document can be that is named by its id,
URL, hash, or place in the source.

What the index says is a proposal: the columns of those row groups are read, and they decide. It leaves none out, so what is
found is what reading whole columns finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats import columns, key_index
from btlm_data.formats.dataset import DOCUMENTS, DROPPED
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.key_index import (
    CHECK_BITS,
    FOLDER,
    IndexedTable,
    KeyIndexFile,
    KeyPart,
    Kind,
    part_name,
)
from btlm_data.lineage import index_folder
from btlm_data.lineage.datasets import SetView
from btlm_data.lineage.hash_parts import PART_ENTRIES, HashParts, bits_of, part_bits
from btlm_data.lineage.index_folder import IndexKind, Made
from btlm_data.lineage.search import GroupsOf, Search, everywhere, url_columns
from btlm_data.storage import Store, open_store
from btlm_data.task import Artifact

_PART_ENTRIES = PART_ENTRIES
_BUCKET_ENTRIES = 16  # about
_ENTRY = np.dtype([("hash", "<u8"), ("group", "<u4")])
_SMALL_GROUPS = 2**16  # row groups that a number of two bytes counts
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]


# Making it --------------------------------------------------------------------------------------------------


def make(path: Path) -> Made:
    """Make the key index of every set of a dataset that has none of its dataset.json. Raises what index_folder.make raises."""
    return index_folder.make(path, _KIND)


def _tables(of_set: SetView) -> dict[str, DocumentTable]:
    """The tables of a set, by their names in its folder."""
    tables = {f"{name}/{DOCUMENTS}": view.table for name, view in of_set.splits.items()}
    return tables | ({DROPPED: of_set.dropped} if of_set.dropped is not None else {})


def _build(of_set: SetView, work: Path) -> None:
    """The index of one set, in an empty folder."""
    tables, store = _tables(of_set), open_store(work)
    listed = [IndexedTable(name, table.num_groups, table.num_rows) for name, table in tables.items()]
    bits = part_bits(sum(table.rows for table in listed), _PART_ENTRIES)
    dtype = np.dtype("<u2" if sum(table.groups for table in listed) <= _SMALL_GROUPS else "<u4")
    kinds: dict[Kind, list[KeyPart]] = {}
    for kind in ("id", "url", "hash", "offset", "line"):
        if not any(_columns_of(kind, table.columns) for table in tables.values()):
            continue
        unsorted, before = HashParts(work, bits, _ENTRY), 0
        for table in tables.values():
            for group in range(table.num_groups):
                for hashes in _hashes(kind, table, group):
                    entries = np.empty(len(hashes), _ENTRY)
                    entries["hash"], entries["group"] = hashes, before + group
                    unsorted.add(entries)
            before += table.num_groups
        kinds[kind] = [
            _part(store, part_name(kind, number), unsorted.taken(number), bits, dtype)
            for number in range(1 << bits)
        ]
    value = KeyIndexFile(dataset=of_set.manifest.checksum, tables=listed, kinds=kinds)
    store.write(key_index.FILE_NAME, key_index.encode(value))


def _columns_of(kind: Kind, present: Sequence[str]) -> list[list[str]]:
    """The columns that have keys of a kind, of those of a table: each list has a key for each row."""
    if kind == "url":
        return [[name] for name in url_columns(present)]
    names: list[str] = ["file", kind] if kind in ("offset", "line") else [kind]
    return [names] if all(name in present for name in names) else []


def _hashes(kind: Kind, table: DocumentTable, group: int) -> Iterator[UInt64Array]:
    """Hashes of the keys of a row group, (n,) uint64 for each column of keys; rows without a key have none."""
    for names in _columns_of(kind, table.columns):
        if kind in ("offset", "line"):
            read = table.read(group, names)
            codes, files = read["file"]
            of_files = np.array([key_index.of_text(name) for name in files], np.uint64)
            yield key_index.pairs(of_files[codes], read[kind].astype(np.uint64))
        else:
            keys = table.arrow(group, names).column(0).drop_null().to_pylist()
            hash_of = key_index.of_digest if kind == "hash" else key_index.of_text
            yield np.array([hash_of(key) for key in keys], np.uint64)


def _part(store: Store, name: str, entries: npt.NDArray[Any], first: int, dtype: np.dtype[Any]) -> KeyPart:
    """A part, written. entries: (n,) of _ENTRY, whose hashes have the first bits in common; dtype: of `group`."""
    bits = (len(entries) // _BUCKET_ENTRIES).bit_length()
    bucket = bits_of(entries["hash"], first, bits)
    check = bits_of(entries["hash"], first + bits, CHECK_BITS)
    order = np.lexsort((entries["group"], check, bucket))
    bucket, check, group = bucket[order], check[order], entries["group"][order]
    is_new = np.ones(len(entries), np.bool_)
    is_new[1:] = (np.diff(bucket) != 0) | (np.diff(check) != 0) | (group[1:] != group[:-1])
    bucket, check, group = bucket[is_new], check[is_new], group[is_new]
    arrays = {
        "edge": np.searchsorted(bucket, np.arange((1 << bits) + 1)).astype("<u4"),
        "check": check.astype(np.uint8),
        "group": group.astype(dtype),
    }
    file = columns.write(store, name, arrays, durable=True)
    return KeyPart(file.size, file.checksum, len(check))


# Asking it --------------------------------------------------------------------------------------------------


class KeyIndex:
    """The index of a set. Raises DataError, naming the file, where it is damaged."""

    def __init__(self, root: Path, value: KeyIndexFile) -> None:
        self._value, self._store = value, open_store(root / FOLDER)
        self._parts: dict[str, columns.Columns] = {}
        before = accumulate((table.groups for table in value.tables), initial=0)
        self._tables = {
            table.name: range(first, first + table.groups)
            for table, first in zip(value.tables, before, strict=False)
        }

    @staticmethod
    def of(of_set: SetView) -> KeyIndex | None:
        """The one of a set; None if it has none, or it is stale."""
        value = key_index.read(of_set.root)
        if value is None or value.dataset != of_set.manifest.checksum:
            return None
        return KeyIndex(of_set.root, value)

    def groups(self, table: str, search: Search) -> list[int] | None:
        """Row groups of a table that can have what is looked for, ascending; None where the index cannot tell. table: by its
        name in the set's folder.
        """
        if table not in self._tables or (parts := self._value.kinds.get(search.kind)) is None:
            return None
        bits, own = len(parts).bit_length() - 1, self._tables[table]
        hashes = search.hashes
        number = bits_of(hashes, 0, bits)
        proposed: set[int] = set()
        try:
            for part in np.unique(number).tolist():
                opened = self._part(search.kind, part, parts[part])
                proposed.update(_groups(opened, hashes[number == part], bits))
        except columns.DamagedError as error:
            raise _damaged(error) from None
        if proposed and max(proposed) >= self._value.groups:
            raise _damaged(f"it names row group {max(proposed):,} of {self._value.groups:,}")
        return sorted(group - own.start for group in proposed if group in own)

    def _part(self, kind: Kind, number: int, entry: KeyPart) -> columns.Columns:
        name = part_name(kind, number)
        if name not in self._parts:
            self._parts[name] = columns.Columns(self._store, Artifact(name, entry.bytes, entry.checksum))
        return self._parts[name]


def groups_by_key(of_set: SetView) -> GroupsOf:
    """The row groups that can have what is looked for, by the index of a set; every one where it has none."""
    index = KeyIndex.of(of_set)
    return everywhere if index is None else index.groups


def _groups(part: columns.Columns, hashes: UInt64Array, first: int) -> Iterator[int]:
    """The groups of every entry that a hash has. hashes: (n,) uint64, whose first bits are the part's."""
    bits = (part.shape("edge")[0] - 1).bit_length() - 1
    buckets, checks = bits_of(hashes, first, bits), bits_of(hashes, first + bits, CHECK_BITS)
    for bucket, check in zip(buckets.tolist(), checks.tolist(), strict=True):
        low, high = part.rows("edge", bucket, bucket + 2).tolist()
        is_own = part.rows("check", low, high) == check
        yield from part.rows("group", low, high)[is_own].tolist()


def _damaged(problem: object) -> DataError:
    return DataError(
        f"The key index is damaged ({str(problem).partition('. ')[0]}). Remove the folder {FOLDER} there, and run "
        "`btlm-data index` again; without it, whole columns are read."
    )


def check(root: Path, checksum: str) -> tuple[str | None, str]:
    """What `index_folder.compare` says of the key index of a set."""
    return index_folder.compare(root, checksum, _KIND, _problems, _summary)


def _summary(value: KeyIndexFile) -> str:
    return f"{value.entries:,} keys of {sum(t.rows for t in value.tables):,} documents, as written"


def _problems(store: Store, value: KeyIndexFile) -> Iterator[str]:
    for kind, parts in value.kinds.items():
        for number, part in enumerate(parts):
            name = part_name(kind, number)
            opened = columns.Columns(store, Artifact(name, part.bytes, part.checksum))
            if (problem := _problem(opened, part, value)) is not None:
                yield f"{name}: {problem}"


def _problem(opened: columns.Columns, part: KeyPart, value: KeyIndexFile) -> str | None:
    edge, checks, group = opened["edge"].astype(np.int64), opened["check"], opened["group"]
    if len(checks) != part.entries or len(group) != part.entries:
        return f"it has {len(checks):,} entries, {part.entries:,} were written"
    if len(edge) < 2 or (len(edge) - 1) & (len(edge) - 2) or edge[0] != 0 or edge[-1] != len(checks):
        return "its buckets do not hold its entries"
    if (np.diff(edge) < 0).any():
        return "its buckets do not ascend"
    if len(group) and int(group.max()) >= value.groups:
        return f"it names row group {int(group.max()):,} of {value.groups:,}"
    return None


_KIND = IndexKind(FOLDER, key_index.WORK_FOLDER, key_index.read, _build)
