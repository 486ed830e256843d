"""Rows of Arrow tables to documents: what parquet and Arrow files share.

Texts may be strings or bytes of every kind (plain, large, views, dictionaries). Values are turned into Python strings a slice at a time, cut by
their lengths, so that a small table whose rows share long values does not fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.records.base import MAX_BATCH_RECORDS, ReadRequest
from btlm_data.records.batch import UNNAMED_SOURCE, RawRecord, RecordBatch, Reject
from btlm_data.records.fields import MISSING, joined, lookup, source_name, why_no_text

_UNDECODABLE = object()
_SLICE_ROWS = 256  # of values whose lengths cannot be told beforehand, or are short
_SLICE_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class RowsLost:
    """Rows that cannot be read: how many, why, and their bytes as stored."""

    num_rows: int
    reason: str
    detail: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class RowsWithoutColumns:
    """Rows of which no column was read, as none is of use."""

    num_rows: int


@dataclass(frozen=True)
class FieldPath:
    """Where a field's value lies in a table: columns that may hold it, and the path to read of each."""

    name: str
    columns: tuple[str, ...]
    selections: tuple[str, ...]


def find_field(schema: Any, name: str) -> FieldPath:
    """Where in a table of this Arrow schema the field is; no columns if it is nowhere."""
    parts = name.split(".")
    columns, selections = [], []
    if parts[0] in schema.names and name:
        depth, kind = 1, schema.field(schema.names.index(parts[0])).type
        while depth < len(parts) and _is_struct(kind) and kind.get_field_index(parts[depth]) >= 0:
            kind = kind.field(kind.get_field_index(parts[depth])).type
            depth += 1
        columns.append(parts[0])
        selections.append(".".join(parts[:depth]))
    if len(parts) > 1 and name in schema.names:
        columns.append(name)
        selections.append(name)
    return FieldPath(name, tuple(columns), tuple(selections))


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


class TableReader:
    """Turns the rows of tables of one schema into batches of documents."""

    def __init__(self, request: ReadRequest, schema: Any) -> None:
        self._request = request
        self._names: list[str] = schema.names
        self._text = find_field(schema, request.fields.text)
        self._source = find_field(schema, request.fields.source if request.file.source is None else "")
        self._problem = self._schema_problem()
        wanted = () if self._problem else (*self._text.selections, *self._source.selections)
        self.selections: list[str] | None = None if request.with_records else list(dict.fromkeys(wanted))

    def _schema_problem(self) -> tuple[str, str] | None:
        """Why no row of such a table can be a document."""
        if not self._text.columns:
            return why_no_text(MISSING, self._text.name, self._names, "column")
        for name in (*self._text.columns, *self._source.columns):
            if (count := self._names.count(name)) > 1:
                return (
                    "duplicate_column",
                    f"{count} columns are called {name!r}, and only one can be meant; rename or drop the others",
                )
        return None

    def read(
        self, parts: Iterator[Any | RowsLost | RowsWithoutColumns], first_row: int
    ) -> Iterator[RecordBatch]:
        """Batches of the rows in `parts` (Arrow record batches, or what stands for some). first_row: of the stretch, in the file."""
        request, to_skip = self._request, self._request.stretch.lines_done
        row, held, batch = 0, 0, request.new_batch()
        max_bytes = request.options.max_record_bytes
        for part in parts:
            if isinstance(part, RowsLost):
                if row + part.num_rows > to_skip or not part.num_rows:
                    _reject(batch, row, first_row, (part.reason, part.detail), part.num_bytes)
                row += part.num_rows
                continue
            skipped = min(max(0, to_skip - row), part.num_rows)
            row += skipped
            for text, source, num_bytes, record in self._rows(part, skipped):
                if isinstance(text, str):
                    batch.texts.append(text)
                    batch.sources.append(source)
                    batch.lines.append(row)
                    batch.offsets.append(first_row + row)
                    if batch.records is not None:
                        batch.records.append(record)
                    held += num_bytes
                else:
                    if num_bytes > max_bytes:
                        text = ("record_too_large", f"more than {max_bytes} bytes")
                    _reject(batch, row, first_row, text, num_bytes, record)
                row += 1
                if held >= request.batch_bytes or batch.num_records >= MAX_BATCH_RECORDS:
                    batch.num_lines = batch.end = row
                    yield batch
                    batch, held = request.new_batch(), 0
        batch.num_lines = batch.end = row
        if batch.num_records:
            batch.final = True
            yield batch

    def _rows(self, part: Any, begin: int) -> Iterator[tuple[str | tuple[str, str], str, int, Any]]:
        """(text or (reason, detail), source name, bytes of the text, record) of each row from `begin` on."""
        if begin == part.num_rows:
            return
        if self._problem or isinstance(part, RowsWithoutColumns):
            assert self._problem is not None
            for row in range(begin, part.num_rows):
                record = TableRow(part, row) if not isinstance(part, RowsWithoutColumns) else None
                yield self._problem, "", 0, record
            return
        texts, sources = _Values(part, self._text), _Values(part, self._source)
        fixed, max_bytes = self._request.file.source, self._request.options.max_record_bytes
        join = self._request.options.text_join
        lengths = texts.lengths + sources.lengths
        while begin < part.num_rows:
            end = _slice_end(lengths, begin)
            too_long = int(texts.lengths[begin]) > max_bytes
            values = [None] if too_long else texts.get(begin, end)
            names = [None] * len(values) if fixed is not None or too_long else sources.get(begin, end)
            for row, (value, name) in enumerate(zip(values, names, strict=True), begin):
                record = TableRow(part, row) if self._request.with_records else None
                size = int(texts.lengths[row])
                text = joined(value, join)
                if isinstance(text, str):
                    size = size or len(text.encode())
                    if size > max_bytes:
                        text = ("record_too_large", "")
                elif too_long:
                    text = ("record_too_large", "")
                else:
                    text, size = self._no_text(part, row, text), 0
                yield text, source_name(name, UNNAMED_SOURCE) if fixed is None else fixed, size, record
            begin += len(values)

    def _no_text(self, part: Any, row: int, value: Any) -> tuple[str, str]:
        name = self._text.name
        if value is _UNDECODABLE:
            return "invalid_utf8", f"column {name!r} holds bytes that are not UTF-8"
        if value is None:  # a null, or nothing at all below a null
            value = lookup(_row(part, row, self._text.columns), name)
        if value is MISSING:
            return "missing_text", f"no column {name!r} in this row"
        return why_no_text(value, name, self._names, "column")


def _reject(
    batch: RecordBatch,
    row: int,
    first_row: int,
    problem: tuple[str, str],
    num_bytes: int = 0,
    record: RawRecord | None = None,
) -> None:
    batch.rejects.append(Reject(row, first_row + row, *problem, num_bytes))
    if batch.rejected_records is not None:
        batch.rejected_records.append(record)


class TableRow:
    """One row of an Arrow record batch, converted when its fields are asked for."""

    __slots__ = ("_batch", "_row")

    def __init__(self, batch: Any, row: int) -> None:
        self._batch, self._row = batch, row

    def fields(self) -> Mapping[str, Any]:
        """Every column of the row."""
        names = self._batch.schema.names
        return _row(self._batch, self._row, [name for name in names if names.count(name) == 1])


_: type[RawRecord] = TableRow


def _row(batch: Any, row: int, names: Sequence[str]) -> dict[str, Any]:
    return {name: _value(batch.column(batch.schema.names.index(name))[row]) for name in names}


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (UnicodeDecodeError, ValueError, OverflowError):
        return _UNDECODABLE


def _slice_end(lengths: npt.NDArray[np.int64], begin: int) -> int:
    """Where a slice from `begin` ends that is neither long in bytes nor in rows; it has one row at least."""
    some = np.cumsum(lengths[begin : begin + _SLICE_ROWS])
    return begin + max(1, int(np.searchsorted(some, _SLICE_BYTES, "right")))


class _Values:
    """The values of a field in one record batch."""

    def __init__(self, batch: Any, path: FieldPath) -> None:
        self._batch, self._path = batch, path
        self._leaf = _leaf(batch, path)
        self._shared: list[Any] | None = None  # of a dictionary
        self.lengths = np.zeros(batch.num_rows, np.int64)
        if self._leaf is not None:
            self.lengths = byte_lengths(self._leaf)
            if _is_dictionary(self._leaf.type):
                self._shared = strings(self._leaf.dictionary)

    def get(self, begin: int, end: int) -> list[Any]:
        """Values of rows [begin, end): a string, None, _UNDECODABLE, or whatever else stands there."""
        if not self._path.columns:
            return [MISSING] * (end - begin)
        if self._leaf is None:
            names = self._path.columns
            return [lookup(_row(self._batch, row, names), self._path.name) for row in range(begin, end)]
        part = self._leaf.slice(begin, end - begin)
        if self._shared is not None:
            shared = self._shared
            return [None if index is None else shared[index] for index in part.indices.to_pylist()]
        return strings(part)


def _leaf(batch: Any, path: FieldPath) -> Any:
    """The array of strings (or bytes) that holds the field in every row; None where it takes a look at each row."""
    import pyarrow.compute as pc

    if len(path.columns) != 1:
        return None
    column = path.columns[0]
    array = batch.column(batch.schema.names.index(column))
    if column != path.name:
        for key in path.name.split(".")[1:]:
            if not _is_struct(array.type) or array.type.get_field_index(key) < 0:
                return None
            array = pc.struct_field(array, array.type.get_field_index(key))
    kind = array.type.value_type if _is_dictionary(array.type) else array.type
    return array if _is_stringlike(kind) else None


def _is_dictionary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_dictionary(kind))


def _is_stringlike(kind: Any) -> bool:
    import pyarrow as pa

    t = pa.types
    texts = t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)
    return bool(texts or t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind))


def byte_lengths(array: Any) -> npt.NDArray[np.int64]:
    """Bytes of each value of an array of strings or bytes, (n,) int64; 0 for nulls."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(array):
        return np.zeros(0, np.int64)
    if _is_dictionary(array.type):
        if not len(array.dictionary):
            return np.zeros(len(array), np.int64)
        shared = byte_lengths(array.dictionary)
        indices = array.indices.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        lengths = shared[indices]
    elif pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        views = np.frombuffer(array.buffers()[1], np.int32).reshape(-1, 4)
        lengths = views[array.offset : array.offset + len(array), 0].astype(np.int64)
    else:
        lengths = pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if array.null_count:
        lengths = np.where(array.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
    result: npt.NDArray[np.int64] = lengths
    return result


def strings(array: Any) -> list[Any]:
    """The values of an array of strings or of bytes in UTF-8; _UNDECODABLE where they are not."""
    import pyarrow as pa

    t = pa.types
    if t.is_string(array.type) or t.is_large_string(array.type) or t.is_string_view(array.type):
        try:
            return array.to_pylist()  # type: ignore[no-any-return]
        except UnicodeDecodeError:
            return [_value(scalar) for scalar in array]
    return [_decoded(value) for value in array.to_pylist()]


def _decoded(value: bytes | None) -> Any:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return _UNDECODABLE
