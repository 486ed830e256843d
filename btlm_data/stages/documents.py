"""documents.parquet: which document stands where in a split's stream, and where it came from.

A row per document in stream order (a document repeated by a mix has several): `stream_offset` uint64 (its first token's
position in the split's stream), `tokens` uint32 (without EOS), `file` and `source` (dictionary-encoded strings), `line`
uint64 (0-based), `offset` uint64 (bytes into the decompressed file; row for parquet), `bytes` and `chars` uint32 of the
cleaned text.

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
from btlm_data.errors import DataError
from btlm_data.estimate import Estimate, Workload
from btlm_data.formats.dataset import DOCUMENTS
from btlm_data.stages import shuffle
from btlm_data.stages.stream import StreamIndex
from btlm_data.storage import digest
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 2
_ROW_GROUP = 131_072


_ROW_BYTES = 20  # of documents.parquet, compressed


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
            tasks=workload.splits * len(sets),
            documents=stream.documents,
            read_bytes=copies * table_bytes,
            out_bytes=copies * table_bytes,
            memory_bytes=rates.process_bytes + 120 * min(stream.documents, 1_000_000),
            cpu_seconds=workload.splits * len(sets) * rates.task
            + copies * stream.documents * rates.table_document / 4,
        ),
    ]


def plan_documents(indices: Mapping[str, StreamIndex], table: Artifact) -> Step:
    """A task per bucket of each stream. table: of the blocks."""
    tasks = [
        Task(
            id=f"{index.stream.name}-{number:06d}",
            args={"start": bucket.start},
            reads={"index": [bucket.file], "blocks": [table]},
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

    index = files.columns(task.reads["index"][0])
    blocks = block_table.read_table(files, task.reads["blocks"][0])
    index_block, ordinals = index["block"], index["ordinal"]
    count = len(ordinals)
    if count and int(index_block.max()) >= len(blocks):
        raise DataError(f"{task.reads['index'][0].name} names a block that there is not.")
    out: dict[str, npt.NDArray[Any]] = {
        "line": np.empty(count, np.uint64),
        "offset": np.empty(count, np.uint64),
        "bytes": np.empty(count, np.uint32),
        "chars": np.empty(count, np.uint32),
        "file": np.empty(count, np.int32),
        "source": np.empty(count, np.int32),
    }
    names: dict[str, dict[str, int]] = {"file": {}, "source": {}}
    order = np.argsort(index_block, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(index_block[order])) + 1) if count else []:
        block = blocks[int(index_block[rows[0]])]
        docs = files.columns(block.docs)
        numbers = (ordinals[rows] - np.uint64(block.first_ordinal)).astype(np.int64)
        if int(numbers.max()) >= block.num_documents or int(numbers.min()) < 0:
            raise DataError(f"{task.reads['index'][0].name} names a document that {block.docs.name} has not.")
        out["line"][rows] = docs["line"][numbers].astype(np.uint64) + np.uint64(block.first_line)
        for column, field in (("offset", "offset"), ("bytes", "num_bytes"), ("chars", "num_chars")):
            out[column][rows] = docs[field][numbers]
        for column in ("file", "source"):
            codes = names[column]
            local = np.array(
                [codes.setdefault(name, len(codes)) for name in docs.meta[f"{column}s"]], np.int32
            )
            out[column][rows] = local[docs[column][numbers]]
    table = pa.table(
        {
            "stream_offset": index["offset"] + np.uint64(task.args["start"]),
            "tokens": np.asarray(index["length"]),
            "file": pa.DictionaryArray.from_arrays(out["file"], pa.array(list(names["file"]), pa.string())),
            "line": out["line"],
            "offset": out["offset"],
            "source": pa.DictionaryArray.from_arrays(
                out["source"], pa.array(list(names["source"]), pa.string())
            ),
            "bytes": out["bytes"],
            "chars": out["chars"],
        }
    )
    _write_parquet(files, task, iter([table]))
    advance(max(1, count))
    return Counts()


def plan_tables(places: Mapping[str, Sequence[Artifact]]) -> Step:
    """A task per split of each prepared set. places: folder in the dataset -> the parts of its table, in order."""
    tasks = [
        Task(
            id=folder.replace("/", "-"),
            reads={"parts": parts},
            outputs=[("out", f"{folder}/{DOCUMENTS}")],
        )
        for folder, parts in places.items()
    ]
    return Step("shard.tables", VERSION, tables, tasks, None, "", "task")


def tables(task: Task, settings: None, files: TaskFiles) -> Counts:
    """One documents.parquet from the buckets' parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    store, name = task.outputs[0]
    parts = task.reads["parts"]
    if len(parts) == 1:
        with files.create(name, store) as creating:
            creating.file.write(files.read(parts[0]))
            sha256 = _sha256(creating.file)
    else:
        sha256 = _write_parquet(
            files, task, (pq.read_table(pa.BufferReader(files.read(part))) for part in parts)
        )
    advance(1)
    size = files.written[-1].size
    return Counts(extra={"file": {"name": DOCUMENTS, "bytes": size, "sha256": sha256}})


def _write_parquet(files: TaskFiles, task: Task, tables: Iterator[Any]) -> str:
    """Write the task's output, a row group after the other; returns its SHA-256."""
    import pyarrow.parquet as pq

    store, name = task.outputs[0]
    first = next(tables)
    with files.create(name, store) as creating:
        with pq.ParquetWriter(creating.file, first.schema, compression="zstd") as writer:
            writer.write_table(first, row_group_size=_ROW_GROUP)
            for table in tables:
                writer.write_table(table, row_group_size=_ROW_GROUP)
        return _sha256(creating.file)


def _sha256(file: Any) -> str:
    file.seek(0)
    return digest.sha256_stream(file)
