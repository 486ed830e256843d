"""Documents taken out of a split by masking them (masks.py): only the chunks that hold them are written anew,
in a copy of their shard; every sample stays where it is.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
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
from btlm_data.formats.shard_formats.rewriting import Rewriting
from btlm_data.formats.shard_formats.writer import Compression, ShardInfo, ShardOptions, compressed, layout
from btlm_data.lineage.changes import SplitChange
from btlm_data.lineage.masks import Masks
from btlm_data.lineage.split_view import Extent, SplitView
from btlm_data.storage import digest
from btlm_data.storage.direct import DirectFile
from btlm_data.threads import in_threads

_BATCH_ELEMENTS = 1 << 21  # compressed at once
_GROUP = 64  # shards whose chunks are compressed together
_AT_ONCE = 4  # pairs of shards that are written at once
_STRETCH_ELEMENTS = 1 << 16  # of a shard without compression, written anew where one of them is masked
_IN_MEMORY = 1 << 24  # bytes of a shard's masked chunks; more are put aside in a file without a name


def mask(view: SplitView, extents: Sequence[Extent], folder: Path, rows: list[ledger.Row]) -> SplitChange:
    """Mask documents of a split in its copy. extents: the documents; folder: the copy, whose files are links
    to those of `view`; rows: the ledger. Raises DataError for a shard that is not the one dataset.json names.
    """
    masks = Masks(view)
    before, touched, masked = masks.num_labels, set[int](), []
    for spans in view.spans_of_all(extents):
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
            xxh3=info.xxh3,
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

        def write(at: int) -> list[tuple[int, ShardInfo]]:
            return _write_pair(view, group[at : at + 2], stored[at : at + 2], folder)

        for written in in_threads(write, range(0, len(group), 2), _AT_ONCE):
            yield from written
    for shard in group:
        shard.reader.close()


def _write_pair(
    view: SplitView, shards: Sequence[_Masked], stored: Sequence[_Stored], folder: Path
) -> list[tuple[int, ShardInfo]]:
    """Write one shard or two, whose sums are taken side by side."""
    from btlm_data.kernels.sha256 import sums_of  # numba: what only reads datasets does without it

    with contextlib.ExitStack() as opened:
        files = [_opened(view, shard, folder, opened) for shard in shards]
        for part in stored:
            part.file.seek(0)
        rewritings = [
            Rewriting(old, shard.reader.stretches(shard.chunk), shard.layout, new, part.sizes, part.file)
            for shard, part, (old, new) in zip(shards, stored, files, strict=True)
        ]
        pieces = [rewriting.pieces() for rewriting in rewritings]
        sums = sums_of(pieces[0], pieces[1] if len(pieces) > 1 else iter(()))
        written = []
        for shard, rewriting, (_, new), sha256 in zip(shards, rewritings, files, sums, strict=False):
            new.flush()
            os.fsync(new.fileno())
            entry = view.entry.files[shard.number]
            before, after = rewriting.xxh3()
            if entry.xxh3 is not None and before != entry.xxh3:
                raise _damaged(view.path(shard.number), "XXH3", before, entry.xxh3)
            info = ShardInfo(shard.layout.shape[0], entry.tokens, sha256, after, new.tell())
            written.append((shard.number, info))
        return written


def _opened(
    view: SplitView, shard: _Masked, folder: Path, opened: contextlib.ExitStack
) -> tuple[FileIO, DirectFile]:
    """A shard, and the new file that takes its name; both are closed with `opened`."""
    path, entry = view.path(shard.number), view.entry.files[shard.number]
    if entry.xxh3 is None:
        check_unchanged(path, entry)
    (folder / entry.name).unlink()  # in the new dataset: a link to the old bytes
    return opened.enter_context(path.open("rb", buffering=0)), opened.enter_context(
        DirectFile(folder / entry.name)
    )


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
    kind, expected = ("SHA-256", entry.sha256) if entry.xxh3 is None else ("XXH3", entry.xxh3)
    with reading(path), path.open("rb") as file:
        actual = digest.sha256_stream(file) if entry.xxh3 is None else digest.checksum_stream(file)
    if actual != expected:
        raise _damaged(path, kind, actual, expected)


def _damaged(path: Path, kind: str, actual: str, expected: str) -> DataError:
    return DataError(
        f"{path} is damaged: its {kind} is {actual}, dataset.json says {expected}. Restore it first."
    )
