"""Reading documents out of corpus files, block by block; the policy for every kind of bad record.

A block is the records of one stretch of a file: about `batch_bytes` of raw lines (or one longer record), whatever the
file's size, so memory does not depend on it. Nothing here stops at bad input: each bad record becomes a `Reject` with
its reason and place, and reading goes on with the next one.

Reasons: invalid_utf8, lone_surrogate, invalid_json, not_an_object, missing_text, null_text, text_not_a_string,
record_too_large, truncated_file, corrupt_file, unreadable_file. The last three stand for the unread rest of a file and
count as one record. Blank lines are no records. JSON Lines are split at newlines (byte 10); a UTF-8 byte order mark is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import numpy as np
import zstandard
from isal import isal_zlib

from btlm_data.advance import advance
from btlm_data.records import zstd_frames
from btlm_data.records.formats import Compression, Format

BATCH_BYTES = 16 * 2**20
UNNAMED_SOURCE = "unnamed"
_READ_BYTES = 2**17  # a zstd block: damage costs no more than the records of one
_GROUP_LINES = 64
_MAX_ZSTD_WINDOW = 2**27  # what `zstd -d` accepts without --long; a frame asking for more is refused


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that could not be read. line: 0-based, counted from the start of the stretch; offset: bytes into the decompressed file."""

    line: int
    offset: int
    reason: str
    detail: str
    num_bytes: int


@dataclass
class RecordBatch:
    """The readable documents of one stretch of a file, and what could not be read there.

    lines: 0-based line (or row) numbers relative to the stretch read; offsets: bytes into the decompressed file (row number for
    parquet); sources: source names. num_records counts documents and rejects.
    """

    texts: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    num_lines: int = 0  # lines (rows) of the stretch up to the end of this block, blank ones included
    end: int = (
        0  # where the next block starts: bytes into the decompressed file (rows of the stretch for parquet)
    )
    final: bool = False  # True where it is known that nothing of the stretch follows

    @property
    def num_records(self) -> int:
        """Documents and rejects."""
        return len(self.texts) + len(self.rejects)


class StoredFile(Protocol):
    """What reading needs to know of a file (`sources.base.SourceFile` is one)."""

    @property
    def format(self) -> Format:
        """How its records are laid out."""

    @property
    def compression(self) -> Compression:
        """How its bytes are compressed as a whole."""

    @property
    def source(self) -> str | None:
        """The source name of all its documents; None: the record says it."""

    @property
    def text_field(self) -> str | None:
        """The field that holds the text, where it differs from the setting."""


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold the text and the source name; dots descend."""

    text: str = "text"
    source: str = "meta.redpajama_set_name"


def read_batches(
    path: Path,
    file: StoredFile,
    fields: Fields,
    start: int = 0,
    stop: int | None = None,
    skip: tuple[int, int] = (0, 0),
    max_record_bytes: int = 512 * 2**20,
    batch_bytes: int = BATCH_BYTES,
) -> Iterator[RecordBatch]:
    """Read one stretch of `file`, whose bytes are at `path`.

    start, stop: for uncompressed JSON Lines a byte range (the lines that begin in it), for parquet a range of row
    groups; other files are read whole. skip: (end, num_lines) of an earlier block, to go on after it. Never raises for bad
    content; an unreadable file gives one reject.
    """
    source = file.source
    try:
        if file.format == "parquet":
            yield from _read_parquet(path, fields, source, start, stop, skip, max_record_bytes, batch_bytes)
        elif file.format == "txt":
            yield from _read_text(path, file, source, max_record_bytes)
        else:
            yield from _read_json_lines(path, file, fields, start, stop, skip, max_record_bytes, batch_bytes)
    except OSError as error:
        reject = Reject(skip[1], skip[0], "unreadable_file", error.strerror or str(error), 0)
        yield RecordBatch(rejects=[reject], num_lines=skip[1], end=skip[0], final=True)


# JSON Lines ----------------------------------------------------------------------------------------------------


class RecordDecoder:
    """Lines of bytes to documents: many at once where all are good, one by one where some are not."""

    def __init__(self, fields: Fields, source: str | None) -> None:
        self._source = source
        self._text_path = fields.text.split(".")
        self._source_path = fields.source.split(".") if source is None and fields.source else []
        shorter = min(len(self._text_path), len(self._source_path))
        if self._source_path[:shorter] == self._text_path[:shorter]:
            self._source_path = []  # one lies within the other: where the text is found, no name can be
        self._decoder = msgspec.json.Decoder(_struct(self._text_path, self._source_path))
        text_steps, source_steps = ["a" + str(i) for i in range(len(self._text_path))], []
        shared = 0
        while (
            shared < min(len(self._text_path), len(self._source_path)) - 1
            and self._text_path[shared] == self._source_path[shared]
        ):
            shared += 1
        source_steps = text_steps[:shared] + ["b" + str(i) for i in range(shared, len(self._source_path))]
        self._text_steps, self._source_steps = text_steps, source_steps

    def decode_lines(self, data: memoryview, num_lines: int) -> tuple[list[str], list[str]] | None:
        """Texts and source names of `num_lines` lines, or None if any line is not plainly good."""
        try:
            records = self._decoder.decode_lines(data)
        except (ValueError, RecursionError):
            return None
        if len(records) != num_lines:
            return None
        texts: Any = records
        for step in self._text_steps:
            texts = [getattr(record, step) for record in texts]
        if self._source is not None or not self._source_steps:
            return texts, [self._source or UNNAMED_SOURCE] * num_lines
        names: Any = records
        for step in self._source_steps:
            names = [None if record is None else getattr(record, step) for record in names]
        return texts, [name or UNNAMED_SOURCE for name in names]

    def decode_line(self, line: bytes) -> tuple[str, str] | tuple[None, tuple[str, str]]:
        """(text, source) of one line, or (None, (reason, detail)). `line` is not blank."""
        try:
            string = line.decode("utf-8")
        except UnicodeDecodeError as error:
            return None, ("invalid_utf8", f"byte 0x{line[error.start]:02x} at column {error.start}")
        try:
            value = json.loads(
                string, parse_int=float
            )  # int() refuses more than 4,300 digits; the fast path does not
        except ValueError as error:
            return None, ("invalid_json", str(error))
        except RecursionError:
            return None, ("invalid_json", "nested too deeply")
        if not isinstance(value, dict):
            return None, ("not_an_object", f"found {_kind(value)}")
        text = _descend(value, self._text_path)
        if text is _MISSING:
            return None, (
                "missing_text",
                f"no field {'.'.join(self._text_path)!r}; found {', '.join(map(repr, list(value)[:8]))}",
            )
        if text is None:
            return None, ("null_text", f"field {'.'.join(self._text_path)!r} is null")
        if not isinstance(text, str):
            return None, ("text_not_a_string", f"field {'.'.join(self._text_path)!r} is {_kind(text)}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return None, ("lone_surrogate", f"\\u{ord(text[error.start]):04x} at character {error.start}")
        name = self._source if self._source is not None else _descend(value, self._source_path)
        return text, name if isinstance(name, str) and name and _encodable(name) else UNNAMED_SOURCE


_MISSING = object()


def _descend(value: Any, path: Sequence[str]) -> Any:
    if not path:
        return _MISSING
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {
        "NoneType": "null",
        "bool": "a boolean",
        "int": "a number",
        "float": "a number",
        "str": "a string",
        "list": "an array",
    }
    return names.get(type(value).__name__, "an object")


def _struct(text_path: Sequence[str], source_path: Sequence[str]) -> type[msgspec.Struct]:
    """A msgspec struct that holds only the wanted fields; the text must be there, everything about the source may be missing."""

    def build(depth: int, text: Sequence[str] | None, source: Sequence[str] | None) -> Any:
        members: list[Any] = []
        renames: dict[str, str] = {}
        if (
            text is not None
            and source is not None
            and len(text) > 1
            and len(source) > 1
            and text[0] == source[0]
        ):
            members.append((f"a{depth}", build(depth + 1, text[1:], source[1:])))
            renames[f"a{depth}"] = text[0]
        else:
            if text is not None:
                members.append((f"a{depth}", str if len(text) == 1 else build(depth + 1, text[1:], None)))
                renames[f"a{depth}"] = text[0]
            if source:
                kind = str if len(source) == 1 else build(depth + 1, None, source[1:])
                members.append((f"b{depth}", kind | None, None))
                renames[f"b{depth}"] = source[0]
        return msgspec.defstruct(f"Record{depth}", members, rename=renames, gc=False)

    return build(0, text_path, source_path or None)  # type: ignore[no-any-return]


def _read_json_lines(
    path: Path,
    file: StoredFile,
    fields: Fields,
    start: int,
    stop: int | None,
    skip: tuple[int, int],
    max_record_bytes: int,
    batch_bytes: int,
) -> Iterator[RecordBatch]:
    decoder = RecordDecoder(Fields(file.text_field or fields.text, fields.source), file.source)
    lines_done = skip[1]
    for raw in _raw_blocks(path, file, start, stop, skip[0], max_record_bytes, batch_bytes):
        block = RecordBatch()
        lines_done += _decode(block, decoder, raw.data, raw.cut, raw.offset, lines_done, max_record_bytes)
        position = raw.offset + raw.cut
        raw.data = b""  # not to be held while the block is worked on
        if raw.too_long:
            block.rejects.append(_too_large(lines_done, position, raw.too_long, max_record_bytes))
            lines_done += 1
            position += raw.too_long
        if raw.problem:
            block.rejects.append(Reject(lines_done, position, *raw.problem, 0))
            block.final = True
        block.num_lines, block.end = lines_done, position
        yield block


def _too_large(line: int, offset: int, num_bytes: int, max_record_bytes: int) -> Reject:
    return Reject(line, offset, "record_too_large", f"more than {max_record_bytes} bytes", num_bytes)


def _is_utf8(data: memoryview) -> bool:
    """Whether all of it is UTF-8 (msgspec looks only at the fields it is asked for). pyarrow validates at several GB/s."""
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


def _decode(
    block: RecordBatch,
    decoder: RecordDecoder,
    data: bytes,
    cut: int,
    offset: int,
    first_line: int,
    max_record_bytes: int,
) -> int:
    """Add the documents and rejects of the whole lines data[:cut] to `block`; returns how many lines that are."""
    if not cut:
        return 0
    if offset == 0 and data.startswith(b"\xef\xbb\xbf"):
        data = b"   " + data[3:]  # white space to JSON, and the offsets stay right
    ends = _line_ends(data, cut)
    if _decode_good(block, decoder, data, ends, 0, len(ends), offset, first_line, max_record_bytes):
        return len(ends)
    for first in range(
        0, len(ends), _GROUP_LINES
    ):  # a bad line among them: keep all but its neighbours on the fast path
        last = min(first + _GROUP_LINES, len(ends))
        if not _decode_good(block, decoder, data, ends, first, last, offset, first_line, max_record_bytes):
            for number in range(first, last):
                begin = ends[number - 1] if number else 0
                _decode_line(
                    block,
                    decoder,
                    data[begin : ends[number]],
                    offset + begin,
                    first_line + number,
                    max_record_bytes,
                )
    return len(ends)


def _are_objects(data: bytes, begin: int, ends: Sequence[int]) -> bool:
    """Whether each line (the first from `begin`, the others behind one another's `ends`) begins with { and ends with }.

    Then as many values as lines mean one value a line. msgspec takes two values on one line, and one value on two; such lines can
    make up for each other and for blank ones. But in JSON no } is ever followed by a {, so each line break here lies between two values.
    """
    characters = np.frombuffer(data, np.uint8)
    starts, last = np.array([begin, *ends[:-1]]), np.array(ends) - 1
    for trailing in b"\n\r":  # the file's last line may have neither
        last = np.maximum(last - (characters[last] == trailing), starts)
    return bool((characters[starts] == ord("{")).all() and (characters[last] == ord("}")).all())


def _decode_good(
    block: RecordBatch,
    decoder: RecordDecoder,
    data: bytes,
    ends: Sequence[int],
    first: int,
    last: int,
    offset: int,
    first_line: int,
    max_record_bytes: int,
) -> bool:
    """Add lines [first, last) if every one is plainly good; whether they were."""
    begin, end = ends[first - 1] if first else 0, ends[last - 1]
    view = memoryview(data)[begin:end]
    if len(view) > max_record_bytes or not _are_objects(data, begin, ends[first:last]) or not _is_utf8(view):
        return False
    good = decoder.decode_lines(view, last - first)
    if good is None:
        return False
    block.texts += good[0]
    block.sources += good[1]
    block.lines += range(first_line + first, first_line + last)
    block.offsets += [offset + begin, *(offset + end for end in ends[first : last - 1])]
    return True


def _decode_line(
    block: RecordBatch, decoder: RecordDecoder, line: bytes, offset: int, number: int, max_record_bytes: int
) -> None:
    """Add one line that is not plainly good."""
    if len(line) > max_record_bytes:
        block.rejects.append(_too_large(number, offset, len(line), max_record_bytes))
    elif not line.isspace():
        text, other = decoder.decode_line(line)
        if text is None:
            block.rejects.append(Reject(number, offset, other[0], other[1], len(line)))
        else:
            assert isinstance(other, str)
            block.texts.append(text)
            block.sources.append(other)
            block.lines.append(number)
            block.offsets.append(offset)


def _line_ends(data: bytes, cut: int) -> list[int]:
    """Offset after each newline in data[:cut], and `cut` itself where the last line has none."""
    ends: list[int] = []
    end = data.find(b"\n", 0, cut) + 1
    while end:
        ends.append(end)
        end = data.find(b"\n", end, cut) + 1
    if not ends or ends[-1] != cut:
        ends.append(cut)
    return ends


@dataclass
class _Raw:
    """Whole lines, data[:cut], the first at `offset` of the decompressed file; then perhaps a dropped line, then perhaps damage."""

    data: bytes
    cut: int
    offset: int
    too_long: int = 0  # bytes of an over-long line behind data[:cut] that was dropped
    problem: tuple[str, str] | None = None  # what ends the file behind that


class _Pieces:
    """Bytes of a stream from `position` on, in pieces that end at multiples of _READ_BYTES; remembers what ended it.

    So how much is had before damage does not depend on where reading began, and a resumed read gives what an undisturbed one does.
    """

    def __init__(self, raw: IO[bytes], stream: IO[bytes], problem: tuple[str, str] | None) -> None:
        self.position = 0
        self.problem = problem  # known before reading: met at the end
        self._raw, self._stream, self._stored, self._ended = raw, stream, 0, False

    def seek(self, position: int) -> None:
        """Start at `position` (an uncompressed stream only)."""
        self._raw.seek(position)
        self.position = position

    def skip(self, position: int) -> None:
        """Read on to `position` and forget it."""
        while self.position < position and self.read(position - self.position):
            pass

    def read(self, most: int = _READ_BYTES) -> bytes:
        """The next piece; empty at the end and from damage on."""
        if self._ended:
            return b""
        try:
            piece = self._stream.read(min(most, _READ_BYTES - self.position % _READ_BYTES))
        except _STREAM_ERRORS as error:
            if self.problem is None or isinstance(error, OSError | EOFError):
                self.problem = _stream_problem(error)
            piece = b""
        self._ended = not piece
        self.position += len(piece)
        if self._stream is self._raw:
            advance(len(piece))
        elif (now := self._raw.tell()) > self._stored:
            advance(now - self._stored)
            self._stored = now
        return piece


def _raw_blocks(
    path: Path,
    file: StoredFile,
    start: int,
    stop: int | None,
    resume_at: int,
    max_record_bytes: int,
    batch_bytes: int,
) -> Iterator[_Raw]:
    """Whole lines, about batch_bytes at a time; where they are cut depends on the file and the first offset only."""
    with path.open("rb") as raw, _decompressed(raw, file) as stream:
        pieces = _Pieces(raw, stream, _frame_problem(path, file))
        held = b""
        offset = resume_at or start
        if file.compression != "none":
            pieces.skip(offset)
        elif resume_at:
            pieces.seek(offset)
        elif start:  # the line that contains byte start-1 belongs to the stretch before
            pieces.seek(start - 1)
            skipped, held = _drop_line(pieces, b"")
            offset = start - 1 + skipped
        limit = None if stop is None or file.compression != "none" else stop
        wanted = batch_bytes
        while limit is None or offset < limit:
            parts, size = [held], len(held)
            at_end = False
            while size < wanted and not at_end:
                piece = pieces.read()
                parts.append(piece)
                size += len(piece)
                at_end = not piece
            held = b"".join(parts)
            parts.clear()
            at_end &= size <= wanted
            # Cut before `wanted` exactly, so that blocks do not depend on how many bytes a read happened to give.
            cut = size if at_end and pieces.problem is None else held.rfind(b"\n", 0, wanted) + 1
            if (
                limit is not None and offset + cut > limit
            ):  # lines that begin at or after the limit belong to the next stretch
                newline = held.find(b"\n", max(0, limit - offset - 1))
                if newline >= 0 or at_end:
                    block, held = _Raw(held, newline + 1 if newline >= 0 else size, offset), b""
                    yield block
                    return
            block = _Raw(held, cut, offset)
            if at_end and pieces.problem is not None:
                block.problem = (
                    pieces.problem[0],
                    f"{pieces.problem[1]}; {size - cut} bytes of an unfinished record were dropped",
                )
            elif not at_end and cut == 0:  # one line longer than the block: hold more of it, up to the limit
                if wanted <= max_record_bytes:
                    wanted += batch_bytes
                    continue
                block.data = b""
                block.too_long, held = _drop_line(pieces, held)
            if not block.too_long:
                held = held[cut:]
            offset += cut + block.too_long
            wanted = batch_bytes
            if cut or block.too_long or block.problem:
                yield block
            if at_end:
                return


def _drop_line(pieces: _Pieces, held: bytes) -> tuple[int, bytes]:
    """Drop a line that begins with `held`. Returns the bytes dropped, and what was read of the lines after it."""
    dropped = 0
    while (newline := held.find(b"\n")) < 0:
        dropped += len(held)
        held = pieces.read()
        if not held:
            return dropped, b""
    return dropped + newline + 1, held[newline + 1 :]


def _decompressed(raw: IO[bytes], file: StoredFile) -> IO[bytes]:
    """A buffered stream of the decompressed bytes; never holds more than a few MB, whatever a frame claims."""
    if file.compression == "zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        return decompressor.stream_reader(raw, read_size=2**18, read_across_frames=True, closefd=False)
    if file.compression == "gzip":
        from isal import igzip

        opened: Any = igzip.IGzipFile
        stream: IO[bytes] = opened(fileobj=raw, mode="rb")
        return stream
    return raw


_IsalError: Any = isal_zlib.error  # a class of its own, which its type stub calls an instance
_STREAM_ERRORS: tuple[type[Exception], ...] = (zstandard.ZstdError, _IsalError, OSError, EOFError, ValueError)


def _frame_problem(path: Path, file: StoredFile) -> tuple[str, str] | None:
    """What the structure of a zstd file tells before it is read: a cut file simply ends, as far as the decompressor is concerned."""
    if file.compression != "zstd":
        return None
    found = zstd_frames.walk(path)
    if found.cut_at is not None:
        return "truncated_file", f"the file ends in mid-frame, at byte {found.cut_at} as stored"
    if found.garbage_at is not None:
        return "corrupt_file", f"bytes that are not zstd, at byte {found.garbage_at} as stored"
    return None


def _stream_problem(error: Exception) -> tuple[str, str]:
    if isinstance(error, EOFError):
        return "truncated_file", "the file ends in mid-stream"
    if isinstance(error, OSError) and error.errno is not None:
        return "unreadable_file", error.strerror or str(error)
    return "corrupt_file", str(error)


# Plain text ----------------------------------------------------------------------------------------------------


def _read_text(
    path: Path, file: StoredFile, source: str | None, max_record_bytes: int
) -> Iterator[RecordBatch]:
    """A .txt file is one document; its source name is the one given, or the unnamed one."""
    block = RecordBatch(num_lines=1, end=1, final=True)
    with path.open("rb") as raw, _decompressed(raw, file) as stream:
        pieces: list[bytes] = []
        length = 0
        reader = _Pieces(raw, stream, _frame_problem(path, file))
        while length <= max_record_bytes:
            piece = reader.read()
            if not piece:
                break
            pieces.append(piece)
            length += len(piece)
    data = b"".join(pieces).removeprefix(b"\xef\xbb\xbf")
    pieces.clear()
    if length > max_record_bytes:
        block.rejects.append(_too_large(0, 0, length, max_record_bytes))
    elif reader.problem is not None:
        block.rejects.append(Reject(0, 0, *reader.problem, length))
    elif data:
        try:
            block.texts.append(data.decode("utf-8"))
            block.sources.append(source or UNNAMED_SOURCE)
            block.lines.append(0)
            block.offsets.append(0)
        except UnicodeDecodeError as error:
            block.rejects.append(
                Reject(
                    0,
                    error.start,
                    "invalid_utf8",
                    f"byte 0x{data[error.start]:02x} at byte {error.start}",
                    length,
                )
            )
    data = b""  # not to be held while the block is worked on
    if block.num_records:
        yield block


# Parquet -------------------------------------------------------------------------------------------------------


def _read_parquet(
    path: Path,
    fields: Fields,
    source: str | None,
    start: int,
    stop: int | None,
    skip: tuple[int, int],
    max_record_bytes: int,
    batch_bytes: int,
) -> Iterator[RecordBatch]:
    """Row groups [start, stop), about batch_bytes of text at a time. `skip` counts rows of the stretch already read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield RecordBatch(rejects=[Reject(0, 0, *_parquet_problem(error), 0)], final=True)
        return
    groups = range(start, table.num_row_groups if stop is None else min(stop, table.num_row_groups))
    first_row = sum(table.metadata.row_group(i).num_rows for i in range(start))
    names = table.schema_arrow.names
    text_path, source_path = fields.text.split("."), fields.source.split(".")
    columns = [name for name in dict.fromkeys([text_path[0], source_path[0]]) if name in names]
    done, to_skip = 0, skip[1]
    if text_path[0] not in columns:
        num_rows = sum(table.metadata.row_group(i).num_rows for i in groups)
        detail = f"no column {fields.text!r}; found {', '.join(map(repr, names[:8]))}"
        for begin in range(to_skip, num_rows, _PARQUET_ROWS):
            end = min(begin + _PARQUET_ROWS, num_rows)
            rejects = [Reject(row, first_row + row, "missing_text", detail, 0) for row in range(begin, end)]
            yield RecordBatch(rejects=rejects, num_lines=end, end=end, final=end == num_rows)
        return
    total = max(1, sum(table.metadata.row_group(i).total_byte_size for i in groups))
    rows = max(1, sum(table.metadata.row_group(i).num_rows for i in groups))
    batch_rows = max(1, min(_PARQUET_ROWS, batch_bytes * rows // total))
    block = RecordBatch()
    held = 0
    try:
        for batch in table.iter_batches(
            batch_size=batch_rows, row_groups=list(groups), columns=columns, use_threads=False
        ):
            advance(batch.num_rows * max(1, path.stat().st_size // rows))
            if done + batch.num_rows <= to_skip:
                done += batch.num_rows
                continue
            texts = _column(batch, text_path)
            sources = [source] * batch.num_rows if source is not None else _column(batch, source_path)
            for row, (text, name) in enumerate(zip(texts, sources, strict=True), done):
                if row < to_skip:
                    continue
                if not isinstance(text, str):
                    block.rejects.append(Reject(row, first_row + row, *_no_text(text, fields), 0))
                elif len(text) * 4 > max_record_bytes and (size := len(text.encode())) > max_record_bytes:
                    block.rejects.append(_too_large(row, first_row + row, size, max_record_bytes))
                else:
                    block.texts.append(text)
                    block.sources.append(name if isinstance(name, str) and name else UNNAMED_SOURCE)
                    block.lines.append(row)
                    block.offsets.append(first_row + row)
                    held += len(text)
            done += batch.num_rows
            if held >= batch_bytes:
                block.num_lines = block.end = done
                yield block
                block, held = RecordBatch(), 0
    except (pa.ArrowException, OSError, ValueError) as error:
        block.rejects.append(Reject(done, first_row + done, *_parquet_problem(error), 0))
        block.final = True
    if block.num_records:
        block.num_lines = block.end = done
        yield block


_PARQUET_ROWS = 65536
_UNDECODABLE = object()


def _parquet_problem(error: Exception) -> tuple[str, str]:
    if isinstance(error, OSError) and error.errno is not None:
        return "unreadable_file", error.strerror or str(error)
    return "corrupt_file", str(error).split("\n")[0]


def _no_text(value: Any, fields: Fields) -> tuple[str, str]:
    """Reason and detail for what stands in a parquet file's text column instead of a string."""
    if value is _UNDECODABLE:
        return "invalid_utf8", f"column {fields.text!r} holds bytes that are not UTF-8"
    if value is _MISSING:
        return "missing_text", f"no column {fields.text!r} in this row"
    return (
        "null_text" if value is None else "text_not_a_string",
        f"column {fields.text!r} holds {_kind(value)}",
    )


def _column(batch: Any, path: Sequence[str]) -> list[Any]:
    """Values of a (nested) column; _MISSING where a step of the path is not there, _UNDECODABLE where a string is not UTF-8."""
    if path[0] not in batch.schema.names:
        return [_MISSING] * batch.num_rows
    column = batch.column(batch.schema.get_field_index(path[0]))
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(scalar) for scalar in column]
    for key in path[1:]:
        values = [
            value.get(key, _MISSING)
            if isinstance(value, dict)
            else value
            if value is _UNDECODABLE
            else _MISSING
            for value in values
        ]
    return values


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return _UNDECODABLE


def count_records(
    path: Path, file: StoredFile, fields: Fields, limit: int, max_record_bytes: int
) -> tuple[int, int]:
    """How many records (documents and rejects) `file` holds, up to `limit`, and the line after the last one counted."""
    records = 0
    for block in read_batches(path, file, fields, max_record_bytes=max_record_bytes, batch_bytes=2**20):
        if records + block.num_records >= limit:
            numbers = sorted([*block.lines, *(reject.line for reject in block.rejects)])
            return limit, numbers[limit - records - 1] + 1
        records += block.num_records
    return records, -1
