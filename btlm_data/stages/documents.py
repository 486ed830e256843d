"""documents.parquet: which document is where in a split's stream, and where it came from.

A row per document in stream order (a document repeated by a mix has several): `stream_offset` uint64 (its
first token's position in the split's stream), `tokens` uint32 (without EOS), `copies` uint32 (documents of
the source that it stands for, itself included: one more than deduplication dropped for it), `file` and
`source` (dictionary-encoded strings), `line` uint64 (0-based), `offset` uint64 (bytes into the decompressed
file; row for parquet), `bytes` and `chars` uint32 and `hash` (16 bytes: XXH3, 128 bits) of the cleaned text;
and, where requested, `id` and `fields.NAME`: strings out of the record, null where it has none; and columns
of signals (cleaning/signals.py).

    rows       groups of blocks           -> rows in the order of the streams (document_rows.py)
    documents  some buckets of a stream   -> their rows: shard/documents/STREAM-BUCKET.parquet
    tables     a split of a prepared set  -> OUT/SPLIT/documents.parquet, all buckets' rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.cleaning.signal_parameters import Kind
from btlm_data.cleaning.signals import NUMBERS, numbers_dtype
from btlm_data.engine.runner import Runner
from btlm_data.errors import DataError
from btlm_data.estimate import COPYING_CORES, Estimate, Workload
from btlm_data.formats import parquet_splice, text_columns
from btlm_data.formats.documents_table import ROW_GROUP, write_options
from btlm_data.stages import document_rows, shuffle
from btlm_data.stages.document_rows import ROW, Names, RowFile, RowMoves, Sources
from btlm_data.stages.stream import StreamIndex
from btlm_data.task import Artifact, Counts, Step, StoreName, Task
from btlm_data.task_files import TaskFiles
from btlm_data.threads import ahead

VERSION = 6
_ROW_BYTES = 36  # of documents.parquet, compressed; 16 are the hash


def estimate(workload: Workload) -> list[Estimate]:
    """What the tables take. Sets without shares each have a copy of the same tables."""
    stream, rates, sets = workload.stream, workload.rates, workload.settings.seq_len
    by_step = {estimate.step: estimate for estimate in shuffle.estimate(workload)}
    scatter, order = by_step["shuffle.scatter"], by_step["shuffle.sort"]
    copies = len(sets) if all(part.share is None for part in sets) else 1
    table_bytes = _ROW_BYTES * stream.documents
    moves = RowMoves.plan(workload.volume.documents, ROW.itemsize, workload.run.memory_per_worker)
    passes, num_files = moves.levels(workload.volume.documents)
    moved = ROW.itemsize * stream.documents
    groups = max(1, min(scatter.tasks, -(-workload.volume.documents // moves.group_documents)))
    num_buckets = shuffle.stream_count(workload) * shuffle.bucket_count(workload.volume.text_bytes)
    together = moves.together(stream.documents, num_buckets, num_files, ROW.itemsize)
    buckets = max(1, -(-num_buckets // together))
    return [
        *(
            Estimate(
                "shard.rows" if number == 1 else f"shard.rows-{number}",
                tasks=groups,
                documents=stream.documents,
                read_bytes=moved if number > 1 else order.work_bytes + 34 * workload.volume.documents,
                reads=groups * moves.fanout if number > 1 else 12 * workload.blocks,
                work_bytes=moved,
                memory_bytes=rates.process_bytes + document_rows.HELD * moved // groups,
                cpu_seconds=groups * rates.task + stream.documents * rates.move_document,
            )
            for number in range(1, passes + 1)
        ),
        Estimate(
            "shard.documents",
            tasks=buckets,
            documents=stream.documents,
            read_bytes=order.work_bytes + moved,
            reads=3 * num_buckets + num_files * buckets,
            work_bytes=table_bytes,
            freed_bytes=passes * moved,
            memory_bytes=rates.process_bytes + document_rows.HELD * moved // buckets,
            cpu_seconds=buckets * rates.task + stream.documents * rates.table_document,
        ),
        Estimate(
            "shard.tables",
            tasks=(workload.splits + 1) * len(sets),
            documents=stream.documents,
            read_bytes=copies * table_bytes,
            out_bytes=copies * table_bytes,
            memory_bytes=rates.process_bytes + 2 * table_bytes // max(1, num_buckets),
            cpu_seconds=(workload.splits + 1) * len(sets) * rates.task
            + copies * table_bytes * rates.copied_byte,
            cores=COPYING_CORES,
            is_beside=True,
        ),
    ]


def run(
    runner: Runner, sources: Sources, streams: Mapping[str, StreamIndex], table: Artifact
) -> dict[str, list[Artifact]]:
    """The parts of each stream's table, in order. table: of the blocks."""
    step = plan_documents(sources, streams, table, None)
    if not runner.is_done(step):
        files, moving = document_rows.run(runner, sources, streams)
        step = plan_documents(sources, streams, table, files)
        results = runner.run(step)
        runner.discard(*moving)
    else:
        results = runner.run(step)
    by_name = {artifact.name: artifact for result in results for artifact in result.outputs}
    return {
        name: [by_name[_part_name(name, number)] for number in range(len(index.buckets))]
        for name, index in streams.items()
    }


def _part_name(stream: str, bucket: int) -> str:
    return f"shard/documents/{stream}-{bucket:06d}.parquet"


def plan_documents(
    sources: Sources,
    streams: Mapping[str, StreamIndex],
    table: Artifact,
    rows: Mapping[str, Sequence[RowFile]] | None,
) -> Step:
    """A task per bucket of each stream; where their rows are in many files, per several buckets. rows: the
    files of each stream; None only to see what is done.
    """
    tasks: list[Task] = []
    moves, lineage = sources.moves, [table.checksum]
    lineage += [sources.copies.checksum] if sources.copies is not None else []
    _, num_files = moves.levels(sources.num_documents)
    for name, index in streams.items():
        buckets = index.buckets
        together = moves.together(index.num_documents, len(buckets), num_files, sources.row_bytes)
        for chosen in (range(i, min(i + together, len(buckets))) for i in range(0, len(buckets), together)):
            wanted = [file for file in rows[name] if file.overlaps(chosen)] if rows is not None else []
            tasks.append(
                Task(
                    id=f"{name}-{chosen[0]:06d}",
                    args={
                        "stream": name,
                        "buckets": list(chosen),
                        "starts": [buckets[number].start for number in chosen],
                        "kept": list(sources.kept),
                        **({"signals": dict(sources.signals)} if sources.signals else {}),
                    },
                    inputs=[*lineage, *(buckets[number].content for number in chosen)],
                    through={
                        "index": [buckets[number].file for number in chosen],
                        "rows": [file.file for file in wanted],
                    },
                    outputs=[("work", _part_name(name, number)) for number in chosen],
                    weight=max(1, sum(buckets[number].num_documents for number in chosen)),
                    hints={"ranges": [[file.first, file.last] for file in wanted]},
                )
            )
    return Step("shard.documents", VERSION, documents, tasks, None, "", "doc")


def documents(task: Task, settings: None, files: TaskFiles) -> Counts:
    """The rows of some buckets beside their index."""
    import pyarrow as pa

    chosen, kept, signals = task.args["buckets"], task.args["kept"], task.args.get("signals", {})
    row_files = [
        RowFile(file, *limits)
        for file, limits in zip(task.through["rows"], task.hints["ranges"], strict=True)
    ]
    range_read = document_rows.read_range(
        files, row_files, task.args["stream"], (chosen[0], chosen[-1] + 1), kept
    )
    for number, index_file in enumerate(task.through["index"]):
        index = files.columns(index_file)
        bucket = slice(int(range_read.edges[number]), int(range_read.edges[number + 1]))
        rows = range_read.rows[bucket]
        if not np.array_equal(index["ordinal"], rows["ordinal"]):
            raise DataError(
                f"{index_file.name} and the rows of its documents are not of one run. Rerun the same command."
            )
        texts = _texts({name: column[bucket] for name, column in range_read.texts.items()}, signals)
        table = pa.table(
            {
                "stream_offset": index["offset"] + np.uint64(task.args["starts"][number]),
                "tokens": np.asarray(index["length"]),
                "copies": np.ascontiguousarray(rows["copies"]),
                **_columns(rows, range_read.names),
                **texts,
            }
        )
        write_parquet(files, task.outputs[number], table)
        advance(max(1, len(rows)))
    return Counts()


def _texts(columns: Mapping[str, Any], signals: Mapping[str, Kind]) -> dict[str, Any]:
    """The columns of fields, then those of signals, in order. columns: what travelled with the rows."""
    import pyarrow as pa

    texts = {name: column.cast(pa.string()) for name, column in columns.items() if name != NUMBERS}
    numbers = None
    if NUMBERS in columns:
        numbers = text_columns.packed(NUMBERS, columns[NUMBERS], numbers_dtype(signals))
    fields = {name: column for name, column in texts.items() if name not in signals}
    return fields | {
        name: texts[name] if numbers is None or kind == "text" else np.ascontiguousarray(numbers[name])
        for name, kind in signals.items()
    }


def _columns(rows: npt.NDArray[Any], names: Names) -> dict[str, Any]:
    """The columns that say where documents come from. rows: (n,) of ROW."""
    blocks, block_of_row = np.unique(rows["block"], return_inverse=True)
    columns: dict[str, Any] = {}
    for column in ("file", "line", "offset", "source", "bytes", "chars"):
        if column not in ("file", "source"):
            columns[column] = np.ascontiguousarray(rows[column])
            continue
        lists = [names[block][column == "source"] for block in blocks.tolist()]
        codes: dict[str, int] = {}
        local = np.array(
            [codes.setdefault(name, len(codes)) for listed in lists for name in listed], np.int32
        )
        firsts = np.cumsum([0, *map(len, lists)])[:-1]
        indices = local[firsts[block_of_row] + rows[column]] if len(rows) else np.empty(0, np.int32)
        columns[column] = named(indices, codes)
    columns["hash"] = hashes(np.ascontiguousarray(rows["hash"]))
    return columns


def named(codes: npt.NDArray[np.int32], names: Mapping[str, int]) -> Any:
    """A dictionary column. codes: (n,) int32, positions in `names`."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(codes, pa.array(list(names), pa.string()))


def hashes(values: npt.NDArray[np.uint8]) -> Any:
    """A column of 16 bytes each. values: (n, 16) uint8."""
    import pyarrow as pa

    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(values), [None, pa.py_buffer(values.tobytes())]
    )


def table_tasks(parts_by_table: Mapping[str, Sequence[Artifact]]) -> list[Task]:
    """A task per table, for `write_table`. parts_by_table: its name in the dataset -> its parts, in order."""
    return [
        Task(
            id=name.removesuffix(".parquet").replace("/", "-"),
            reads={"parts": parts},
            outputs=[("out", name)],
        )
        for name, parts in parts_by_table.items()
    ]


def write_table(task: Task, files: TaskFiles) -> Counts:
    """One table from its parts."""
    store, name = task.outputs[0]
    with files.create_in_order(name, store) as writer:
        parquet_splice.splice(writer, ahead(files.read(part) for part in task.reads["parts"]))
    advance(1)
    file = {"name": name.rpartition("/")[2], "bytes": writer.size, "sha256": writer.sha256}
    return Counts(extra={"file": file})


def write_parquet(files: TaskFiles, output: tuple[StoreName, str], table: Any) -> None:
    """Write a table as an output of a task."""
    import pyarrow.parquet as pq

    store, name = output
    with files.create(name, store) as creating:
        pq.write_table(table, creating.file, row_group_size=ROW_GROUP, **write_options(table.schema))
