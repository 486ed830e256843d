"""JSON records to texts and source names: many at once where all are good, one by one where some are not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from btlm_data.records.base import ReadRequest
from btlm_data.records.batch import UNNAMED_SOURCE
from btlm_data.records.fields import (
    MAX_SOURCE_NAME,
    MISSING,
    descend,
    from_json_string,
    is_strings,
    joined,
    kind,
    lookup,
    source_name,
    why_no_text,
)
from btlm_data.records.stream import BOM

# Python's parser takes up to 24 bytes of memory for one of JSON ("{},{},{},..."). Longer records are parsed
# by msgspec alone, which looks only at the fields wanted, but also refuses NaN and lone surrogates anywhere.
_MAX_PYTHON_BYTES = 16 * 2**20

_BETWEEN_OBJECTS = re.compile(r"[ \t\r\n,\ufeff\x1e]*")  # 1e begins a record of RFC 7464

_COLUMNS = "the object holds columns, not a record: field {name!r} is an array, and so are all others; write an object for each document"

Problem = tuple[str, str]
"""Reason and detail."""


class RecordDecoder:
    """Reads the text and the source name out of JSON objects."""

    def __init__(self, request: ReadRequest) -> None:
        self._name, self._source = request.fields.text, request.file.source
        self._text_join = request.options.text_join
        self._source_name = request.fields.source if self._source is None else ""
        text_path, source_path = self._name.split("."), self._source_name.split(".")
        shorter = min(len(text_path), len(source_path))
        if not self._source_name or source_path[:shorter] == text_path[:shorter]:
            source_path = []  # one is within the other: where the text is found, no name can be
            self._source_name = ""
        text_type = str | list[str] if self._text_join is not None else str
        shared = 0
        while shared < min(len(text_path), len(source_path)) - 1 and text_path[shared] == source_path[shared]:
            shared += 1
        self._text_steps = [f"a{depth}" for depth in range(len(text_path))]
        self._source_steps = self._text_steps[:shared] + [
            f"b{depth}" for depth in range(shared, len(source_path))
        ]
        self._source_path, self._source_literal = source_path, len(source_path) > 1
        self._decoder = msgspec.json.Decoder(_struct(text_path, source_path, text_type))
        # A second kind of record: the text is in a field whose name holds the dots itself.
        self._literal: Any = None
        if len(text_path) > 1 and source_path[:1] != text_path[:1]:
            self._literal = msgspec.json.Decoder(
                _struct([self._name], source_path, text_type, absent=text_path[0])
            )

    def decode_lines(self, data: memoryview, num_lines: int) -> tuple[list[str], list[str]] | None:
        """Texts and source names of `num_lines` lines, or None if any line is not plainly good."""
        steps = self._text_steps
        try:
            records = self._decoder.decode_lines(data)
        except (ValueError, RecursionError):
            if self._literal is None:
                return None
            try:
                records, steps = self._literal.decode_lines(data), ["a0"]
            except (ValueError, RecursionError):
                return None
        if len(records) != num_lines:
            return None
        return self._texts(records, steps), self._names(records, steps)

    def _texts(self, records: Any, steps: Sequence[str]) -> list[str]:
        for step in steps:
            records = [getattr(record, step) for record in records]
        if self._text_join is not None:
            records = [joined(text, self._text_join) for text in records]
        return records  # type: ignore[no-any-return]

    def _names(self, records: Any, text_steps: Sequence[str]) -> list[str]:
        if self._source is not None or not self._source_path:
            return [self._source or UNNAMED_SOURCE] * len(records)
        steps = self._source_steps
        if text_steps is not self._text_steps:  # the text's own field shares no step with the source's
            steps = [f"b{depth}" for depth in range(len(self._source_path))]
        names = records
        try:
            for step in steps:
                names = [None if record is None else getattr(record, step) for record in names]
        except AttributeError:  # an object is given as a string of JSON
            names = [self._name_of(record, steps) for record in records]
        if self._source_literal and None in names:
            names = [
                record.literal if name is None else name for name, record in zip(names, records, strict=True)
            ]
        return [name if name and len(name) <= MAX_SOURCE_NAME else UNNAMED_SOURCE for name in names]

    def _name_of(self, record: Any, steps: Sequence[str]) -> str | None:
        for depth, step in enumerate(steps):
            if isinstance(record, str):
                value = descend(from_json_string(record), self._source_path[depth:])
                return None if value is MISSING or value is None else source_name(value, UNNAMED_SOURCE)
            if record is None:
                return None
            record = getattr(record, step)
        return record  # type: ignore[no-any-return]

    def decode_line(self, line: bytes) -> tuple[str, str] | tuple[None, Problem]:
        """(text, source name) of one record, or (None, (reason, detail)). `line` is not blank."""
        line = line.removeprefix(BOM)
        if len(line) > _MAX_PYTHON_BYTES:
            return self._decode_large(line)
        try:
            string = line.decode("utf-8")
        except UnicodeDecodeError as error:
            return None, ("invalid_utf8", f"byte 0x{line[error.start]:02x} at column {error.start}")
        try:
            # int() refuses more than 4,300 digits; the fast path does not
            value = json.loads(string, parse_int=float, strict=False)
        except ValueError as error:
            return None, ("invalid_json", str(error))
        except RecursionError:
            return None, ("invalid_json", "nested too deeply")
        if not isinstance(value, dict):
            return None, ("not_an_object", f"found {kind(value)}")
        text = joined(lookup(value, self._name), self._text_join)
        if not isinstance(text, str):
            if is_strings(text) and _holds_columns(value):
                return None, ("text_not_a_string", _COLUMNS.format(name=self._name))
            return None, why_no_text(text, self._name, list(value))
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return None, ("lone_surrogate", f"\\u{ord(text[error.start]):04x} at character {error.start}")
        name = self._source if self._source is not None else lookup(value, self._source_name)
        return text, source_name(name, UNNAMED_SOURCE)

    def _decode_large(self, line: bytes) -> tuple[str, str] | tuple[None, Problem]:
        """As decode_line, without making an object of every value in the record."""
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            return None, ("invalid_utf8", f"byte 0x{line[error.start]:02x} at column {error.start}")
        problem, detail = "", ""
        for decoder, steps in ((self._decoder, self._text_steps), (self._literal, ["a0"])):
            if decoder is not None:
                try:
                    record = decoder.decode(line)
                except msgspec.ValidationError as error:
                    problem = "missing_text" if "missing required" in str(error) else "text_not_a_string"
                    detail = f"field {self._name!r}: {error}"
                except (ValueError, RecursionError) as error:
                    return None, ("invalid_json", str(error)[:200])
                else:
                    return self._texts([record], steps)[0], self._names([record], steps)[0]
        return None, (problem, detail)


def _holds_columns(value: Mapping[str, Any]) -> bool:
    """Whether an object looks like a table: every field a list, all of one length."""
    lengths = {len(column) if isinstance(column, list) else -1 for column in value.values()}
    return len(value) > 1 and len(lengths) == 1 and -1 not in lengths


def objects_in(line: bytes) -> list[tuple[int, int]]:
    """Where the objects are, [begin, end), in a line that is not one object but several, one after another
    or with commas between or after them; empty if it is anything else.
    """
    if len(line) > _MAX_PYTHON_BYTES:
        return []
    string, parser = line.decode("utf-8"), json.JSONDecoder(parse_int=float, strict=False)
    parts: list[tuple[int, int]] = []
    end, byte = 0, 0
    while True:
        gap = _BETWEEN_OBJECTS.match(string, end)
        assert gap is not None
        byte += len(gap[0].encode())
        if gap.end() == len(string):
            return parts
        try:
            value, end = parser.raw_decode(string, gap.end())
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        size = len(string[gap.end() : end].encode())
        parts.append((byte, byte + size))
        byte += size


def _struct(
    text_path: Sequence[str], source_path: Sequence[str], text_type: Any, absent: str | None = None
) -> type[msgspec.Struct]:
    """A msgspec struct that holds only the wanted fields; the text must be there, everything about the source
    may be missing.

    An object on the way to the source name may also be a string (of JSON). literal: the source name under a
    field whose name holds the dots itself. absent: a field that must not be there, or be null.
    """

    def build(depth: int, text: Sequence[str] | None, source: Sequence[str] | None) -> Any:
        members: list[Any] = []
        renames: dict[str, str] = {}
        if text and source and len(text) > 1 and len(source) > 1 and text[0] == source[0]:
            members.append((f"a{depth}", build(depth + 1, text[1:], source[1:])))
            renames[f"a{depth}"] = text[0]
        else:
            if text is not None:
                members.append(
                    (f"a{depth}", text_type if len(text) == 1 else build(depth + 1, text[1:], None))
                )
                renames[f"a{depth}"] = text[0]
            if source:
                value_type = str if len(source) == 1 else build(depth + 1, None, source[1:]) | str
                members.append((f"b{depth}", value_type | None, None))
                renames[f"b{depth}"] = source[0]
        if depth == 0 and len(source_path) > 1 and ".".join(source_path) not in renames.values():
            members.append(("literal", str | None, None))
            renames["literal"] = ".".join(source_path)
        if depth == 0 and absent is not None and absent not in renames.values():
            members.append(("absent", None, None))
            renames["absent"] = absent
        return msgspec.defstruct(f"Record{depth}", members, rename=renames, gc=False)

    return build(0, text_path, source_path or None)  # type: ignore[no-any-return]


class JsonRecord:
    """A record of JSON, parsed when its fields are requested."""

    __slots__ = ("_begin", "_data", "_end")

    def __init__(self, data: bytes, begin: int, end: int) -> None:
        self._data, self._begin, self._end = data, begin, end

    def fields(self) -> Mapping[str, Any]:
        """Every field; empty if the record is not an object or cannot be parsed."""
        line = self._data[self._begin : self._end].removeprefix(BOM)
        try:
            value = msgspec.json.decode(line)
        except (ValueError, RecursionError):
            try:
                value = json.loads(line, parse_int=float) if len(line) <= _MAX_PYTHON_BYTES else None
            except (ValueError, RecursionError):
                value = None
        return value if isinstance(value, dict) else {}
