"""CSV and TSV with a header line, one column of which holds the text (RFC 4180, read by Python's csv module).

The separator is the one with which the header has a column of the text field's name: a comma, tab, semicolon
or bar; by default a comma for .csv and a tab for .tsv. Rows may span lines inside quotes. A row of another
number of fields than the header is rejected, as its text is likely cut. The offset of a record is that of its
row's first byte.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from btlm_data.records.base import MAX_BATCH_RECORDS, WHOLE, ReadRequest, RecordFormat
from btlm_data.records.batch import UNNAMED_SOURCE, RecordBatch, Reject, too_large
from btlm_data.records.fields import MISSING, is_encodable, lookup, source_name, why_no_text
from btlm_data.records.json_lines import add_reject
from btlm_data.records.lines import chunks
from btlm_data.records.stream import BOM

_MAX_HEADER_BYTES = 2**20
_MAX_FIELD_CHARS = 2**25  # the csv module takes four bytes for each while it reads a field


class DelimitedRow:
    """A row, as a mapping from the header's names."""

    __slots__ = ("_header", "_row")

    def __init__(self, header: list[str], row: list[str]) -> None:
        self._header, self._row = header, row

    def fields(self) -> dict[str, str]:
        """Every column."""
        return dict(zip(self._header, self._row, strict=False))


class _Lines:
    """Physical lines of a file as the csv module wants them; knows what it has taken."""

    def __init__(self, request: ReadRequest) -> None:
        self._chunks = chunks(replace(request, stretch=WHOLE))
        self.end = 0  # the byte behind the last line taken
        self.num_lines = 0  # lines taken so far
        self.too_long = 0  # bytes of a line that was dropped behind the last one
        self.problem: Reject | None = None
        self._taken = iter(self._lines())

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line, self.end = next(self._taken)
        self.num_lines += 1
        if line is None:
            raise csv.Error("interrupted")  # the row that has begun ends here
        return line

    def _lines(self) -> Iterator[tuple[str | None, int]]:
        for chunk in self._chunks:
            start = 0
            for end in chunk.ends:
                line = chunk.data[start:end]
                if chunk.offset + start == 0:
                    line = line.removeprefix(BOM)
                yield line.decode("utf-8", "surrogateescape"), chunk.offset + end
                start = end
            chunk.data = b""
            if chunk.too_long:
                self.too_long = chunk.too_long
                yield None, chunk.end
            if chunk.damage is not None:
                damage, lost = chunk.damage, len(chunk.tail)
                detail = f"{damage.detail}; {lost:,} bytes of an unfinished row were dropped"
                self.problem = Reject(
                    0, chunk.offset + chunk.cut, damage.reason, detail, damage.stored_bytes + lost
                )
                yield None, chunk.end


def _read(request: ReadRequest, default: str) -> Iterator[RecordBatch]:
    max_bytes = request.options.max_record_bytes
    csv.field_size_limit(_MAX_FIELD_CHARS)
    lines = _Lines(request)
    header, delimiter = _header(lines, request, default)
    header_problem = _header_problem(header, request)
    rows = csv.reader(lines, delimiter=delimiter)
    batch, held, number = request.new_batch(), 0, 0
    resume_at = request.stretch.resume_at
    while True:
        offset, line = lines.end, lines.num_lines
        row, error = _next_row(rows)
        if row is None and not error:
            break
        size = lines.end - offset
        if lines.problem is not None or lines.too_long:
            _add_loss(batch, lines, line, offset, max_bytes)
        elif offset >= resume_at and (row or error):
            _add(batch, request, header, header_problem, row or [], error, line, offset, size)
            held += size
        number = lines.num_lines
        if held >= request.batch_bytes or batch.num_records >= MAX_BATCH_RECORDS:
            batch.num_lines, batch.end = number, lines.end
            yield batch
            batch, held = request.new_batch(), 0
    if batch.num_records:
        batch.num_lines, batch.end, batch.final = number, lines.end, True
        yield batch


def _header(lines: _Lines, request: ReadRequest, default: str) -> tuple[list[str], str]:
    """The names of the columns, and the separator."""
    try:
        first = next(lines, "")
    except csv.Error:
        first = ""
    names: dict[str, list[str]] = {}
    for delimiter in (default, *",\t;|"):
        try:
            names[delimiter] = next(csv.reader([first[:_MAX_HEADER_BYTES]], delimiter=delimiter), [])
        except csv.Error:
            names[delimiter] = []
    for delimiter, header in names.items():
        if request.fields.text in header or request.fields.text.split(".")[0] in header:
            return header, delimiter
    return names[default], default


def _header_problem(header: list[str], request: ReadRequest) -> tuple[str, str] | None:
    name = request.fields.text
    columns = [column for column in (name, name.split(".")[0]) if column in header]
    if not columns:
        return why_no_text(MISSING, name, header, "column")
    if (count := header.count(columns[0])) > 1:
        return "duplicate_column", f"{count} columns are called {columns[0]!r}, and only one can be meant"
    return None


def _next_row(rows: Any) -> tuple[list[str] | None, str]:
    """The next row, or (None, "") at the end, or (None, what is wrong with it)."""
    try:
        return next(rows, None), ""
    except csv.Error as error:
        return None, str(error)


def _add(
    batch: RecordBatch,
    request: ReadRequest,
    header: list[str],
    header_problem: tuple[str, str] | None,
    row: list[str],
    error: str,
    line: int,
    offset: int,
    size: int,
) -> None:
    record = DelimitedRow(header, row)
    problem = header_problem
    text: Any = None
    if error:
        problem = ("malformed_row", error)
    elif size > request.options.max_record_bytes:
        problem = ("record_too_large", f"more than {request.options.max_record_bytes} bytes")
    elif len(row) != len(header) and problem is None:
        problem = (
            "malformed_row",
            f"{len(row)} fields where the header has {len(header)}; is a quote missing?",
        )
    elif problem is None:
        fields = record.fields()
        text = lookup(fields, request.fields.text)
        if not isinstance(text, str):
            problem = why_no_text(text, request.fields.text, header, "column")
        elif not is_encodable(text):
            problem = ("invalid_utf8", "bytes that are not UTF-8")
        else:
            name = (
                lookup(fields, request.fields.source) if request.file.source is None else request.file.source
            )
            batch.texts.append(text)
            batch.sources.append(source_name(name, UNNAMED_SOURCE))
            batch.lines.append(line)
            batch.offsets.append(offset)
            if batch.records is not None:
                batch.records.append(record)
            return
    assert problem is not None
    batch.rejects.append(Reject(line, offset, *problem, size))
    if batch.rejected_records is not None:
        batch.rejected_records.append(record)


def _add_loss(batch: RecordBatch, lines: _Lines, line: int, offset: int, max_bytes: int) -> None:
    """What could not be read behind the last line taken."""
    if lines.too_long:
        add_reject(batch, too_large(line, offset, lines.too_long, max_bytes))
    if lines.problem is not None:
        problem = lines.problem
        add_reject(batch, Reject(line, problem.offset, problem.reason, problem.detail, problem.num_bytes))
    lines.too_long, lines.problem = 0, None


def _read_csv(request: ReadRequest) -> Iterator[RecordBatch]:
    return _read(request, ",")


def _read_tsv(request: ReadRequest) -> Iterator[RecordBatch]:
    return _read(request, "\t")


CSV = RecordFormat("csv", (".csv",), _read_csv)
TSV = RecordFormat("tsv", (".tsv", ".tab"), _read_tsv)
