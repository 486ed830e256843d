"""Documents taken out of a split by masking them (masks.py): only the chunks that hold them are written anew,
in a copy of their shard; every sample stays where it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats import ledger
from btlm_data.formats.dataset import DOCUMENTS, ShardFile, StoredFile
from btlm_data.formats.documents_table import ROW_GROUP, DocumentTable, write_options
from btlm_data.formats.forgotten import ChangedShard
from btlm_data.formats.guarded import reading
from btlm_data.formats.shard_formats import hdf5_layout
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.formats.shard_formats.rewriting import rewrite
from btlm_data.formats.shard_formats.writer import Compression, ShardInfo, ShardOptions, compressed, layout
from btlm_data.lineage.changes import SplitChange
from btlm_data.lineage.masks import Masks
from btlm_data.lineage.split_view import Extent, SplitView
from btlm_data.storage import digest
from btlm_data.storage.direct import DirectFile
from btlm_data.threads import in_threads

_BATCH_ELEMENTS = 1 << 23  # compressed at once
_GROUP = 64  # shards whose chunks are compressed together
_AT_ONCE = 8  # shards that are written at once
_STRETCH_ELEMENTS = 1 << 16  # of a shard without compression, written anew where one of them is masked
_IN_MEMORY = 1 << 24  # bytes of a shard's masked chunks; more are put aside in a file without a name


def mask(view: SplitView, extents: Sequence[Extent], folder: Path, rows: list[ledger.Row]) -> SplitChange:
    """Mask documents of a split in its copy. extents: the documents; folder: the copy, whose files are links
    to those of `view`; rows: the ledger. Raises DataError for a shard that is not the one dataset.json names.
    """
    masks = Masks(view)
    before, touched, masked = masks.num_labels, set[int](), []
    for extent in extents:
        spans = view.spans(extent)
        masks.add(spans)
        touched |= {view.shard_of(span.row)[0] for span in spans}
        masked.append(0 if view.is_corpus else sum(span.labels[1] - span.labels[0] for span in spans))
    files, changed = list(view.entry.files), []
    for number, info in _write_shards(view, sorted(touched), masks, folder):
        old = files[number]
        changed.append(ChangedShard(view.name, old.name, old.sha256, info.sha256))
        files[number] = ShardFile(
            name=old.name,
            bytes=info.num_bytes,
            sha256=info.sha256,
            n_examples=old.n_examples,
            tokens=old.tokens,
        )
    entry = view.entry
    if extents:
        table = _write_table(view.table, {extent.row for extent in extents}, folder / DOCUMENTS)
        entry = msgspec.structs.replace(entry, files=files, documents_file=table)
    rows = with_masked(rows, view.name, masks.num_labels)
    return SplitChange(entry, rows, changed, list(extents), masked, masks.num_labels - before)


def with_masked(rows: list[ledger.Row], split: str, masked: int) -> list[ledger.Row]:
    """The ledger with the row of the stage `forget`: label positions without loss."""
    received = ledger.total(rows, "shard", "out", split)
    row = ledger.Row(
        stage="forget",
        split=split,
        source=ledger.ALL_SOURCES,
        received=ledger.Amounts(*received),
        added={},
        dropped={"masked": ledger.Amounts(tokens=masked)} if masked else {},
        out=ledger.Amounts(tokens=received.tokens - masked),
    )
    return [entry for entry in rows if (entry.stage, entry.split) != ("forget", split)] + [row]


class _Masked(msgspec.Struct, frozen=True):
    """A shard that is written anew. reader: of it; touched: its chunks with something masked, of `chunk` rows each; layout: of
    both files.
    """

    number: int
    reader: ShardReader
    touched: list[int]
    chunk: int
    layout: hdf5_layout.Dataset

    @property
    def kind(self) -> tuple[Any, ...]:
        """What shards whose chunks are compressed together have in common."""
        stored = self.layout
        return self.chunk, stored.shape[1:], stored.dtype, stored.gzip, stored.shuffle

    @property
    def elements(self) -> int:
        """Of all chunks with something masked."""
        return len(self.touched) * self.chunk * int(np.prod(self.layout.shape[1:]))


class _Stored(msgspec.Struct, frozen=True):
    """The masked chunks of a shard as they are stored, end to end. sizes: chunk -> bytes."""

    file: IO[bytes]
    sizes: dict[int, int] = msgspec.field(default_factory=dict)


def _write_shards(
    view: SplitView, numbers: Sequence[int], masks: Masks, folder: Path
) -> Iterator[tuple[int, ShardInfo]]:
    """Shards once more, with what is to be masked; chunks without any of it are copied as they are stored. Many shards' chunks
    are compressed at a time, with one code for all of them.
    """
    group: list[_Masked] = []
    with contextlib.ExitStack() as opened:
        for number in numbers:
            shard = _masked_chunks(view, number, opened.enter_context(ShardReader(view.path(number))), masks)
            elements = shard.elements + sum(other.elements for other in group)
            if group and (len(group) == _GROUP or elements > _BATCH_ELEMENTS or shard.kind != group[0].kind):
                yield from _write_group(view, group, masks, folder)
                group = []
            group.append(shard)
        if group:
            yield from _write_group(view, group, masks, folder)


def _masked_chunks(view: SplitView, number: int, shard: ShardReader, masks: Masks) -> _Masked:
    shards = view.manifest.configuration.get("shards")
    given = shards if isinstance(shards, dict) else {}
    compression: Compression = "gzip" if shard.layout.compression == "gzip" else "none"
    options = ShardOptions(
        compression=compression,
        level=int(given.get("level", 1)),
        hdf5_shuffle=shard.layout.hdf5_shuffle,
        dtype="uint16" if shard.layout.dtype == "uint16" else "int32",
    )
    rows = shard.chunk_rows or max(1, _STRETCH_ELEMENTS // max(1, int(np.prod(shard.shape[1:]))))
    touched = np.flatnonzero(_touched(masks, view.first_row(number), shard.shape[0], rows)).tolist()
    return _Masked(number, shard, touched, rows, layout(shard.shape, (rows, *shard.shape[1:]), options))


def _write_group(
    view: SplitView, group: Sequence[_Masked], masks: Masks, folder: Path
) -> Iterator[tuple[int, ShardInfo]]:
    with contextlib.ExitStack() as files:
        stored = [
            _Stored(files.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))))
            for _ in group
        ]
        _store_chunks(view, group, masks, stored)

        def write(at: int) -> tuple[int, ShardInfo]:
            return group[at].number, _write_shard(view, group[at], stored[at], folder)

        yield from in_threads(write, range(len(group)), _AT_ONCE)
    for shard in group:
        shard.reader.close()


def _write_shard(view: SplitView, shard: _Masked, stored: _Stored, folder: Path) -> ShardInfo:
    path, entry = view.path(shard.number), view.entry.files[shard.number]
    target = folder / entry.name
    target.unlink()  # in the new dataset: a link to the old bytes
    stored.file.seek(0)
    with path.open("rb", buffering=0) as old, DirectFile(target) as new:
        sha256, info = rewrite(
            old,
            shard.reader.stretches(shard.chunk),
            shard.layout,
            new,
            stored.sizes,
            stored.file,
            entry.tokens,
        )
        new.flush()
        os.fsync(new.fileno())
    require_unchanged(path, sha256, entry)
    return info


def _store_chunks(view: SplitView, group: Sequence[_Masked], masks: Masks, stored: Sequence[_Stored]) -> None:
    """Mask the touched chunks of some shards, and put them aside as they are stored."""
    waiting: list[tuple[int, int]] = []  # shard of the group, and chunk
    rows: list[npt.NDArray[Any]] = []
    most = max(1, _BATCH_ELEMENTS // max(1, group[0].chunk * int(np.prod(group[0].layout.shape[1:]))))

    def compress() -> None:
        data, ends = compressed(np.concatenate(rows), group[0].layout)
        for (at, chunk), (low, high) in zip(waiting, pairwise(ends.tolist()), strict=True):
            stored[at].sizes[chunk] = stored[at].file.write(data[low:high].data)
        waiting.clear()
        rows.clear()

    for at, shard in enumerate(group):
        first, size = view.first_row(shard.number), shard.chunk
        for chunk in shard.touched:
            part = np.array(shard.reader.read(chunk * size, min((chunk + 1) * size, shard.reader.shape[0])))
            masks.apply(part, first + chunk * size)
            if shard.layout.chunks is None:
                stored[at].sizes[chunk] = stored[at].file.write(part.data)
                continue
            waiting.append((at, chunk))
            rows.append(_whole_chunk(part, size))
            if len(rows) == most:
                compress()
    if rows:
        compress()


def _whole_chunk(rows: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Rows as one chunk of `size`; what is behind the data is never read. rows: (n, ...), n at most `size`;
    returns (1, elements) in the same dtype.
    """
    if len(rows) < size:
        rows = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
    return rows.reshape(1, -1)


def _touched(masks: Masks, first: int, count: int, size: int) -> npt.NDArray[np.bool_]:
    """Which chunks of `size` rows hold a mask, of a shard of `count` rows, the first of which is row `first` of
    the split. Returns (chunks,) bool.
    """
    begins, ends = masks.ranges(first, count)
    edges = np.zeros(-(-count // size) + 1, np.int64)
    np.add.at(edges, begins // size, 1)
    np.add.at(edges, -(-ends // size), -1)
    return np.cumsum(edges)[:-1] > 0


def _write_table(table: DocumentTable, rows: set[int], path: Path) -> StoredFile:
    """documents.parquet with `forgotten`, and without the ids and fields of these rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen = np.array(sorted(rows), np.int64)

    def change(first: int, part: pa.Table) -> pa.Table:
        gone = np.zeros(part.num_rows, bool)
        gone[chosen[(chosen >= first) & (chosen < first + part.num_rows)] - first] = True
        if "forgotten" in part.column_names:
            gone |= part.column("forgotten").to_numpy()
            part = part.drop_columns(["forgotten"])
        for number, name in enumerate(part.column_names):
            if name == "id" or name.startswith("fields."):
                column = part.column(name)
                emptied = pc.if_else(pa.array(gone), pa.scalar(None, column.type), column)
                part = part.set_column(number, name, emptied)
        return part.append_column("forgotten", pa.array(gone))

    return rewrite_table(table, path, change)


def rewrite_table(table: DocumentTable, path: Path, change: Callable[[int, Any], Any]) -> StoredFile:
    """documents.parquet once more, each row group changed. change: of (first row, Arrow table)."""
    import pyarrow.parquet as pq

    path.unlink()  # in the new dataset: a link to the old bytes
    with reading(table.path), path.open("w+b") as file:
        writer = None
        for group in range(table.num_groups):
            part = change(table.group_rows(group)[0], table.arrow(group))
            writer = writer or pq.ParquetWriter(file, part.schema, **write_options(part.schema))
            if part.num_rows or group == table.num_groups - 1:
                writer.write_table(part)
        assert writer is not None
        writer.close()
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
        file.seek(0)
        return StoredFile(DOCUMENTS, size, digest.sha256_stream(file))


def rewrite_whole(table: Any, path: Path) -> StoredFile:
    """documents.parquet once more, from an Arrow table of all its rows."""
    import pyarrow.parquet as pq

    path.unlink()  # in the new dataset: a link to the old bytes
    with path.open("w+b") as file:
        pq.write_table(table, file, row_group_size=ROW_GROUP, **write_options(table.schema))
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
        file.seek(0)
        return StoredFile(DOCUMENTS, size, digest.sha256_stream(file))


def check_unchanged(path: Path, entry: ShardFile) -> None:
    """Raise DataError if a shard is not the one that dataset.json names: a copy of it would be certified."""
    with reading(path), path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    require_unchanged(path, sha256, entry)


def require_unchanged(path: Path, sha256: str, entry: ShardFile) -> None:
    """Raise DataError if a shard of this SHA-256 is not the one that dataset.json names."""
    if sha256 != entry.sha256:
        raise DataError(
            f"{path} is damaged: its SHA-256 is {sha256}, dataset.json says {entry.sha256}. Restore it first."
        )
