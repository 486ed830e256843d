"""The n-grams of evaluation sets as a file of the work folder, and the report of which documents share one
with them.

holdout/ngrams/ngrams.cols   the arrays of cleaning/evaluation_ngrams.py; meta: {"files"}
BLOCK.contamination          `hits` (n,) uint32: n-grams of each document in the table; `ngram` (n,) uint32:
                             number of the first, or 2^32 - 1
holdout/report/RANGE.parquet           a row per document with hits of a range of blocks, see `report`
holdout/table/contamination.parquet    all of them
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from btlm_data.advance import advance
from btlm_data.blocks import RANGE_DOCUMENTS, Block, grouped
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.cleaning.evaluation_ngrams import ARRAYS, EvalNgrams, evaluation_digest
from btlm_data.cleaning.evaluation_sets import EvaluationFile
from btlm_data.dedupe.ranges import MOST_NARROW
from btlm_data.estimate import Estimate, Workload
from btlm_data.fates import Fate
from btlm_data.formats import parquet_splice
from btlm_data.formats.columns import Columns
from btlm_data.splits import SPLITS
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 1


TABLE_BYTES = 6  # of the n-grams' arrays for each byte of the evaluation sets


def estimate_ngrams(workload: Workload) -> list[Estimate]:
    """What making the table of evaluation n-grams takes."""
    size, rates = workload.evaluation_bytes, workload.rates
    if not size:
        return []
    return [
        Estimate(
            "holdout.ngrams",
            tasks=1,
            source_bytes=size,
            work_bytes=TABLE_BYTES * size,
            memory_bytes=rates.process_bytes + 2 * TABLE_BYTES * size,
            cpu_seconds=rates.task + size * rates.evaluation_byte,
        )
    ]


def estimate_report(workload: Workload) -> list[Estimate]:
    """What listing the documents with hits takes, where few have any."""
    documents, rates = workload.volume.documents, workload.rates
    if not workload.evaluation_bytes:
        return []
    ranges = -(-documents // RANGE_DOCUMENTS)
    return [
        Estimate(
            "holdout.report",
            tasks=ranges,
            documents=documents,
            read_bytes=8 * documents + ranges * TABLE_BYTES * workload.evaluation_bytes,
            reads=2 * workload.blocks,
            memory_bytes=rates.process_bytes,
            cpu_seconds=ranges * rates.task + documents * rates.holdout_document,
        ),
        Estimate("holdout.table", tasks=1, memory_bytes=rates.process_bytes, cpu_seconds=rates.task),
    ]


def plan_ngrams(evaluation: Sequence[EvaluationFile]) -> Step:
    """One task: make the table of all evaluation n-grams."""
    task = Task(
        id="all",
        args={"files": [list(file) for file in evaluation]},
        inputs=[evaluation_digest(evaluation)],
        outputs=[("work", "holdout/ngrams/ngrams.cols")],
    )
    return Step("holdout.ngrams", VERSION, ngrams, [task], None, "", "task")


def ngrams(task: Task, settings: None, files: TaskFiles) -> Counts:
    """Read the evaluation files. Raises InputError if one cannot be read whole, or has no text of 13 words."""
    table = EvalNgrams.read([EvaluationFile(*file) for file in task.args["files"]])
    files.write_columns(task.outputs[0][1], table.arrays, {"files": list(table.files)})
    return Counts()


def open_ngrams(opened: Columns) -> EvalNgrams:
    """The table that `ngrams` wrote. Raises DataError if a value in it would lead outside its arrays."""
    return EvalNgrams({name: opened[name] for name in ARRAYS}, list(opened.meta["files"]))


def plan_report(blocks: Sequence[Block], ngrams_file: Artifact, fates: Artifact) -> Step:
    """A task per range of blocks: list the documents with hits. fates: list of files (by_ordinal.py)."""
    wide = blocks[-1].last_ordinal > MOST_NARROW
    tasks = [
        Task(
            id=f"{number:06d}",
            args={
                "blocks": [[block.first_ordinal, block.num_documents] for block in chosen],
                "wide": wide,
            },
            reads={
                "docs": [block.docs for block in chosen],
                "hits": [block.contamination for block in chosen if block.contamination is not None],
                "ngrams": [ngrams_file],
                "fates": [fates],
            },
            outputs=[("work", f"holdout/report/{number:06d}.parquet")],
            weight=max(1, sum(block.num_documents for block in chosen)),
        )
        for number, chosen in enumerate(grouped(blocks, RANGE_DOCUMENTS))
    ]
    return Step("holdout.report", VERSION, report, tasks, None, "", "doc")


def plan_table(parts: Artifact) -> Step:
    """One task: contamination.parquet. parts: the list of the files of `report`."""
    task = Task("all", reads={"parts": [parts]}, outputs=[("work", "holdout/table/contamination.parquet")])
    return Step("holdout.table", VERSION, join, [task], None, "", "task")


def join(task: Task, settings: None, files: TaskFiles) -> Counts:
    """One table from its parts."""
    store, name = task.outputs[0]
    parts = files.read_list(task.reads["parts"][0])
    with files.create_in_order(name, store) as writer:
        parquet_splice.splice(writer, (files.read(part) for part in parts))
    advance(task.weight)
    return Counts()


def report(task: Task, settings: None, files: TaskFiles) -> Counts:
    """List every document of a range that has hits, in source order.

    Columns: document (ordinal, uint32, or uint64 of more than 2^32 - 1 documents), removed (bool: its fate is "contaminated"), hits (uint32), split,
    source, file, offset (uint64), bytes (uint32) of the document; eval_file, eval_record (uint32, from 0) and
    ngram (its words) of the first hit.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table: EvalNgrams | None = None
    decided = ByOrdinal(files, task.reads["fates"][0])
    schema = pa.schema(
        [
            ("document", pa.uint64() if task.args["wide"] else pa.uint32()),
            ("removed", pa.bool_()),
            ("hits", pa.uint32()),
            ("split", pa.string()),
            ("source", pa.string()),
            ("file", pa.string()),
            ("offset", pa.uint64()),
            ("bytes", pa.uint32()),
            ("eval_file", pa.string()),
            ("eval_record", pa.uint32()),
            ("ngram", pa.string()),
        ]
    )
    with (
        files.create(task.outputs[0][1]) as creating,
        pq.ParquetWriter(creating.file, schema, compression="zstd") as writer,
    ):
        described = zip(task.args["blocks"], task.reads["docs"], task.reads["hits"], strict=True)
        for (first, count), docs_file, hits_file in described:
            advance(count)
            matches = files.columns(hits_file)
            hits, first_ngrams = matches["hits"], matches["ngram"]
            rows = np.flatnonzero(hits)
            if not len(rows):
                continue
            table = table or open_ngrams(files.columns(task.reads["ngrams"][0]))
            docs = files.columns(docs_file)
            fate, split = (decided.rows(name, first, first + count) for name in ("fate", "split"))
            doc_sources, doc_files, offsets, sizes = (
                docs[name] for name in ("source", "file", "offset", "num_bytes")
            )
            listed = []
            for row in rows.tolist():
                eval_file, eval_record, words = table.describe(int(first_ngrams[row]))
                listed.append(
                    {
                        "document": first + row,
                        "removed": bool(fate[row] == Fate.CONTAMINATED),
                        "hits": int(hits[row]),
                        "split": SPLITS[int(split[row])],
                        "source": docs.meta["sources"][int(doc_sources[row])],
                        "file": docs.meta["files"][int(doc_files[row])],
                        "offset": int(offsets[row]),
                        "bytes": int(sizes[row]),
                        "eval_file": eval_file,
                        "eval_record": eval_record,
                        "ngram": words,
                    }
                )
            writer.write_table(pa.Table.from_pylist(listed, schema))
    return Counts()
