"""The bytes of a file as its reader wants them: decompressed, in UTF-8, with what is damaged distinguished
from the end.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import BinaryIO

from btlm_data.advance import advance
from btlm_data.errors import ConfigError
from btlm_data.records.base import Damage, ReadRequest
from btlm_data.records.compression import COMPRESSIONS
from btlm_data.records.first_bytes import HEAD_BYTES, compressed_twice, compression_of, not_data

PIECE_BYTES = 2**17
BOM = b"\xef\xbb\xbf"
_UTF16 = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_UTF32 = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}


class ByteStream:
    """Decompressed bytes from `position` on. is_plain: they are the file's own bytes.

    `read` gives b"" at the end and at each damaged place; `damage` then says which. `pass_damage` continues
    after it. A damaged place counts as one byte of `position`, so that reading can resume before or after
    it.
    """

    def __init__(self, raw: BinaryIO, pieces: Iterator[bytes | Damage], is_plain: bool) -> None:
        self.position = 0
        self.damage: Damage | None = None
        self._raw, self._pieces, self.is_plain = raw, pieces, is_plain
        self._held, self._stored = b"", 0

    def seek(self, position: int) -> None:
        """Start at `position` (a plain stream only, before anything was read)."""
        assert self.is_plain
        self._raw.seek(position)
        self.position = self._stored = position

    def skip(self, position: int) -> None:
        """Read up to `position` and drop it."""
        while self.position < position:
            piece = self.read()
            if not piece:
                if not self.pass_damage():
                    return
            elif self.position > position:
                excess = self.position - position
                self._held = piece[len(piece) - excess :]
                self.position = position

    def peek(self, size: int) -> bytes:
        """At least `size` of the next bytes, or what there is of them; reading gives them again."""
        parts: list[bytes] = []
        while size > 0 and (piece := self.read()):
            parts.append(piece)
            size -= len(piece)
        self._held = b"".join(parts)
        self.position -= len(self._held)
        return self._held

    def read(self) -> bytes:
        """The next piece; empty at the end and at a damaged place."""
        if self._held:
            piece, self._held = self._held, b""
        elif self.damage is not None:
            return b""
        else:
            try:
                piece_or_damage = next(self._pieces, b"")
            except OSError as error:
                piece_or_damage = Damage("unreadable_file", error.strerror or str(error))
                self._pieces = iter(())
            if isinstance(piece_or_damage, Damage):
                self.damage = piece_or_damage
                return b""
            piece = piece_or_damage
            stored = self._raw.tell()
            if stored > self._stored:
                advance(stored - self._stored)
                self._stored = stored
        self.position += len(piece)
        return piece

    def pass_damage(self) -> bool:
        """Continue after the damaged place; whether there was one."""
        if self.damage is None:
            return False
        self.damage = None
        self.position += 1
        return True


@contextmanager
def open_stream(request: ReadRequest) -> Iterator[ByteStream]:
    """The stream of a file. Raises OSError if the file cannot be opened, ConfigError for an unknown
    encoding.
    """
    options = request.options
    with request.path.open("rb") as raw:
        compression = compression_of(raw, request.file.compression)
        is_plain = compression == "none"
        if is_plain:
            pieces: Iterator[bytes | Damage] = iter(lambda: raw.read(PIECE_BYTES), b"")
        elif request.stretch.start:  # called plain and cut in ranges; the first one reads it all
            pieces = iter(())
        else:
            pieces = COMPRESSIONS[compression].decompress(raw, PIECE_BYTES, options.max_window)
        if not is_utf8(options.encoding):
            pieces, is_plain = _in_utf8(pieces, options.encoding), False
        elif is_plain:
            head = raw.read(HEAD_BYTES)
            raw.seek(0)
            if (damage := _wrong_encoding(head, request)) is not None:
                pieces, is_plain = iter([damage] if request.stretch.start == 0 else []), False
        else:
            pieces = _checked(pieces, request)
        yield ByteStream(raw, pieces, is_plain)


def _checked(pieces: Iterator[bytes | Damage], request: ReadRequest) -> Iterator[bytes | Damage]:
    first = next(pieces, b"")
    if isinstance(first, bytes) and (damage := _not_records(first, request)) is not None:
        yield damage
        return
    yield first
    yield from pieces


def _not_records(head: bytes, request: ReadRequest) -> Damage | None:
    """What is wrong with all of a file that begins so when decompressed."""
    size = request.path.stat().st_size
    if (damage := compressed_twice(head[:HEAD_BYTES])) is not None:
        return Damage(damage.reason, damage.detail, size)
    if (words := not_data(head[:1024], request.file.format)) is not None:
        return Damage("not_data", words, size)
    return _wrong_encoding(head[:HEAD_BYTES], request)


def _wrong_encoding(head: bytes, request: ReadRequest) -> Damage | None:
    encoding = foreign_encoding(head)
    if encoding is None:
        return None
    detail = f"its text is {encoding.upper()}, not UTF-8; set source.encoding to {encoding}, or convert it"
    return Damage("wrong_encoding", detail, request.path.stat().st_size)


def is_utf8(encoding: str) -> bool:
    """Whether nothing has to be converted. Raises ConfigError if the name is not that of a text encoding."""
    try:
        codec = codecs.lookup(encoding)
    except (LookupError, ValueError):
        codec = None
    if codec is None or not getattr(codec, "_is_text_encoding", True) or codec.incrementaldecoder is None:
        raise ConfigError(
            f"source.encoding: {encoding!r} is not a text encoding that Python knows. "
            "Use for example utf-8, utf-16, latin-1, cp1252, shift_jis or gb18030."
        )
    return codec.name in ("utf-8", "ascii")


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    """Put a byte that is not UTF-8 where something could not be decoded, so that its record is rejected."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("btlm-mark-undecodable", _mark_undecodable)


def _in_utf8(pieces: Iterator[bytes | Damage], encoding: str) -> Iterator[bytes | Damage]:
    decoder = codecs.getincrementaldecoder(encoding)("btlm-mark-undecodable")
    for piece in chain(pieces, [None]):
        if isinstance(piece, Damage):
            decoder.reset()
            yield piece
            continue
        try:
            text = decoder.decode(piece or b"", piece is None)
        except UnicodeError as error:  # of the whole: no byte order mark where one must be
            detail = f"it is not {encoding}: {error}; name another source.encoding, for example utf-16-le"
            yield Damage("wrong_encoding", detail)
            return
        if text:
            yield text.encode("utf-8", "surrogateescape")


def foreign_encoding(head: bytes) -> str | None:
    """The encoding that the first bytes of a file speak for, where it is not UTF-8; for Python and for
    people.
    """
    for mark, name in {**_UTF32, **_UTF16}.items():
        if head.startswith(mark):
            return name
    if len(head) >= 8 and head[1:8:2] == b"\0\0\0\0" and b"\0" not in head[0:8:2]:
        return "utf-16-le"
    if len(head) >= 8 and head[0:8:2] == b"\0\0\0\0" and b"\0" not in head[1:8:2]:
        return "utf-16-be"
    return None
