"""documents.parquet: which document is where in a split's stream, and where it came from.

A row per document in stream order (a document repeated by a mix has several): `stream_offset` uint64 (its
first token's position in the split's stream), `tokens` uint32 (without EOS), `copies` uint32 (documents of
the source that it stands for, itself included: one more than deduplication dropped for it), `file` and
`source` (dictionary-encoded strings), `line` uint64 (0-based), `offset` uint64 (bytes into the decompressed
file; row for parquet), `bytes` and `chars` uint32 and `hash` (16 bytes: XXH3, 128 bits) of the cleaned text;
and, where requested, `id` and `fields.NAME`: strings out of the record, null where it has none.

    documents  a bucket of a stream       -> its rows: shard/documents/STREAM-BUCKET.parquet
    tables     a split of a prepared set  -> OUT/SPLIT/documents.parquet, all buckets' rows
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import blocks as block_table
from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.errors import DataError
from btlm_data.estimate import Estimate, Workload
from btlm_data.formats import text_columns
from btlm_data.stages import shuffle
from btlm_data.stages.stream import StreamIndex
from btlm_data.storage import digest
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 4
_ROW_GROUP = 131_072
_ROW_BYTES = 36  # of documents.parquet, compressed; 16 are the hash


def estimate(workload: Workload) -> list[Estimate]:
    """What the tables take. Sets without shares each have a copy of the same tables."""
    stream, rates, sets = workload.stream, workload.rates, workload.settings.seq_len
    [*_, order] = shuffle.estimate(workload)
    copies = len(sets) if all(part.share is None for part in sets) else 1
    table_bytes = _ROW_BYTES * stream.documents
    buckets = order.tasks
    return [
        Estimate(
            "shard.documents",
            tasks=buckets,
            documents=stream.documents,
            read_bytes=order.work_bytes + 34 * stream.documents,
            work_bytes=table_bytes,
            memory_bytes=rates.process_bytes + 120 * -(-stream.documents // buckets),
            cpu_seconds=buckets * rates.task + stream.documents * rates.table_document,
        ),
        Estimate(
            "shard.tables",
            tasks=(workload.splits + 1) * len(sets),
            documents=stream.documents,
            read_bytes=copies * table_bytes,
            out_bytes=copies * table_bytes,
            memory_bytes=rates.process_bytes + 120 * min(stream.documents, 1_000_000),
            cpu_seconds=(workload.splits + 1) * len(sets) * rates.task
            + copies * stream.documents * rates.table_document / 4,
        ),
    ]


def plan_documents(
    indices: Mapping[str, StreamIndex], table: Artifact, kept: Sequence[str], copies: Artifact | None
) -> Step:
    """A task per bucket of each stream. table: of the blocks. kept: columns of the records' own fields.
    copies: a columns file with `copies` (N,) by ordinal; None where nothing was deduplicated.
    """
    tasks = [
        Task(
            id=f"{index.stream.name}-{number:06d}",
            args={"start": bucket.start, "kept": list(kept)},
            inputs=[bucket.content],
            reads={"blocks": [table], "copies": [copies] if copies is not None else []},
            through={"index": [bucket.file]},
            outputs=[("work", f"shard/documents/{index.stream.name}-{number:06d}.parquet")],
            weight=max(1, bucket.num_documents),
        )
        for index in indices.values()
        for number, bucket in enumerate(index.buckets)
    ]
    return Step("shard.documents", VERSION, documents, tasks, None, "", "doc")


def documents(task: Task, settings: None, files: TaskFiles) -> Counts:
    """Join one bucket's index with the blocks' tables."""
    import pyarrow as pa

    [index_file] = task.through["index"]
    index = files.columns(index_file)
    blocks = block_table.read_table(files, task.reads["blocks"][0])
    ordinals = index["ordinal"]
    count = len(ordinals)
    if count and int(ordinals.max()) >= blocks[-1].last_ordinal:
        raise DataError(f"{index_file.name} names a document that there is not.")
    firsts = np.array([block.first_ordinal for block in blocks], np.uint64)
    index_block = np.searchsorted(firsts, ordinals, side="right") - 1
    rows_of = Rows(count, task.args["kept"])
    order = np.argsort(index_block, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(index_block[order])) + 1) if count else []:
        block = blocks[int(index_block[rows[0]])]
        numbers = (ordinals[rows] - np.uint64(block.first_ordinal)).astype(np.int64)
        rows_of.add(files, block, rows, numbers)
    columns = rows_of.columns()
    table = pa.table(
        {
            "stream_offset": index["offset"] + np.uint64(task.args["start"]),
            "tokens": np.asarray(index["length"]),
            "copies": _copies(task, files, ordinals),
            **columns,
        }
    )
    write_parquet(files, task, iter([table]))
    advance(max(1, count))
    return Counts()


def _copies(task: Task, files: TaskFiles, ordinals: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """How many documents each of these stands for."""
    if not task.reads["copies"]:
        return np.ones(len(ordinals), np.uint32)
    rows = ordinals.astype(np.int64)
    copies = files.columns(task.reads["copies"][0]).scattered("copies", rows, np.ones(len(rows), np.int64))
    chosen: npt.NDArray[np.uint32] = copies[rows]
    return chosen


class Rows:
    """Rows of a table of documents, gathered block by block.

    count: of all rows. kept: columns of the records' own fields. dropped: of the documents that cleaning
    dropped, not of those that passed it.
    """

    def __init__(self, count: int, kept: Sequence[str], *, dropped: bool = False) -> None:
        self._kept, self._prefix = kept, "dropped/" if dropped else ""
        self._numbers: dict[str, npt.NDArray[Any]] = {
            "file": np.empty(count, np.int32),
            "line": np.empty(count, np.uint64),
            "offset": np.empty(count, np.uint64),
            "source": np.empty(count, np.int32),
            "bytes": np.empty(count, np.uint32),
        }
        if not dropped:
            self._numbers["chars"] = np.empty(count, np.uint32)
        self._hash = np.empty((count, 16), np.uint8)
        self._names: dict[str, dict[str, int]] = {"file": {}, "source": {}}
        self._texts: dict[str, list[Any]] = {name: [] for name in kept}
        self._rows: list[npt.NDArray[np.int64]] = []

    def add(
        self, files: TaskFiles, block: Block, rows: npt.NDArray[Any], numbers: npt.NDArray[np.int64]
    ) -> None:
        """Fill `rows` with the documents `numbers` of a block. rows, numbers: (n,) of an integer dtype."""
        docs, out, prefix = files.columns(block.docs), self._numbers, self._prefix
        out["line"][rows] = docs[f"{prefix}line"][numbers].astype(np.uint64) + np.uint64(block.first_line)
        for column, field in (("offset", "offset"), ("bytes", "num_bytes"), ("chars", "num_chars")):
            if column in out:
                out[column][rows] = docs[f"{prefix}{field}"][numbers]
        self._hash[rows] = docs[f"{prefix}hash"][numbers]
        for column in ("file", "source"):
            codes = self._names[column]
            local = np.array(
                [codes.setdefault(name, len(codes)) for name in docs.meta[f"{column}s"]], np.int32
            )
            out[column][rows] = local[docs[f"{prefix}{column}"][numbers]]
        self._rows.append(np.asarray(rows, np.int64))
        if not self._kept:
            return
        if block.fields is None:
            raise DataError(f"The block {block.stem} has no kept fields. Rerun the same command.")
        fields = files.columns(block.fields)
        first = block.num_documents if prefix else 0
        for name in self._kept:
            self._texts[name].append(text_columns.to_arrow(fields, name).take(first + numbers))

    def columns(self) -> dict[str, Any]:
        """The columns, as they are in the table."""
        import pyarrow as pa

        out: dict[str, Any] = dict(self._numbers)
        for column, codes in self._names.items():
            out[column] = pa.DictionaryArray.from_arrays(out[column], pa.array(list(codes), pa.string()))
        out["hash"] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), len(self._hash), [None, pa.py_buffer(self._hash.tobytes())]
        )
        order = np.argsort(np.concatenate([np.empty(0, np.int64), *self._rows]))
        for name, parts in self._texts.items():
            values = pa.chunked_array(parts, pa.large_string()).combine_chunks()
            out[name] = values.take(order).cast(pa.string())
        return out


def plan_tables(parts_by_table: Mapping[str, Sequence[Artifact]]) -> Step:
    """A task per table. parts_by_table: its name in the dataset -> its parts, in order."""
    tasks = [
        Task(
            id=name.removesuffix(".parquet").replace("/", "-"),
            reads={"parts": parts},
            outputs=[("out", name)],
        )
        for name, parts in parts_by_table.items()
    ]
    return Step("shard.tables", VERSION, tables, tasks, None, "", "task")


def tables(task: Task, settings: None, files: TaskFiles) -> Counts:
    """One table from its parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    store, name = task.outputs[0]
    parts = task.reads["parts"]
    if len(parts) == 1:
        with files.create(name, store) as creating:
            creating.file.write(files.read(parts[0]))
            sha256 = _sha256(creating.file)
    else:
        sha256 = write_parquet(
            files, task, (pq.read_table(pa.BufferReader(files.read(part))) for part in parts)
        )
    advance(1)
    size = files.written[-1].size
    return Counts(extra={"file": {"name": name.rpartition("/")[2], "bytes": size, "sha256": sha256}})


def write_parquet(files: TaskFiles, task: Task, tables: Iterator[Any]) -> str:
    """Write the task's output, a row group after the other; returns its SHA-256."""
    import pyarrow.parquet as pq

    store, name = task.outputs[0]
    first = next(tables)
    numbers = [column for column in ("stream_offset", "line", "offset") if column in first.column_names]
    options: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": [field.name for field in first.schema if _is_text(field.type)],
        "column_encoding": dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
    }
    with files.create(name, store) as creating:
        with pq.ParquetWriter(creating.file, first.schema, **options) as writer:
            writer.write_table(first, row_group_size=_ROW_GROUP)
            for table in tables:
                writer.write_table(table, row_group_size=_ROW_GROUP)
        return _sha256(creating.file)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_dictionary(kind))


def _sha256(file: Any) -> str:
    file.seek(0)
    return digest.sha256_stream(file)
