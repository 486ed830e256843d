"""Plain text: a .txt file is one document, or one a paragraph, or one a line (`source.txt`).

Paragraphs end at blank lines; white space around a line or a paragraph is dropped, and blank ones are no
documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from btlm_data.records.base import Damage, ReadRequest, RecordFormat
from btlm_data.records.batch import UNNAMED_SOURCE, RecordBatch, Reject, too_large
from btlm_data.records.json_lines import add_reject
from btlm_data.records.lines import LINES, PARAGRAPHS, chunks
from btlm_data.records.stream import BOM, ByteStream, open_stream


def read(request: ReadRequest) -> Iterator[RecordBatch]:
    """Batches of the documents of a file."""
    if request.options.txt == "file":
        return _read_whole(request)
    return _read_parts(request)


class TextRecord:
    """A record that has nothing but its text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def fields(self) -> dict[str, str]:
        """The text, as if it were a field."""
        return {"text": self._text}


def _read_whole(request: ReadRequest) -> Iterator[RecordBatch]:
    """The file is one document: all that can be decompressed of it, without the lines that damage has cut."""
    max_bytes = request.options.max_record_bytes
    batch = request.new_batch()
    batch.num_lines, batch.end, batch.final = 1, 1, True
    with open_stream(request) as stream:
        parts, length, damages = _parts(stream, max_bytes)
    data = b"".join(parts).removeprefix(BOM)
    parts.clear()
    if length > max_bytes:
        add_reject(batch, too_large(0, 0, length, max_bytes))
    elif data.strip() or (data and not damages):
        _add(batch, request, data, 0, 0, len(data))
    for damage in damages:
        add_reject(batch, Reject(0, 0, damage.reason, damage.detail, damage.stored_bytes))
    data = b""  # not to be held while the batch is worked on
    if batch.num_records:
        yield batch


def _parts(stream: ByteStream, max_bytes: int) -> tuple[list[bytes], int, list[Damage]]:
    """The pieces of a file, their length, and its damages; stops after max_bytes."""
    parts: list[bytes] = []
    length, damages = 0, []
    is_behind_damage = False
    while length <= max_bytes:
        piece = stream.read()
        if piece and is_behind_damage:  # the rest of a line whose beginning is lost
            newline = piece.find(b"\n")
            piece, is_behind_damage = piece[newline + 1 :], newline < 0
        if piece:
            parts.append(piece)
            length += len(piece)
        elif stream.damage is not None:
            damages.append(stream.damage)
            is_behind_damage = True
            length -= _drop_unfinished_line(parts)
            stream.pass_damage()
        elif not is_behind_damage or not stream.read():
            break
    return parts, length, damages


def _drop_unfinished_line(parts: list[bytes]) -> int:
    """Drop what is after the last newline, unless there is none; returns its length."""
    for index in range(len(parts) - 1, -1, -1):
        newline = parts[index].rfind(b"\n")
        if newline >= 0:
            dropped = len(parts[index]) - newline - 1 + sum(map(len, parts[index + 1 :]))
            parts[index:] = [parts[index][: newline + 1]]
            return dropped
    return 0


def _read_parts(request: ReadRequest) -> Iterator[RecordBatch]:
    """A document a line or a paragraph; its offset is that of its first byte."""
    by_lines = request.options.txt == "lines"
    max_bytes = request.options.max_record_bytes
    number = request.stretch.lines_done
    for chunk in chunks(request, LINES if by_lines else PARAGRAPHS):
        batch = request.new_batch()
        data = chunk.data
        if chunk.offset == 0 and data.startswith(BOM):
            data = b"   " + data[3:]
        for begin, end in pairwise([0, *chunk.ends]):
            part = data[begin:end]
            stripped = part.lstrip()
            offset = chunk.offset + end - len(stripped)
            if len(part) > max_bytes:
                add_reject(batch, too_large(number, offset, len(part), max_bytes))
            elif stripped:
                _add(batch, request, stripped.rstrip(), number, offset, len(part))
            number += 1
        if chunk.too_long:
            add_reject(batch, too_large(number, chunk.offset + chunk.cut, chunk.too_long, max_bytes))
            number += 1
        if chunk.damage is not None:
            damage, dropped = chunk.damage, len(chunk.tail)
            detail = (
                f"{damage.detail}; {dropped:,} bytes of an unfinished {request.options.txt[:-1]} were dropped"
            )
            add_reject(
                batch,
                Reject(
                    number, chunk.offset + chunk.cut, damage.reason, detail, damage.stored_bytes + dropped
                ),
            )
            number += 1
        chunk.data = data = b""
        batch.num_lines, batch.end, batch.final = number, chunk.end, chunk.is_last
        yield batch


def _add(
    batch: RecordBatch, request: ReadRequest, data: bytes, line: int, offset: int, num_bytes: int
) -> None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte 0x{data[error.start]:02x} at byte {error.start}"
        add_reject(batch, Reject(line, offset + error.start, "invalid_utf8", detail, num_bytes))
        return
    batch.texts.append(text)
    batch.sources.append(request.file.source or UNNAMED_SOURCE)
    batch.lines.append(line)
    batch.offsets.append(offset)
    if batch.records is not None:
        batch.records.append(TextRecord(text))


def _in_words(txt: str) -> str:
    units = {"file": "file", "paragraphs": "paragraph (between empty lines)", "lines": "line"}
    others = " or ".join(name for name in units if name != txt)
    return f"a document is a {units[txt]}; --set source.txt={others} to say otherwise"


TEXT = RecordFormat("txt", (".txt", ".text"), read, in_words=_in_words)
