"""Cutting a WARC file into its records (ISO 28500), wherever its lengths are wrong or its bytes damaged.

A record is a header (lines up to a blank one), `Content-Length` bytes, and two line ends. Libraries stop at the
first record whose length is wrong (crawlers that count characters, archives edited by hand); here the content
then goes to the next header, and the place is told. Line ends may be LF alone, names of headers in any case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from btlm_data.records.batch import Reject
from btlm_data.records.stream import ByteStream

_MAX_HEADER_BYTES = 2**16
_MAX_LOOKED_INTO = 2**24  # content of other records is held up to this size, to find records in it
_START = re.compile(rb"WARC/[01]\.\d{1,2}[ \t]*\r?\n")
_NEXT = re.compile(rb"\n(?=WARC/[01]\.\d{1,2}[ \t]*\r?\n)")
_START_BYTES = 16  # more than a match of _START has
_LOOKED_AT = 64
_LINE_ENDS = re.compile(rb"[\r\n]+")
_FOLD = re.compile(r"\r?\n[ \t]+")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_BORDER = re.compile(rb"\r?\n\r?\n\Z")


class WarcRecord(msgspec.Struct, frozen=True):
    """A record. offset: of its first byte. kind: its WARC-Type, in small letters. num_bytes: of its content.

    content: empty where the kind was not asked for, or num_bytes is above the limit.
    """

    offset: int
    kind: str
    headers: dict[str, str]
    num_bytes: int
    content: bytes


def warc_records(stream: ByteStream, kinds: frozenset[str], max_bytes: int) -> Iterator[WarcRecord | Reject]:
    """Every record, with its content if it is one of `kinds`, and a Reject for each place that cannot be read."""
    cutter = _Cutter(stream, kinds, max_bytes)
    while (item := cutter.next_one()) is not None:
        yield item


class _Cutter:
    """A place in the stream, the bytes after it that are read already, and what is to be told about it."""

    def __init__(self, stream: ByteStream, kinds: frozenset[str], max_bytes: int) -> None:
        self._stream, self._kinds, self._max_bytes = stream, kinds, max_bytes
        self._held = bytearray()
        self._told: Reject | None = None

    def next_one(self) -> WarcRecord | Reject | None:
        """The next record, or what is wrong before it; None at the end."""
        if (told := self._told) is not None:
            self._told = None
            return told
        self._pass_line_ends()
        if not self._held:
            return self._damage()
        start = self._position()
        if (head := self._header()) is None:
            lost = self._pass_to_next_start()
            return Reject(0, start, "corrupt_file", f"{lost:,} bytes that are no WARC record", lost)
        headers = _parsed(head)
        by_name = {name.lower(): value for name, value in headers.items()}
        kind, length = by_name.get("warc-type", "").lower(), by_name.get("content-length", "")
        claimed = int(length) if length.isdecimal() and len(length) < 19 else 0
        is_wanted = kind in self._kinds
        if claimed > (self._max_bytes if is_wanted else _MAX_LOOKED_INTO):
            self._pass(claimed)
            return WarcRecord(start, kind, headers, claimed, b"")
        content = self._content(claimed)
        return WarcRecord(start, kind, headers, len(content), content if is_wanted else b"")

    def _content(self, claimed: int) -> bytes:
        """The content of a record that says it is `claimed` bytes long."""
        self._fill(claimed + _START_BYTES)
        is_whole = len(self._held) >= claimed
        after = self._held[claimed : claimed + _LOOKED_AT].lstrip(b"\r\n")
        if is_whole:
            ends_well = _START.match(after) or _HEADER_END.match(self._held, claimed)
            is_right = not after or ends_well is not None
        else:
            is_right = _NEXT.search(self._held) is None
        if not is_right:
            return self._content_of_wrong_length(claimed)
        content = bytes(self._held[:claimed])
        del self._held[:claimed]
        if not is_whole and self._stream.damage is None:
            missing = claimed - len(content)
            detail = f"the file ends within a WARC record; {missing:,} bytes of it are missing"
            self._told = Reject(0, self._position(), "truncated_file", detail, 0)
        return content

    def _content_of_wrong_length(self, claimed: int) -> bytes:
        """The content up to the next header, where something else than it is after `claimed` bytes."""
        position = self._position()
        looked = 0
        while (border := _NEXT.search(self._held, max(0, looked - _START_BYTES))) is None:
            looked = len(self._held)
            if looked > self._max_bytes or not self._fill(looked + 1):
                break
        stop = border.end() if border is not None else min(len(self._held), self._max_bytes)
        content = _BORDER.sub(b"", self._held[:stop])
        del self._held[:stop]
        detail = f"a WARC record says that it has {claimed:,} bytes, and has {len(content):,}"
        self._told = Reject(0, position, "corrupt_file", detail, 0)
        return bytes(content)

    def _damage(self) -> Reject | None:
        """The damaged place that the stream is at, which is passed; None at the end."""
        damage = self._stream.damage
        if damage is None:
            return None
        reject = Reject(0, self._stream.position, damage.reason, damage.detail, damage.stored_bytes)
        self._stream.pass_damage()
        return reject

    def _header(self) -> bytes | None:
        """Take the header, blank line included, if one begins here."""
        self._fill(_START_BYTES)
        if _START.match(self._held) is None:
            return None
        looked = 0
        while (end := _HEADER_END.search(self._held, max(0, looked - 4), _MAX_HEADER_BYTES)) is None:
            looked = len(self._held)
            if looked > _MAX_HEADER_BYTES or not self._fill(looked + 1):
                return None
        head = bytes(self._held[: end.end()])
        del self._held[: end.end()]
        return head

    def _pass_to_next_start(self) -> int:
        """Drop what is before the next header; returns how many bytes that were."""
        passed = 0
        while True:
            border = _NEXT.search(self._held)
            keep = (
                len(self._held) - border.end() if border is not None else min(_START_BYTES, len(self._held))
            )
            passed += len(self._held) - keep
            del self._held[: len(self._held) - keep]
            if border is not None:
                return passed
            if not self._fill(len(self._held) + 1):
                passed += len(self._held)
                self._held.clear()
                return passed

    def _pass_line_ends(self) -> None:
        while self._fill(1) and (ends := _LINE_ENDS.match(self._held)) is not None:
            del self._held[: ends.end()]

    def _pass(self, count: int) -> None:
        """Drop `count` bytes, or all there are."""
        while count > len(self._held):
            count -= len(self._held)
            self._held.clear()
            if not self._fill(1):
                return
        del self._held[:count]

    def _position(self) -> int:
        return self._stream.position - len(self._held)

    def _fill(self, count: int) -> bool:
        """Have at least `count` bytes held; False if the file ends, or is damaged, before."""
        while len(self._held) < count:
            piece = self._stream.read()
            if not piece:
                return False
            self._held += piece
        return True


def _parsed(head: bytes) -> dict[str, str]:
    """The header lines below the first; of two of one name, the last."""
    text = _FOLD.sub(" ", head.decode("utf-8", "replace"))
    pairs = (line.partition(":") for line in text.split("\n")[1:])
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}
