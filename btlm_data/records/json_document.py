"""JSON in every shape: an object a line, one array of records, one record (pretty-printed or not), or several
of them.

Which it is, the first bytes say. The records of an array are found by their brackets, without parsing the
whole, so a file of any size takes the memory of a batch; a record that is not JSON costs itself only. The
offset of a record is its first byte's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from btlm_data.records import json_lines
from btlm_data.records.base import ReadRequest, RecordFormat
from btlm_data.records.batch import RecordBatch, Reject, too_large
from btlm_data.records.json_decoder import RecordDecoder
from btlm_data.records.json_lines import add_record, add_reject
from btlm_data.records.stream import BOM, ByteStream, open_stream

_LOOK_BYTES = 2**20
_LINE_BYTES = 2**16  # of a line that is parsed to learn what the file is
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_OUTSIDE = re.compile(rb'"|[\[{]++|[\]}]++')
_OUTSIDE_OR_COMMA = re.compile(rb'["\[\]{},]')


def read(request: ReadRequest) -> Iterator[RecordBatch]:
    """Batches of the records of a stretch, whichever shape of JSON the file has."""
    is_first = request.stretch.start == 0 and request.stretch.resume_at == 0
    with open_stream(request) as stream:
        is_document = _is_document(stream.peek(_LOOK_BYTES), request.file.format)
        if is_first and not is_document:
            yield from json_lines.read(request, stream)
    if is_document and request.stretch.start == 0:
        yield from _read_document(request)
    elif not is_document and not is_first:
        yield from json_lines.read(request)


def _is_document(head: bytes, form: str) -> bool:
    """Whether a file is something else than JSON Lines: an array, or records that are spread over lines.

    head: its first bytes. form: in a file that is called JSON Lines, an array must begin with an object to be
    taken for one.
    """
    head = head.removeprefix(BOM).lstrip()
    if head.startswith(b"["):
        return form == "json" or head[1:].lstrip().startswith(b"{")
    lines = [line for line in map(bytes.strip, head[:_LOOK_BYTES].split(b"\n", 20)[:20]) if line]
    if not lines or not lines[0].startswith(b"{") or len(lines[0]) > _LINE_BYTES:
        return False
    if not _is_unfinished(lines[0]):
        return False  # a whole record, or a bad one: lines either way
    return not any(line.startswith(b"{") and not _is_unfinished(line) for line in lines[1:])


def _is_unfinished(line: bytes) -> bool:
    """Whether a line is the beginning of a value that ends on another line."""
    depth, position, in_string = 0, 0, False
    while position < len(line):
        if in_string:
            end = _IN_STRING.match(line, position)
            position = end.end() if end else position
            if position >= len(line) or line[position : position + 1] != b'"':
                return False  # a string cannot continue after a newline: the line is damaged
            in_string, position = False, position + 1
            continue
        match = _OUTSIDE.search(line, position)
        if match is None:
            break
        position = match.end()
        in_string = match[0] == b'"'
        if not in_string:
            depth += len(match[0]) if match[0][:1] in b"[{" else -len(match[0])
    return depth > 0


class _Element(msgspec.Struct):
    """A record's bytes; num_bytes: of the record, of which `data` has none if it is too long."""

    data: bytes
    offset: int
    num_bytes: int


class _Splitter:
    """Finds the records in pieces of a document: objects that stand alone, and the elements of arrays."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = b""
        self._base = 0  # offset of the buffer in the document
        self._scan = 0  # how far the buffer has been looked at
        self._start = 0  # where in the buffer the record begins (or what is between two records)
        self._dropped = 0  # bytes of the record that are no longer in the buffer
        self._depth, self._array, self._in_string = 0, False, False

    @property
    def held_bytes(self) -> int:
        """Bytes of the unfinished record that are held."""
        return len(self._buffer) - self._start

    @property
    def rest(self) -> tuple[bytes, int]:
        """What is after the last record, and how many bytes of it were dropped."""
        return self._buffer[self._start :], self._dropped

    @property
    def position(self) -> int:
        """Offset in the document of `rest`."""
        return self._base + self._start - self._dropped

    @property
    def is_open(self) -> bool:
        """Whether an array or a record has begun and not ended."""
        return self._array or self._depth > 0 or self._in_string

    def feed(self, piece: bytes) -> Iterator[_Element]:
        """The records that end in `piece`."""
        if self._dropped + self._scan - self._start > self._max_bytes:
            self._dropped += self._scan - self._start
            self._start = self._scan
        self._base += self._start
        self._buffer, self._scan = self._buffer[self._start :] + piece, self._scan - self._start
        self._start = 0
        buffer, length = self._buffer, len(self._buffer)
        while self._scan < length:
            if self._in_string:
                match = _IN_STRING.match(buffer, self._scan)
                self._scan = match.end() if match else self._scan
                if self._scan >= length or buffer[self._scan] != 34:
                    return  # the string continues, or its last byte so far is a backslash
                self._scan += 1
                self._in_string = False
                continue
            top = 1 if self._array else 0
            mark = (_OUTSIDE_OR_COMMA if self._depth <= top else _OUTSIDE).search(buffer, self._scan)
            if mark is None:
                self._scan = length
                return
            depth = self._depth + (len(mark[0]) if mark[0][:1] in b"[{" else -len(mark[0]))
            if len(mark[0]) > 1 and depth > top:  # many brackets, all of them inside the record
                self._depth, self._scan = depth, mark.end()
                continue
            character, end = mark[0][:1], mark.start() + 1
            self._scan = end
            if character == b'"':
                self._in_string = True
            elif character == b",":
                yield from self._element(mark.start(), end)
            elif character in b"[{":
                if character == b"[" and self._depth == 0:
                    yield from self._element(mark.start(), end)  # what is before an array
                    self._array = True
                elif self._depth == 0:
                    yield from self._element(mark.start(), mark.start())
                self._depth += 1
            else:
                self._depth = max(0, self._depth - 1)
                if self._depth == 0 and self._array:
                    yield from self._element(mark.start(), end)
                    self._array = False
                elif self._depth == 0:
                    yield from self._element(end, end)

    def _element(self, end: int, next_start: int) -> Iterator[_Element]:
        """The record that ends at `end` of the buffer, unless nothing is there."""
        data = self._buffer[self._start : end]
        offset, dropped = self._base + self._start - self._dropped, self._dropped
        self._start, self._dropped = next_start, 0
        stripped = data.lstrip()
        if dropped or len(stripped) > self._max_bytes:
            yield _Element(b"", offset, dropped + len(data))
        elif stripped.removeprefix(BOM).strip():
            yield _Element(stripped.rstrip(), offset + len(data) - len(stripped), len(stripped.rstrip()))


def _read_document(request: ReadRequest) -> Iterator[RecordBatch]:
    decoder, max_bytes = RecordDecoder(request), request.options.max_record_bytes
    resume_at, number = request.stretch.resume_at, 0
    batch, held = request.new_batch(), 0
    with open_stream(request) as stream:
        splitter = _Splitter(max_bytes)
        while True:
            piece = _more(stream, splitter.held_bytes)
            if not piece:
                break
            for element in splitter.feed(piece):
                end = element.offset + element.num_bytes
                if end > resume_at:
                    if element.data:
                        add_record(batch, decoder, element.data, number, element.offset, max_bytes)
                    else:
                        add_reject(batch, too_large(number, element.offset, element.num_bytes, max_bytes))
                    held += element.num_bytes
                number += 1
                if held >= request.batch_bytes:
                    batch.num_lines, batch.end = number, end
                    yield batch
                    batch, held = request.new_batch(), 0
        rest, dropped = splitter.rest
        damage = stream.damage
    lost = len(rest.strip()) + dropped
    if lost or damage is not None or splitter.is_open:
        reason, detail, stored = "truncated_file", "the JSON document ends before it is closed", 0
        if damage is not None:
            reason, detail, stored = damage.reason, damage.detail, damage.stored_bytes
        elif not splitter.is_open:
            reason, detail = "corrupt_file", "something after the JSON document is not JSON"
        if lost:
            detail += f"; {lost:,} bytes of an unfinished record were dropped"
        add_reject(batch, Reject(number, splitter.position, reason, detail, stored + lost))
        number += bool(lost)
    if batch.num_records:
        batch.num_lines, batch.end, batch.final = number, splitter.position + lost, True
        yield batch


def _more(stream: ByteStream, held: int) -> bytes:
    """The next bytes, at least as many as are held of an unfinished record, so that a long one is not copied
    for each piece.
    """
    parts, size = [], 0
    while size <= held and (piece := stream.read()):
        parts.append(piece)
        size += len(piece)
    return b"".join(parts)


JSON_LINES = RecordFormat("jsonl", (".jsonl", ".ndjson", ".jsonlines"), read, divisible=True)
JSON_DOCUMENT = RecordFormat(
    "json",
    (".json",),
    read,
    divisible=True,
    in_words=lambda _: "an array of records, one record, or a record a line",
)
