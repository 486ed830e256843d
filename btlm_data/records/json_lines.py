"""JSON Lines: a record a line, split at newlines (byte 10). Blank lines are no records; a byte order mark
before a line is skipped.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from btlm_data.records.base import ReadRequest
from btlm_data.records.batch import RecordBatch, Reject, too_large
from btlm_data.records.json_decoder import JsonRecord, RecordDecoder, objects_in
from btlm_data.records.lines import Chunk, chunks
from btlm_data.records.stream import BOM, ByteStream

_GROUP_LINES = 64


def read(request: ReadRequest, opened: ByteStream | None = None) -> Iterator[RecordBatch]:
    """Batches of the records of a stretch. opened: the file's stream at its beginning, if it is open
    already.
    """
    reader = LineReader(request)
    for chunk in chunks(request, opened=opened):
        yield reader.batch(chunk)


class LineReader:
    """Turns chunks of lines into batches; knows how many lines are done."""

    def __init__(self, request: ReadRequest) -> None:
        self._request = request
        self._decoder = RecordDecoder(request)
        self._max_bytes = request.options.max_record_bytes
        self._lines_done = request.stretch.lines_done

    def batch(self, chunk: Chunk) -> RecordBatch:
        """The records of a chunk, and what follows them there: a record that is too long, or damage."""
        batch = self._request.new_batch()
        if chunk.cut:
            self._decode(batch, chunk)
        position = chunk.offset + chunk.cut
        chunk.data = b""  # not to be held while the batch is worked on
        if chunk.too_long:
            add_reject(batch, too_large(self._lines_done, position, chunk.too_long, self._max_bytes))
            self._lines_done += 1
        if chunk.damage is not None:
            self._end_at_damage(batch, chunk, position)
        batch.num_lines, batch.end, batch.final = self._lines_done, chunk.end, chunk.is_last
        return batch

    def _end_at_damage(self, batch: RecordBatch, chunk: Chunk, position: int) -> None:
        """A record that damage has cut is used if it is whole, as it is where only its newline is missing."""
        damage, tail = chunk.damage, chunk.tail
        assert damage is not None
        detail, lost, lines_lost = damage.detail, damage.stored_bytes, 0
        if tail.removeprefix(BOM).strip():
            text, source_or_fault = self._decoder.decode_line(tail)
            if text is None:
                detail += f"; {len(tail):,} bytes of an unfinished record were dropped"
                lost, lines_lost = lost + len(tail), 1
            else:
                assert isinstance(source_or_fault, str)
                _add(batch, text, source_or_fault, self._lines_done, position)
                if batch.records is not None:
                    batch.records.append(JsonRecord(tail, 0, len(tail)))
                self._lines_done += 1
        add_reject(batch, Reject(self._lines_done, position, damage.reason, detail, lost))
        self._lines_done += lines_lost

    def _decode(self, batch: RecordBatch, chunk: Chunk) -> None:
        """Add the documents and rejects of the whole lines of a chunk."""
        data = chunk.data
        if chunk.offset == 0 and data.startswith(BOM):
            data = b"   " + data[3:]  # white space to JSON, and the offsets stay right
        ends = chunk.ends
        if self._request.offsets is not None:
            for number in self._lines_with(self._request.offsets, chunk):
                begin = ends[number - 1] if number else 0
                self._decode_line(batch, data, begin, ends[number], chunk.offset, number)
        elif not self._decode_good(batch, data, ends, 0, len(ends), chunk.offset):
            # A bad line among them: keep all but its neighbours on the fast path.
            for first in range(0, len(ends), _GROUP_LINES):
                last = min(first + _GROUP_LINES, len(ends))
                if not self._decode_good(batch, data, ends, first, last, chunk.offset):
                    for number in range(first, last):
                        begin = ends[number - 1] if number else 0
                        self._decode_line(batch, data, begin, ends[number], chunk.offset, number)
        self._lines_done += len(ends)

    @staticmethod
    def _lines_with(offsets: Sequence[int], chunk: Chunk) -> list[int]:
        """The lines of a chunk in which any of these bytes is, in order."""
        first, last = (bisect_left(offsets, chunk.offset + at) for at in (0, chunk.cut))
        return sorted({bisect_right(chunk.ends, offset - chunk.offset) for offset in offsets[first:last]})

    def _decode_good(
        self, batch: RecordBatch, data: bytes, ends: Sequence[int], first: int, last: int, offset: int
    ) -> bool:
        """Add lines [first, last) if every one is plainly good; whether they were."""
        begin, end = ends[first - 1] if first else 0, ends[last - 1]
        view = memoryview(data)[begin:end]
        if (
            len(view) > self._max_bytes
            or not _are_objects(data, begin, ends[first:last])
            or not _is_utf8(view)
        ):
            return False
        good = self._decoder.decode_lines(view, last - first)
        if good is None:
            return False
        starts = [begin, *ends[first : last - 1]]
        batch.texts += good[0]
        batch.sources += good[1]
        batch.lines += range(self._lines_done + first, self._lines_done + last)
        batch.offsets += [offset + start for start in starts]
        if batch.records is not None:
            batch.records += map(JsonRecord, [data] * (last - first), starts, ends[first:last])
        return True

    def _decode_line(
        self, batch: RecordBatch, data: bytes, begin: int, end: int, offset: int, number: int
    ) -> None:
        """Add one line that is not plainly good."""
        line = data[begin:end]
        add_record(batch, self._decoder, line, self._lines_done + number, offset + begin, self._max_bytes)


def add_record(
    batch: RecordBatch, decoder: RecordDecoder, record: bytes, line: int, offset: int, max_bytes: int
) -> None:
    """Add one record of JSON, as a document or a reject; a blank one is none.

    Several objects in its place (files joined without a newline between them) are several documents, and the
    zero bytes that a disk or a download leaves where it did not finish are damage around it.
    """
    if len(record) > max_bytes:
        add_reject(batch, too_large(line, offset, len(record), max_bytes))
        return
    if record[:1] == b"\0" or record[-2:].rstrip()[-1:] == b"\0":
        zeros = len(record) - len(rest := record.strip(b"\0\r\n"))
        detail = f"{zeros:,} zero bytes, as a disk or a download leaves them that did not finish"
        add_reject(batch, Reject(line, offset, "corrupt_file", detail, zeros))
        offset, record = offset + record.find(rest), rest
    if record.removeprefix(BOM).strip():
        text, source_or_fault = decoder.decode_line(record)
        if text is None and source_or_fault[0] == "invalid_json" and (parts := objects_in(record)):
            for begin, end in parts:
                add_record(batch, decoder, record[begin:end], line, offset + begin, max_bytes)
        elif text is None:
            raw = JsonRecord(record, 0, len(record)) if batch.records is not None else None
            add_reject(batch, Reject(line, offset, source_or_fault[0], source_or_fault[1], len(record)), raw)
        else:
            assert isinstance(source_or_fault, str)
            _add(batch, text, source_or_fault, line, offset)
            if batch.records is not None:
                batch.records.append(JsonRecord(record, 0, len(record)))


def add_reject(batch: RecordBatch, reject: Reject, record: JsonRecord | None = None) -> None:
    """Add a reject, with its record where records are wanted."""
    batch.rejects.append(reject)
    if batch.rejected_records is not None:
        batch.rejected_records.append(record)


def _add(batch: RecordBatch, text: str, source: str, line: int, offset: int) -> None:
    batch.texts.append(text)
    batch.sources.append(source)
    batch.lines.append(line)
    batch.offsets.append(offset)


def _are_objects(data: bytes, begin: int, ends: Sequence[int]) -> bool:
    """Whether each line (the first from `begin`, the others after one another's `ends`) begins with { and
    ends with }.

    Then as many values as lines mean one value a line. msgspec takes two values on one line, and one value on
    two; such lines can make up for each other and for blank ones. But in JSON no } is ever followed by a {,
    so each line break here is between two values.
    """
    characters = np.frombuffer(data, np.uint8)
    starts, last = np.array([begin, *ends[:-1]]), np.array(ends) - 1
    for trailing in b"\n\r":  # the file's last line may have neither
        last = np.maximum(last - (characters[last] == trailing), starts)
    return bool((characters[starts] == ord("{")).all() and (characters[last] == ord("}")).all())


def _is_utf8(data: memoryview) -> bool:
    """Whether all of it is UTF-8 (msgspec decodes only the requested fields). pyarrow validates at
    several GB/s.
    """
    if bytes.isascii(data.obj):  # type: ignore[arg-type]
        return True
    import pyarrow as pa

    try:
        pa.LargeStringArray.from_buffers(
            1, pa.array([0, len(data)], pa.int64()).buffers()[1], pa.py_buffer(data)
        ).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
