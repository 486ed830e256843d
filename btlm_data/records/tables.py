"""Rows of Arrow tables to documents: what parquet and Arrow files share.

Texts may be strings or bytes of every kind (plain, large, views, dictionaries). Values are turned into Python
strings a slice at a time, cut by their lengths, so that a small table whose rows share long values does not
fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.records.base import MAX_BATCH_RECORDS, ReadRequest
from btlm_data.records.batch import UNNAMED_SOURCE, RawRecord, RecordBatch, Reject
from btlm_data.records.fields import MISSING, is_encodable, joined, lookup, source_name, why_no_text

_UNDECODABLE = object()
_SLICE_ROWS = 256  # of values whose lengths are unknown beforehand, or are short
_SLICE_BYTES = 2**24
_MAX_KNOWN_NAMES = 1000


class RowsLost(msgspec.Struct, frozen=True):
    """Rows that cannot be read: how many, why, and their bytes as stored."""

    num_rows: int
    reason: str
    detail: str
    num_bytes: int


class RowsWithoutColumns(msgspec.Struct, frozen=True):
    """Rows of which no column was read, as none is of use."""

    num_rows: int


class FieldPath(msgspec.Struct, frozen=True):
    """Where a field's value is in a table: columns that may hold it, and the path to read of each."""

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
                    f"{count} columns are called {name!r}, and only one can be meant; "
                    "rename or drop the others",
                )
        return None

    def read(
        self, parts: Iterator[Any | RowsLost | RowsWithoutColumns], first_row: int
    ) -> Iterator[RecordBatch]:
        """Batches of the rows in `parts` (Arrow record batches, or what stands for some). first_row: of the
        stretch, in the file.
        """
        to_skip = self._request.stretch.lines_done
        writer, row = _Writer(self._request, first_row), 0
        for part in parts:
            if isinstance(part, RowsLost):
                if row + part.num_rows > to_skip or not part.num_rows:
                    writer.reject(row, (part.reason, part.detail), part.num_bytes)
                row += part.num_rows
                continue
            begin = min(max(0, to_skip - row), part.num_rows)
            if begin < part.num_rows:
                if self._problem is not None:
                    yield from self._reject_all(writer, part, begin, row)
                else:
                    yield from self._read_part(writer, part, begin, row)
            row += part.num_rows
        batch = writer.batch
        batch.num_lines = batch.end = row
        if batch.num_records:
            batch.final = True
            yield batch

    def _reject_all(self, writer: _Writer, part: Any, begin: int, row: int) -> Iterator[RecordBatch]:
        assert self._problem is not None
        has_rows = not isinstance(part, RowsWithoutColumns)
        for index in range(begin, part.num_rows):
            writer.reject(row + index, self._problem, 0, TableRow(part, index) if has_rows else None)
            if writer.is_full:
                yield writer.take(row + index + 1)

    def _read_part(self, writer: _Writer, part: Any, begin: int, row: int) -> Iterator[RecordBatch]:
        """The rows of an Arrow batch from `begin` on; its row 0 is row `row` of the stretch."""
        texts, sources = _Values(part, self._text), _Values(part, self._source)
        fixed, max_bytes = self._request.file.source, self._request.options.max_record_bytes
        is_small = texts.is_small and sources.is_small and part.nbytes <= _SLICE_BYTES
        while begin < part.num_rows:
            end = part.num_rows
            if not is_small:
                if texts.length(begin) > max_bytes:
                    writer.reject_too_large(row + begin, texts.length(begin), self._record(part, begin))
                    begin += 1
                    continue
                end = _slice_end(texts.lengths + sources.lengths, begin)
            values = texts.get(begin, end)
            names = [fixed] * (end - begin) if fixed is not None else sources.get(begin, end)
            sizes = list(map(len, values)) if all(map(_is_str, values)) else []
            if sizes and max(sizes) * 4 <= max_bytes and texts.is_checked:
                count = writer.room(sizes)
                writer.add(row + begin, values[:count], names[:count], sum(sizes[:count]))
                writer.add_records(self._record(part, index) for index in range(begin, begin + count))
                begin += count
            else:
                begin = self._read_rows(writer, part, values, names, begin, row)
            if writer.is_full:
                yield writer.take(row + begin)

    def _read_rows(
        self, writer: _Writer, part: Any, values: Sequence[Any], names: Sequence[Any], begin: int, row: int
    ) -> int:
        """Rows one by one, until they end or the batch is full; returns the row after the last one."""
        max_bytes, join = self._request.options.max_record_bytes, self._request.options.text_join
        for index, (value, name) in enumerate(zip(values, names, strict=True), begin):
            text, record = joined(value, join), self._record(part, index)
            if not isinstance(text, str):
                writer.reject(row + index, self._no_text(part, index, text), 0, record)
            elif (size := len(text.encode("utf-8", "surrogatepass"))) > max_bytes:
                writer.reject_too_large(row + index, size, record)
            elif not is_encodable(text):
                writer.reject(row + index, ("lone_surrogate", f"column {self._text.name!r}"), size, record)
            else:
                writer.add(row + index, [text], [name], len(text))
                writer.add_records([record])
            if writer.is_full:
                return index + 1
        return begin + len(values)

    def _record(self, part: Any, row: int) -> TableRow | None:
        return TableRow(part, row) if self._request.with_records else None

    def _no_text(self, part: Any, row: int, value: Any) -> tuple[str, str]:
        name = self._text.name
        if value is _UNDECODABLE:
            return "invalid_utf8", f"column {name!r} holds bytes that are not UTF-8"
        if value is None:  # a null, or nothing at all below a null
            value = lookup(_row(part, row, self._text.columns), name)
        if value is MISSING:
            return "missing_text", f"no column {name!r} in this row"
        return why_no_text(value, name, self._names, "column")


class _Writer:
    """Collects rows into batches."""

    def __init__(self, request: ReadRequest, first_row: int) -> None:
        self._request, self._first_row = request, first_row
        self.batch, self._held = request.new_batch(), 0
        self._names: dict[str, str] = {}  # source names seen, so that equal ones are one string

    @property
    def is_full(self) -> bool:
        """Whether the batch is to be given away."""
        return self._held >= self._request.batch_bytes or self.batch.num_records >= MAX_BATCH_RECORDS

    def room(self, sizes: Sequence[int]) -> int:
        """How many of the next documents, of these numbers of characters, go into this batch."""
        rows = MAX_BATCH_RECORDS - self.batch.num_records
        if self._held + sum(sizes) < self._request.batch_bytes and len(sizes) <= rows:
            return len(sizes)
        sums = self._held + np.cumsum(sizes)
        return min(rows, len(sizes), int(np.searchsorted(sums, self._request.batch_bytes)) + 1)

    def take(self, row: int) -> RecordBatch:
        """The batch, which ends before `row`; the next one is empty."""
        batch = self.batch
        batch.num_lines = batch.end = row
        self.batch, self._held = self._request.new_batch(), 0
        return batch

    def add(self, row: int, texts: Sequence[str], names: Sequence[Any], num_chars: int) -> None:
        """Documents of rows from `row` on; num_chars: of all of them."""
        batch = self.batch
        batch.texts += texts
        try:
            batch.sources += [self._names[name] for name in names]
        except (KeyError, TypeError):  # one not seen before, or no string
            batch.sources += [source_name(name, UNNAMED_SOURCE) for name in names]
            if len(self._names) < _MAX_KNOWN_NAMES:
                self._names |= {name: name for name in set(batch.sources[-len(names) :])}
        batch.lines += range(row, row + len(texts))
        batch.offsets += range(self._first_row + row, self._first_row + row + len(texts))
        self._held += num_chars

    def add_records(self, records: Iterable[TableRow | None]) -> None:
        """The whole records of what was added, where they are wanted."""
        if self.batch.records is not None:
            self.batch.records += [record for record in records if record is not None]

    def reject(
        self, row: int, problem: tuple[str, str], num_bytes: int = 0, record: RawRecord | None = None
    ) -> None:
        """A row (or what begins with it) that cannot be read."""
        self.batch.rejects.append(Reject(row, self._first_row + row, *problem, num_bytes))
        if self.batch.rejected_records is not None:
            self.batch.rejected_records.append(record)

    def reject_too_large(self, row: int, num_bytes: int, record: RawRecord | None) -> None:
        """A row whose text is longer than a record may be."""
        most = self._request.options.max_record_bytes
        self.reject(row, ("record_too_large", f"more than {most} bytes"), num_bytes, record)


class TableRow:
    """One row of an Arrow record batch, converted when its fields are requested."""

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
        self._lengths: npt.NDArray[np.int64] | None = None
        kind = self._leaf.type if self._leaf is not None else None
        # Whether the values take no more memory than the batch's buffers.
        self.is_small = not path.columns or (kind is not None and _owns_its_bytes(kind))
        self.is_checked = kind is not None  # its strings were UTF-8
        if kind is not None and _is_dictionary(kind):
            self._shared = strings(self._leaf.dictionary)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of each value, (n,) int64; 0 where they are unknown."""
        if self._lengths is None:
            rows = self._batch.num_rows
            self._lengths = np.zeros(rows, np.int64) if self._leaf is None else byte_lengths(self._leaf)
        return self._lengths

    def length(self, row: int) -> int:
        """Bytes of one value."""
        return int(self.lengths[row])

    def get(self, begin: int, end: int) -> list[Any]:
        """Values of rows [begin, end): a string, None, _UNDECODABLE, or whatever else is there."""
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
    """The array of strings (or bytes) that holds the field in every row; None where it takes a look at each
    row.
    """
    import pyarrow.compute as pc

    if len(path.columns) != 1:
        return None
    column = path.columns[0]
    array = batch.column(batch.schema.names.index(column))
    if column != path.name:
        for key in path.name.split(".")[1:]:
            if not _is_struct(array.type) or array.type.get_field_index(key) < 0:
                return None
            index = array.type.get_field_index(key)
            array = pc.struct_field(array, index) if array.null_count else array.field(index)
    kind = array.type.value_type if _is_dictionary(array.type) else array.type
    return array if _is_stringlike(kind) else None


def _owns_its_bytes(kind: Any) -> bool:
    """Whether rows of this type cannot share the bytes of a value."""
    import pyarrow as pa

    t = pa.types
    texts = t.is_string(kind) or t.is_large_string(kind)
    return bool(texts or t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind))


def _is_str(value: Any) -> bool:
    return type(value) is str


def _is_dictionary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_dictionary(kind))


def _is_stringlike(kind: Any) -> bool:
    import pyarrow as pa

    t = pa.types
    texts = t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)
    binary = t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind)
    return bool(texts or binary or t.is_fixed_size_binary(kind))


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
