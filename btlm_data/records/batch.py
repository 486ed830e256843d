"""What readers give: batches of documents, and what could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

UNNAMED_SOURCE = "unnamed"
FILE_REASONS = frozenset(
    {
        "truncated_file",
        "corrupt_file",
        "unreadable_file",
        "window_too_large",
        "git_lfs_pointer",
        "not_data",
        "wrong_encoding",
        "missing_package",
    }
)
"""Reasons that speak of a file, or of a stretch of it, and not of one record."""
NO_TEXT_REASONS = frozenset({"answer_not_ok", "not_text"})
"""Reasons of records that are whole, and hold no text by what they are: counted and listed, but no sign that a
setting is wrong.
"""


class Reject(msgspec.Struct, frozen=True):
    """A record, or a part of a file, that could not be read.

    line: 0-based, counted from the start of the stretch. offset: bytes into the decompressed file (row number
    for tables). reason: see the package's docstring. num_bytes: of the record; for a part of a file the bytes
    as stored that could not be decompressed, plus the bytes of the unfinished record before them.
    """

    line: int
    offset: int
    reason: str
    detail: str
    num_bytes: int

    @property
    def is_of_file(self) -> bool:
        """Whether it stands for a part of the file, of an unknown number of records."""
        return self.reason in FILE_REASONS

    @property
    def is_without_text(self) -> bool:
        """Whether it stands for a record that could be read, and is no document."""
        return self.reason in NO_TEXT_REASONS


class RawRecord(Protocol):
    """A record as the file has it, decoded only when asked."""

    def fields(self) -> Mapping[str, Any]:
        """Every field, the text included; empty where the record is not a mapping or cannot be parsed."""


class RecordBatch(msgspec.Struct):
    """The readable documents of one stretch of a file, and what could not be read there.

    texts, sources, lines, offsets: one entry per document. sources: source names. lines: 0-based line (or
    row, or element) numbers relative to the stretch read. offsets: bytes into the decompressed file (row
    numbers for tables). A document's key comes from the file's name and this offset. records,
    rejected_records: the whole records after `texts` and `rejects`, only where they were requested.
    """

    texts: list[str] = msgspec.field(default_factory=list)
    sources: list[str] = msgspec.field(default_factory=list)
    lines: list[int] = msgspec.field(default_factory=list)
    offsets: list[int] = msgspec.field(default_factory=list)
    rejects: list[Reject] = msgspec.field(default_factory=list)
    num_lines: int = 0  # lines (rows) of the stretch up to the end of this batch, blank ones included
    end: int = (
        0  # where the next batch starts: bytes into the decompressed file (rows of the stretch for tables)
    )
    final: bool = False  # True where it is known that nothing of the stretch follows
    records: list[RawRecord] | None = None
    rejected_records: list[RawRecord | None] | None = None

    @property
    def num_records(self) -> int:
        """Documents and rejects."""
        return len(self.texts) + len(self.rejects)

    def keep_lines_before(self, line: int) -> None:
        """Drop what is at or after `line`."""
        count = sum(number < line for number in self.lines)
        columns: Sequence[list[Any] | None] = (
            self.texts,
            self.sources,
            self.lines,
            self.offsets,
            self.records,
        )
        for column in columns:
            if column is not None:
                del column[count:]
        kept = [index for index, reject in enumerate(self.rejects) if reject.line < line]
        self.rejects = [self.rejects[index] for index in kept]
        if self.rejected_records is not None:
            self.rejected_records = [self.rejected_records[index] for index in kept]
        self.final = self.final or self.num_lines >= line


def too_large(line: int, offset: int, num_bytes: int, max_record_bytes: int) -> Reject:
    """The reject of a record longer than `max_record_bytes`."""
    return Reject(line, offset, "record_too_large", f"more than {max_record_bytes} bytes", num_bytes)
