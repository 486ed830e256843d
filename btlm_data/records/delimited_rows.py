"""Rows of CSV and TSV as programs really write them.

RFC 4180 is read by Python's csv module. Besides: the first line may be Excel's `sep=;`; lines that begin
with `#` may be above the header, and spaces after its separators (then after those of rows too); lines may end in a
carriage return alone; quotes inside quoted fields may be escaped by a backslash (Spark, MySQL) instead of
being doubled; in TSV a quote at the beginning of a field need not open anything, as the format has no quoting
(https://www.iana.org/assignments/media-types/text/tab-separated-values). A quote that is never closed would
take all rows after it into one field: its line is then read as it is.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from btlm_data.records.base import WHOLE, ReadRequest
from btlm_data.records.batch import Reject
from btlm_data.records.lines import LINES, OLD_MAC_LINES, Chunk, chunks
from btlm_data.records.stream import BOM, ByteStream

HEAD_BYTES = 2**20
MAX_FIELD_CHARS = 2**25  # the csv module takes four bytes for each while it reads a field
_SEPARATORS = ",\t;|"
_SEP_LINE = re.compile(r"sep=([^\r\n\"])\r?\n?")
_BACKSLASHED = re.compile(rb'\\"[^",;\t|\r\n]')
_DOUBLED = re.compile(rb'[^",;\t|\r\n]""[^",;\t|\r\n]')
_ESCAPED_QUOTE = re.compile(r'(?<!\\)((?:\\\\)*)\\"')
_QUOTED_FIELD = re.compile(r'"(?:[^"]|"")*"')


class Row(msgspec.Struct, frozen=True):
    """A row, or what is wrong with it.

    line, offset: where it begins; num_lines, num_bytes: what it takes of the file.
    """

    fields: list[str]
    error: str
    line: int
    offset: int
    num_lines: int
    num_bytes: int


class _Line(msgspec.Struct, frozen=True):
    """A physical line, decoded, and the byte after it; without a text where something was lost there."""

    text: str | None
    end: int
    too_long: int = 0
    problem: Reject | None = None


class DelimitedFile:
    """The header and the rows of a file. header: names of the columns; delimiter: what separates them."""

    def __init__(self, request: ReadRequest, stream: ByteStream, default: str, wanted: str) -> None:
        """default: the separator where the header does not tell. wanted: the column that it should have."""
        csv.field_size_limit(MAX_FIELD_CHARS)
        head = stream.peek(HEAD_BYTES)
        borders = OLD_MAC_LINES if b"\r" in head and b"\n" not in head else LINES
        self._is_backslashed = _BACKSLASHED.search(head) is not None and _DOUBLED.search(head) is None
        self._source = _physical(chunks(replace(request, stretch=WHOLE), borders, stream))
        self._waiting: deque[_Line] = deque()
        self._taken: list[_Line] = []  # of the row that is being read
        self.end = 0  # the byte after the last line taken
        self.num_lines = 0  # lines taken so far
        self.lost: _Line | None = None  # set where something could not be read after the last row
        self._has_spaces = False  # whether a space stands between a separator and what it separates
        self.header, self.delimiter = self._read_header(default, wanted)

    def rows(self) -> Iterator[Row]:
        """Every row below the header. `lost` is set after a row behind which something is missing."""
        while self._peek() is not None:
            self._taken = []
            line, offset = self.num_lines, self.end
            try:
                fields, error = self._next_row(), ""
            except csv.Error as problem:
                fields, error = [], str(problem)
            if self.lost is None and self._has_stray_quote(fields, error):
                fields, error = self._first_line_alone()
            yield Row(fields, error, line, offset, len(self._taken), self.end - offset)

    def __iter__(self) -> DelimitedFile:
        return self

    def __next__(self) -> str:
        """The next line of a row, for the csv module. Raises csv.Error where the row is interrupted."""
        line = self._take()
        if line is None:
            raise StopIteration
        if line.text is None:
            self.lost = line
            raise csv.Error("interrupted")
        return line.text

    def _next_row(self) -> list[str]:
        if self.delimiter == "\t" and (fields := self._tab_separated()) is not None:
            return fields
        is_strict = self.delimiter == "\t"
        reader = csv.reader(
            self, delimiter=self.delimiter, strict=is_strict, skipinitialspace=self._has_spaces
        )
        return next(reader, [])

    def _tab_separated(self) -> list[str] | None:
        """The next row where it is one line; None: a quoted field continues after it."""
        line = self._peek()
        if line is None or line.text is None:
            return None
        fields = line.text.rstrip("\r\n").split("\t")
        opened = [field for field in fields if field.startswith('"')]
        if not all(_QUOTED_FIELD.fullmatch(field) for field in opened):
            return None
        self._take()
        return [field[1:-1].replace('""', '"') if field[:1] == '"' else field for field in fields]

    def _has_stray_quote(self, fields: list[str], error: str) -> bool:
        """Whether a quote that opens nothing has led the csv module on to other rows.

        In TSV that is so where a quoted field is not well closed, or the row has too few or too many fields;
        in CSV, where text has commas, only where the quote is never closed.
        """
        if self.delimiter == "\t":
            return bool(error) or (len(self._taken) > 1 and len(fields) != len(self.header))
        if len(self._taken) < 2 or self._peek() is not None:
            return bool(error) and len(self._taken) > 1
        return bool(error) or sum((line.text or "").count('"') for line in self._taken) % 2 == 1

    def _first_line_alone(self) -> tuple[list[str], str]:
        """Read the first line of the row as it is, quotes and all, and give the others back."""
        first, *others = self._taken
        self._waiting.extendleft(reversed(others))
        self._taken = [first]
        self.num_lines -= len(others)
        self.end = first.end
        assert first.text is not None
        fields = first.text.rstrip("\r\n").split(self.delimiter)
        return fields, "" if len(fields) == len(self.header) else "a quote is opened and never closed"

    def _read_header(self, default: str, wanted: str) -> tuple[list[str], str]:
        first = self._header_line()
        if (named := _SEP_LINE.fullmatch(first)) is not None:
            default, first = named[1], self._header_line()
        while True:
            names = _names(first, default)
            for delimiter, header in names.items():
                if wanted in header or wanted.split(".")[0] in header:
                    return header, delimiter
                stripped = [name.strip(" ") for name in header]
                if wanted in stripped and delimiter != "\t":
                    self._has_spaces = True
                    return stripped, delimiter
            if not first.startswith("#") or (following := self._header_line()) == "":
                return names[default], default
            first = following

    def _header_line(self) -> str:
        try:
            return next(self, "")
        except csv.Error:
            return ""

    def _peek(self, ahead: int = 0) -> _Line | None:
        while len(self._waiting) <= ahead:
            line = next(self._source, None)
            if line is None:
                return None
            if self._is_backslashed and line.text is not None:
                line = replace(line, text=_ESCAPED_QUOTE.sub(r'\1""', line.text))
            self._waiting.append(line)
        return self._waiting[ahead]

    def _take(self) -> _Line | None:
        line = self._peek()
        if line is not None:
            self._waiting.popleft()
            self._taken.append(line)
            self.end = line.end
            self.num_lines += 1
        return line


def _names(line: str, default: str) -> dict[str, list[str]]:
    """The names of the columns in a header line for each separator, `default` first."""
    names: dict[str, list[str]] = {}
    for delimiter in (default, *_SEPARATORS):
        try:
            names[delimiter] = next(csv.reader([line[:HEAD_BYTES]], delimiter=delimiter), [])
        except csv.Error:
            names[delimiter] = []
    return names


def _physical(pieces: Iterator[Chunk]) -> Iterator[_Line]:
    for chunk in pieces:
        start = 0
        for end in chunk.ends:
            line = chunk.data[start:end]
            if chunk.offset + start == 0:
                line = line.removeprefix(BOM)
            if line[-1:] == b"\r":
                line = line[:-1] + b"\n"
            yield _Line(line.decode("utf-8", "surrogateescape"), chunk.offset + end)
            start = end
        chunk.data = b""
        if chunk.too_long:
            yield _Line(None, chunk.end, too_long=chunk.too_long)
        if chunk.damage is not None:
            damage, lost = chunk.damage, len(chunk.tail)
            detail = damage.detail + (f"; {lost:,} bytes of an unfinished row were dropped" if lost else "")
            problem = Reject(0, chunk.offset + chunk.cut, damage.reason, detail, damage.stored_bytes + lost)
            yield _Line(None, chunk.end, problem=problem)
