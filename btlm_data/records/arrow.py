"""Arrow IPC files and streams, as `datasets.save_to_disk` writes them: a record a row.

Only uncompressed as a whole (Arrow compresses its buffers itself). The file is memory-mapped, so a batch of
any size takes the memory of its slices; every batch is validated before its values are looked at, as a
damaged one could point anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from btlm_data.advance import advance
from btlm_data.records.base import ReadRequest, RecordFormat
from btlm_data.records.batch import RecordBatch, Reject
from btlm_data.records.json_lines import add_reject
from btlm_data.records.parquet import problem
from btlm_data.records.tables import RowsLost, RowsWithoutColumns, TableReader

_FILE_MAGIC = b"ARROW1"
_FEATHER_V1 = b"FEA1"


def read(request: ReadRequest) -> Iterator[RecordBatch]:
    """Batches of the rows of a file."""
    import pyarrow as pa

    size = request.path.stat().st_size
    if size == 0:
        return
    try:
        with pa.memory_map(str(request.path)) as source:
            reader = _open(source)
            table = TableReader(request, reader.schema)
            yield from table.read(_parts(request, table, reader, size), 0)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        batch = request.new_batch()
        batch.final = True
        add_reject(batch, Reject(0, 0, *_problem(error, request), size))
        yield batch


def _open(source: Any) -> Any:
    """A reader of the IPC file or stream. Raises ArrowInvalid or OSError if it is neither."""
    import pyarrow.ipc as ipc

    is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    source.seek(0)
    return ipc.open_file(source) if is_file else ipc.open_stream(source)


def _problem(error: BaseException, request: ReadRequest) -> tuple[str, str]:
    with request.path.open("rb") as file:
        if file.read(4) == _FEATHER_V1:
            return (
                "corrupt_file",
                "a Feather file of version 1, which is no Arrow file; write it again with version 2",
            )
    return problem(error)


def _parts(request: ReadRequest, table: TableReader, reader: Any, size: int) -> Iterator[Any]:
    """The file's record batches, with the columns that are needed; those that cannot be read as the rows they
    hold.
    """
    import pyarrow as pa

    is_file = hasattr(reader, "num_record_batches")
    number, advanced = 0, 0
    while not is_file or number < reader.num_record_batches:
        try:
            batch = reader.get_batch(number) if is_file else reader.read_next_batch()
        except StopIteration:
            break
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            reason, detail = problem(error)
            left = "" if is_file else ", and nothing after it"
            yield RowsLost(0, reason, f"record batch {number}: {detail}; it was not read{left}", 0)
            if not is_file:
                return
            number += 1
            continue
        number += 1
        if is_file:
            advance(size * number // reader.num_record_batches - advanced)
            advanced = size * number // reader.num_record_batches
        yield _checked(batch, table, number)
    advance(size - advanced)


def _checked(batch: Any, table: TableReader, number: int) -> Any:
    """The needed columns of a batch, if their buffers are what they say."""
    import pyarrow as pa

    if table.selections is not None:
        roots = set(table.selections) | {path.split(".")[0] for path in table.selections}
        names = batch.schema.names
        columns = [index for index, name in enumerate(names) if name in roots]
        if not columns:
            return RowsWithoutColumns(batch.num_rows)
        batch = pa.RecordBatch.from_arrays(
            [batch.column(index) for index in columns], names=[names[index] for index in columns]
        )
    try:
        for column in batch.columns:
            _binary(column).validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        detail = f"record batch {number - 1}: {problem(error)[1]}; its {batch.num_rows:,} rows were not read"
        return RowsLost(batch.num_rows, "corrupt_file", detail, 0)
    return batch


def _binary(array: Any) -> Any:
    """The same buffers as bytes: whether they are UTF-8 is told value by value later."""
    import pyarrow as pa

    t = pa.types
    if t.is_string(array.type):
        return array.view(pa.binary())
    if t.is_large_string(array.type):
        return array.view(pa.large_binary())
    return array


ARROW = RecordFormat("arrow", (".arrow", ".feather", ".ipc", ".arrows"), read, compressible=False)
