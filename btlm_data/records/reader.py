"""Reading documents out of corpus files, batch by batch.

A batch is the records of one stretch of a file: about `batch_bytes` as decompressed (or one longer record),
regardless of the file's size, so memory does not depend on it. Nothing here stops at bad input: each bad
record becomes a `Reject` with its reason and place, and reading continues with the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from btlm_data.records.base import (
    BATCH_BYTES,
    WHOLE,
    ReadOptions,
    ReadRequest,
    StoredFile,
    Stretch,
)
from btlm_data.records.batch import RecordBatch, Reject
from btlm_data.records.first_bytes import file_problem
from btlm_data.records.formats import FORMATS
from btlm_data.records.json_lines import add_reject
from btlm_data.records.stream import is_utf8


def read_batches(
    path: Path,
    file: StoredFile,
    options: ReadOptions,
    stretch: Stretch = WHOLE,
    batch_bytes: int = BATCH_BYTES,
    with_records: bool = False,
    offsets: Sequence[int] | None = None,
) -> Iterator[RecordBatch]:
    """Read one stretch of `file`, whose bytes are at `path`; with_records: also give the whole records. offsets: of the
    records that are needed, ascending (others may be left out); None: all are.

    Never raises for bad content; an unreadable file gives one reject. Raises ConfigError for an unknown
    encoding.
    """
    request = ReadRequest(path, file, options, stretch, batch_bytes, with_records, offsets)
    try:
        problem = file_problem(path, file) if stretch.start == 0 else None
        if problem is None:
            yield from FORMATS[file.format].read(request)
            return
        reason, detail, num_bytes = problem.reason, problem.detail, problem.stored_bytes
    except OSError as error:
        reason, detail, num_bytes = "unreadable_file", error.strerror or str(error), 0
    batch = request.new_batch()
    batch.num_lines, batch.end, batch.final = stretch.lines_done, stretch.resume_at, True
    add_reject(batch, Reject(stretch.lines_done, stretch.resume_at, reason, detail, num_bytes))
    yield batch


def count_records(path: Path, file: StoredFile, options: ReadOptions, limit: int) -> tuple[int, int]:
    """How many records (documents and rejects) `file` holds, up to `limit`, and the line after the last one
    counted.
    """
    records = 0
    for batch in read_batches(path, file, options, batch_bytes=2**20):
        if records + batch.num_records >= limit:
            numbers = sorted([*batch.lines, *(reject.line for reject in batch.rejects)])
            return limit, numbers[limit - records - 1] + 1
        records += batch.num_records
    return records, -1


def is_divisible(file: StoredFile, options: ReadOptions) -> bool:
    """Whether the file may be read in byte ranges (Stretch.start, Stretch.stop)."""
    is_plain = file.compression == "none" and is_utf8(options.encoding)
    return is_plain and FORMATS[file.format].divisible
