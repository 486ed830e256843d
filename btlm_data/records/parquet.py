"""Parquet: a record a row, read a row group at a time; a damaged row group costs its own rows only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from btlm_data.advance import advance
from btlm_data.formats.parquet_footer import check_footer
from btlm_data.records.base import ReadRequest, RecordFormat
from btlm_data.records.batch import RecordBatch, Reject
from btlm_data.records.json_lines import add_reject
from btlm_data.records.parquet_pages import column_bounds
from btlm_data.records.tables import RowsLost, RowsWithoutColumns, TableReader

_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
_MAX_ROWS = 65536
_BUFFER_BYTES = 2**20  # a column is read in pieces of this many, not as a whole
_SHARED_BYTES = 128 * 2**20  # most that the rows of one Arrow batch may take where they share their values
_PAGE_BYTES = 64 * 2**20  # a page may be this much larger than the largest record


def read(request: ReadRequest) -> Iterator[RecordBatch]:
    """Batches of the rows in row groups [start, stop) of the stretch. `lines_done` counts rows of the stretch
    already read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with request.path.open("rb") as file:
        try:
            table = pq.ParquetFile(request.path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            check_footer(file, table)
            reader = TableReader(request, table.schema_arrow)
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            batch = request.new_batch()
            batch.final = True
            add_reject(batch, Reject(0, 0, *_file_problem(file, error), request.path.stat().st_size))
            yield batch
            return
        start, stop = request.stretch.start, request.stretch.stop
        groups = range(start, table.num_row_groups if stop is None else min(stop, table.num_row_groups))
        first_row = sum(table.metadata.row_group(i).num_rows for i in range(start))
        yield from reader.read(_parts(request, reader, table, file, groups), first_row)


def _file_problem(file: BinaryIO, error: BaseException) -> tuple[str, str]:
    """Reason and detail of a file that cannot be opened at all."""
    size = file.seek(0, 2)
    file.seek(0)
    begin = file.read(4)
    file.seek(max(0, size - 4))
    end = file.read(4)
    if _ENCRYPTED in (begin, end):
        return (
            "corrupt_file",
            "an encrypted Parquet file, which cannot be read; write it again without encryption",
        )
    if begin == _MAGIC and end != _MAGIC:
        return "truncated_file", "the file ends before its footer, without which no row of it can be read"
    return problem(error)


def problem(error: BaseException) -> tuple[str, str]:
    """Reason and detail of what pyarrow raised."""
    if isinstance(error, OSError) and error.errno is not None:
        return "unreadable_file", error.strerror or str(error)
    return "corrupt_file", (str(error) or type(error).__name__).split("\n")[0][:300]


def _parts(
    request: ReadRequest, reader: TableReader, table: Any, file: BinaryIO, groups: range
) -> Iterator[Any]:
    row, to_skip = 0, request.stretch.lines_done
    for group in groups:
        num_rows = table.metadata.row_group(group).num_rows
        if reader.selections == [] or row + num_rows <= to_skip:
            yield RowsWithoutColumns(num_rows)
        else:
            yield from _group(request, reader, table, file, group)
        row += num_rows


def _group(
    request: ReadRequest, reader: TableReader, table: Any, file: BinaryIO, group: int
) -> Iterator[Any]:
    """The Arrow batches of one row group, and after them the rows that cannot be read."""
    import pyarrow as pa

    metadata = table.metadata.row_group(group)
    num_rows, selections = metadata.num_rows, reader.selections
    stored = 0
    try:
        columns = [
            column
            for column in map(metadata.column, range(metadata.num_columns))
            if selections is None
            or any(f"{column.path_in_schema}.".startswith(f"{path}.") for path in selections)
        ]
        stored = sum(column.total_compressed_size for column in columns)
        bounds = [column_bounds(file, column) for column in columns]
    except (OSError, ValueError, OverflowError) as error:
        yield RowsLost(num_rows, *_group_problem(group, num_rows, num_rows, error), stored)
        return
    max_page = request.options.max_record_bytes + _PAGE_BYTES
    if (page := max((bound.page for bound in bounds), default=0)) > max_page:
        detail = f"row group {group} has a page of {page:,} bytes, more than source.max_record_bytes allows"
        yield RowsLost(num_rows, "corrupt_file", f"{detail}; its {num_rows:,} rows were not read", stored)
        return
    per_row = sum(
        bound.value * max(1, column.num_values // max(1, num_rows))
        for bound, column in zip(bounds, columns, strict=True)
    )
    total = max(1, sum(column.total_uncompressed_size for column in columns))
    batch_rows = min(
        _MAX_ROWS, request.batch_bytes * max(1, num_rows) // total, _SHARED_BYTES // max(1, per_row)
    )
    done, rows = 0, max(1, batch_rows)
    while done < num_rows:
        try:
            skip = done
            for batch in table.iter_batches(
                batch_size=rows, row_groups=[group], columns=selections, use_threads=False
            ):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                yield batch.slice(skip) if skip else batch
                advance((batch.num_rows - skip) * stored // num_rows)
                done += batch.num_rows - skip
                skip = 0
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            if rows > 1 and not isinstance(error, MemoryError):
                rows = 1  # once more, so that the rows before the damage are not lost
                continue
            yield RowsLost(
                num_rows - done,
                *_group_problem(group, num_rows - done, num_rows, error),
                stored * (num_rows - done) // num_rows,
            )
            return
        if done < num_rows:
            detail = f"row group {group} has {done:,} rows, not {num_rows:,} as the file says"
            yield RowsLost(num_rows - done, "corrupt_file", detail, 0)
            return


def _group_problem(group: int, lost: int, num_rows: int, error: BaseException) -> tuple[str, str]:
    reason, detail = problem(error)
    return reason, f"row group {group}: {detail}; {lost:,} of its {num_rows:,} rows were not read"


PARQUET = RecordFormat("parquet", (".parquet", ".parq", ".pq"), read, compressible=False)
