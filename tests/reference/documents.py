"""Reading a JSON Lines file as plainly as can be: all in memory, `json.loads` line by line. The twin of formats/documents.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_BETWEEN = " \t\r\n,\ufeff\x1e"


@dataclass(frozen=True)
class Document:
    """A readable record and its place: 0-based line, offset of its first byte."""

    text: str
    source: str
    line: int
    offset: int


@dataclass(frozen=True)
class Bad:
    """A record that cannot be read: its place, reason, and bytes (its newline included)."""

    line: int
    offset: int
    reason: str
    num_bytes: int


def read(
    data: bytes,
    text_field: str = "text",
    source_field: str = "meta.redpajama_set_name",
    max_bytes: int = 2**62,
) -> list[Document | Bad]:
    """Every record of `data` in order; blank lines are none."""
    found: list[Document | Bad] = []
    offset = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines):
        size = len(line) + (number < len(lines) - 1)
        if size > max_bytes:
            found.append(Bad(number, offset, "record_too_large", size))
        elif line[:1] == b"\0" or line.rstrip()[-1:] == b"\0":
            rest = line.strip(b"\0\r\n")
            found.append(Bad(number, offset, "corrupt_file", size - len(rest)))
            found += _records(rest, number, offset + line.find(rest), len(rest), text_field, source_field)
        else:
            found += _records(line, number, offset, size, text_field, source_field)
        offset += size
    return found


def _records(
    line: bytes, number: int, offset: int, size: int, text_field: str, source_field: str
) -> list[Document | Bad]:
    """What is in a line: a record, or nothing, or several objects."""
    record = line.removeprefix(b"\xef\xbb\xbf")
    if not record.strip():
        return []
    one = _record(record, number, offset, size, text_field, source_field)
    if not isinstance(one, Bad) or one.reason != "invalid_json":
        return [one]
    found: list[Document | Bad] = []
    text = line.decode()
    rest = text.lstrip(_BETWEEN)
    while rest:
        begin = len(text[: len(text) - len(rest)].encode())
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(rest)
        except ValueError:
            return [one]
        if not isinstance(value, dict):
            return [one]
        part = rest[:end].encode()
        found.append(_record(part, number, offset + begin, len(part), text_field, source_field))
        rest = rest[end:].lstrip(_BETWEEN)
    return found


def _record(
    line: bytes, number: int, offset: int, size: int, text_field: str, source_field: str
) -> Document | Bad:
    try:
        value: Any = json.loads(line.decode(), strict=False)
    except UnicodeDecodeError:
        return Bad(number, offset, "invalid_utf8", size)
    except ValueError:
        return Bad(number, offset, "invalid_json", size)
    if not isinstance(value, dict):
        return Bad(number, offset, "not_an_object", size)
    text: Any = value
    for key in text_field.split("."):
        if not isinstance(text, dict) or key not in text:
            return Bad(number, offset, "missing_text", size)
        text = text[key]
    if text is None:
        return Bad(number, offset, "null_text", size)
    if not isinstance(text, str):
        return Bad(number, offset, "text_not_a_string", size)
    if not _is_encodable(text):
        return Bad(number, offset, "lone_surrogate", size)
    source: Any = value
    for key in source_field.split("."):
        source = source.get(key) if isinstance(source, dict) else None
    named = isinstance(source, str) and source and _is_encodable(source)
    return Document(text, source if named else "unnamed", number, offset)


def _is_encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
