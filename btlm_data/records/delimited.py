"""CSV and TSV with a header line, one column of which holds the text (RFC 4180, read by Python's csv module).

The separator is the one with which the header has a column of the text field's name: a comma, tab, semicolon
or bar; by default a comma for .csv and a tab for .tsv. Rows may span lines inside quotes. A row of another
number of fields than the header is rejected, as its text is likely cut. The offset of a record is that of its
row's first byte. What programs write besides the standard is the subject of `delimited_rows.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from btlm_data.records.base import MAX_BATCH_RECORDS, WHOLE, ReadRequest, RecordFormat
from btlm_data.records.batch import UNNAMED_SOURCE, RecordBatch, Reject, too_large
from btlm_data.records.delimited_rows import DelimitedFile, Row
from btlm_data.records.fields import MISSING, is_encodable, lookup, source_name, why_no_text
from btlm_data.records.json_lines import add_reject
from btlm_data.records.stream import open_stream


class DelimitedRow:
    """A row, as a mapping from the header's names."""

    __slots__ = ("_header", "_row")

    def __init__(self, header: list[str], row: list[str]) -> None:
        self._header, self._row = header, row

    def fields(self) -> dict[str, str]:
        """Every column."""
        return dict(zip(self._header, self._row, strict=False))


def _read(request: ReadRequest, default: str) -> Iterator[RecordBatch]:
    with open_stream(replace(request, stretch=WHOLE)) as stream:
        file = DelimitedFile(request, stream, default, request.fields.text)
        reader = _RowReader(request, file.header, _header_problem(file.header, request))
        batch, held = request.new_batch(), 0
        if file.lost is not None:
            _add_loss(batch, file, 0, 0, request.options.max_record_bytes)
        for row in file.rows():
            if file.lost is not None:
                _add_loss(batch, file, row.line, row.offset, request.options.max_record_bytes)
            elif row.offset >= request.stretch.resume_at and (row.fields or row.error):
                reader.add(batch, row)
                held += row.num_bytes
            if held >= request.batch_bytes or batch.num_records >= MAX_BATCH_RECORDS:
                batch.num_lines, batch.end = file.num_lines, file.end
                yield batch
                batch, held = request.new_batch(), 0
        if batch.num_records:
            batch.num_lines, batch.end, batch.final = file.num_lines, file.end, True
            yield batch


def _header_problem(header: list[str], request: ReadRequest) -> tuple[str, str] | None:
    name = request.fields.text
    columns = [column for column in (name, name.split(".")[0]) if column in header]
    if not columns:
        return why_no_text(MISSING, name, header, "column")
    if (count := header.count(columns[0])) > 1:
        words = (
            f"{count} columns are called {columns[0]!r}, and only one can be meant; rename or drop the others"
        )
        return "duplicate_column", words
    return None


class _RowReader(msgspec.Struct, frozen=True):
    """Turns rows into documents and rejects. header_problem: why no row can have a text."""

    request: ReadRequest
    header: list[str]
    header_problem: tuple[str, str] | None

    def add(self, batch: RecordBatch, row: Row) -> None:
        """Add one row."""
        record = DelimitedRow(self.header, row.fields)
        text_or_fault = self._problem(row) or self._text(record)
        if isinstance(text_or_fault, tuple):
            batch.rejects.append(Reject(row.line, row.offset, *text_or_fault, row.num_bytes))
            if batch.rejected_records is not None:
                batch.rejected_records.append(record)
            return
        name = self.request.file.source
        if name is None:
            name = source_name(lookup(record.fields(), self.request.fields.source), UNNAMED_SOURCE)
        batch.texts.append(text_or_fault)
        batch.sources.append(name)
        batch.lines.append(row.line)
        batch.offsets.append(row.offset)
        if batch.records is not None:
            batch.records.append(record)

    def _problem(self, row: Row) -> tuple[str, str] | None:
        """Reason and detail where the row itself is bad."""
        max_bytes = self.request.options.max_record_bytes
        if row.error:
            return "malformed_row", row.error
        if row.num_bytes > max_bytes:
            return "record_too_large", f"more than {max_bytes} bytes"
        if self.header_problem is not None:
            return self.header_problem
        if row.fields == self.header:
            return "malformed_row", "the header once more"
        if len(row.fields) != len(self.header):
            spans = f", over {row.num_lines:,} lines" if row.num_lines > 1 else ""
            return (
                "malformed_row",
                f"{len(row.fields)} fields{spans} where the header has {len(self.header)}; is a quote missing?",
            )
        return None

    def _text(self, record: DelimitedRow) -> str | tuple[str, str]:
        text = lookup(record.fields(), self.request.fields.text)
        if not isinstance(text, str):
            return why_no_text(text, self.request.fields.text, self.header, "column")
        return text if is_encodable(text) else ("invalid_utf8", "bytes that are not UTF-8")


def _add_loss(batch: RecordBatch, file: DelimitedFile, line: int, offset: int, max_bytes: int) -> None:
    """What could not be read after the last row taken."""
    lost = file.lost
    assert lost is not None
    if lost.too_long:
        add_reject(batch, too_large(line, offset, lost.too_long, max_bytes))
    if (problem := lost.problem) is not None:
        add_reject(batch, Reject(line, problem.offset, problem.reason, problem.detail, problem.num_bytes))
    file.lost = None


def _read_csv(request: ReadRequest) -> Iterator[RecordBatch]:
    return _read(request, ",")


def _read_tsv(request: ReadRequest) -> Iterator[RecordBatch]:
    return _read(request, "\t")


CSV = RecordFormat("csv", (".csv",), _read_csv)
TSV = RecordFormat("tsv", (".tsv", ".tab"), _read_tsv)
