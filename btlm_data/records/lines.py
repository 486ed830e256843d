"""Cutting a stream into chunks of whole lines (or paragraphs), so that memory does not depend on the size of
a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import ClassVar

import msgspec

from btlm_data.records.base import MAX_BATCH_RECORDS, Damage, ReadRequest
from btlm_data.records.stream import ByteStream, open_stream


class Chunk(msgspec.Struct):
    """Whole lines, data[:cut], the first at `offset` of the decompressed file; then perhaps what follows
    them.

    ends: the offset in data after each line. too_long: bytes of a record above the limit after data[:cut],
    which was dropped. tail: the bytes of an unfinished record before `damage`. end: where the next chunk
    begins. is_last: whether it is known that nothing follows.
    """

    data: bytes
    cut: int
    offset: int
    ends: Sequence[int]
    too_long: int = 0
    tail: bytes = b""
    damage: Damage | None = None
    end: int = 0
    is_last: bool = False


class LineBorders(msgspec.Struct, frozen=True):
    """Records end at newlines (byte 10), or at another mark of one byte."""

    mark: bytes = b"\n"
    overlap: ClassVar[int] = (
        0  # bytes of a border that may be at the end of a piece whose border is not seen yet
    )

    def last(self, data: bytes, stop: int) -> int:
        """End of the last whole record in data[:stop]; 0 if there is none."""
        return data.rfind(self.mark, 0, stop) + 1

    def first(self, data: bytes, start: int = 0) -> int:
        """End of the first record that ends at or after `start`; 0 if there is none."""
        return data.find(self.mark, start) + 1

    def ends(self, data: bytes, cut: int) -> list[int]:
        """Offset after each record in data[:cut], of which the last may lack its border; of a few more than
        one batch holds at most.
        """
        ends: list[int] = []
        mark = self.mark
        end = data.find(mark, 0, cut) + 1
        while end and len(ends) <= MAX_BATCH_RECORDS:
            ends.append(end)
            end = data.find(mark, end, cut) + 1
        if cut and len(ends) <= MAX_BATCH_RECORDS and (not ends or ends[-1] != cut):
            ends.append(cut)
        return ends


class ParagraphBorders:
    """Records end at blank lines."""

    overlap = 1
    pattern = re.compile(rb"\n(?:[ \t\r\f\v]*\n)+")

    def last(self, data: bytes, stop: int) -> int:
        """As LineBorders.last."""
        return max((match.end() for match in self.pattern.finditer(data, 0, stop)), default=0)

    def first(self, data: bytes, start: int = 0) -> int:
        """As LineBorders.first."""
        match = self.pattern.search(data, start)
        return match.end() if match else 0

    def ends(self, data: bytes, cut: int) -> list[int]:
        """As LineBorders.ends."""
        matches = islice(self.pattern.finditer(data, 0, cut), MAX_BATCH_RECORDS + 1)
        ends = [match.end() for match in matches]
        if cut and len(ends) <= MAX_BATCH_RECORDS and (not ends or ends[-1] != cut):
            ends.append(cut)
        return ends


Borders = LineBorders | ParagraphBorders
LINES = LineBorders()
OLD_MAC_LINES = LineBorders(b"\r")
PARAGRAPHS = ParagraphBorders()


def chunks(
    request: ReadRequest, borders: Borders = LINES, opened: ByteStream | None = None
) -> Iterator[Chunk]:
    """Whole lines, about batch_bytes at a time; where they are cut depends on the file and the first offset
    only.

    opened: the file's stream at its beginning, if it is open already.
    """
    stretch, max_record_bytes = request.stretch, request.options.max_record_bytes
    with open_stream(request) if opened is None else nullcontext(opened) as stream:
        held = b""
        offset = stretch.resume_at or stretch.start
        if not stream.is_plain:
            stream.skip(offset)
        elif stretch.resume_at:
            stream.seek(offset)
        elif stretch.start:  # the line that contains byte start-1 belongs to the stretch before
            stream.seek(stretch.start - 1)
            skipped, held = _drop_record(stream, b"", borders)
            offset = stretch.start - 1 + skipped
        limit = stretch.stop if stream.is_plain else None
        wanted = request.batch_bytes
        while limit is None or offset < limit:
            held, at_end = _fill(stream, held, wanted)
            size = len(held)
            at_end &= size <= wanted
            # Cut before `wanted` exactly: chunks must not depend on how many bytes a read happened to give.
            cut = size if at_end and stream.damage is None else borders.last(held, wanted)
            ends = borders.ends(held, cut)
            if len(ends) > MAX_BATCH_RECORDS:
                ends, at_end = ends[:MAX_BATCH_RECORDS], False
                cut = ends[-1]
            if limit is not None and offset + cut > limit:
                # lines that begin at or after the limit belong to the next stretch
                end = borders.first(held, max(0, limit - offset - 1))
                if end or at_end:
                    end = end or size
                    chunk = Chunk(held, end, offset, borders.ends(held, end), end=offset + end)
                    held = b""  # the chunk alone has it, so that it goes when its records are made
                    yield chunk
                    return
            chunk = Chunk(held, cut, offset, ends)
            if at_end and stream.damage is not None:
                chunk.damage, chunk.tail = stream.damage, held[cut:]
                chunk.end = offset + size
                held = b""
                stream.pass_damage()
                held = stream.read()
                chunk.is_last = not held and stream.damage is None
                if not chunk.is_last:
                    chunk.end += 1
            elif not at_end and cut == 0:  # one line longer than the chunk: hold more of it, up to the limit
                if wanted <= max_record_bytes:
                    wanted += request.batch_bytes
                    del chunk  # or it would be in memory beside what it grows into
                    continue
                chunk.data = b""
                chunk.too_long, held = _drop_record(stream, held, borders)
                chunk.end = offset + chunk.too_long
            else:
                held = held[cut:]
                chunk.end = offset + cut
            offset = chunk.end
            wanted = request.batch_bytes
            is_end = chunk.is_last or (at_end and chunk.damage is None)
            if chunk.cut or chunk.too_long or chunk.damage:
                yield chunk
            del chunk
            if is_end:
                return


def _fill(stream: ByteStream, held: bytes, wanted: int) -> tuple[bytes, bool]:
    """At least `wanted` bytes, beginning with `held`; or fewer, and whether that is for want of more."""
    parts, size = [held], len(held)
    while size < wanted:
        piece = stream.read()
        if not piece:
            return b"".join(parts), True
        parts.append(piece)
        size += len(piece)
    return b"".join(parts), False


def _drop_record(stream: ByteStream, held: bytes, borders: Borders) -> tuple[int, bytes]:
    """Drop a record that begins with `held`. Returns the bytes dropped, and what was read of the records
    after it.
    """
    dropped = 0
    while not (end := borders.first(held)):
        kept = min(len(held), borders.overlap)
        dropped += len(held) - kept
        piece = stream.read()
        if not piece:
            return dropped + kept, b""
        held = held[len(held) - kept :] + piece
    return dropped + end, held[end:]
