"""Files made of members one after the other (gzip, bzip2, xz): reading them, and reading what damage has
left.

A member is decompressed by the library's fast decoder. Where that fails, `salvage` decompresses the member
once more, in steps small enough that no byte before the damage is lost; then the next member is looked for by
its first bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import BinaryIO, NamedTuple, Protocol

import msgspec

from btlm_data.records.base import Damage

MAX_DAMAGES = 1000  # of one file; a file with more is given up
_READ_BYTES = 2**16
_SEARCH_BYTES = 2**20
HEADER_BYTES = 32  # enough to recognise the start of a member


class Decoder(Protocol):
    """The interface of bz2.BZ2Decompressor, lzma.LZMADecompressor and isal.igzip_lib.IgzipDecompressor."""

    @property
    def eof(self) -> bool:
        """Whether the member has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether more output needs more input."""

    @property
    def unused_data(self) -> bytes:
        """Input after the member's end."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """At most max_length bytes more."""


class Salvaged(NamedTuple):
    """How the second attempt at a member ended.

    damage: None where the member is good after all. position: after the last byte as stored that could be
    used. search_from: where to look for the next member if it may not begin at `position`.
    """

    damage: Damage | None
    position: int
    search_from: int | None = None


class MemberCodec(msgspec.Struct, frozen=True):
    """What differs between the kinds. is_start: whether bytes (HEADER_BYTES, or fewer at the file's end)
    begin a member.

    salvage(file, start, skip, max_window): the bytes of the member at `start` after the first `skip`, then
    how it ended.
    """

    name: str
    magic: bytes
    new_decoder: Callable[[int], Decoder]
    is_start: Callable[[bytes], bool]
    errors: tuple[type[Exception], ...]
    salvage: Callable[[BinaryIO, int, int, int], Generator[bytes, None, Salvaged]]


def decompress(
    codec: MemberCodec, file: BinaryIO, piece_bytes: int, max_window: int
) -> Iterator[bytes | Damage]:
    """The bytes of all members, and a Damage wherever some are missing."""
    size = file.seek(0, 2)
    file.seek(0)
    position, data, damages = 0, b"", 0
    while True:
        data = data.lstrip(b"\0")  # padding, as tapes and xz have it
        while len(data) < HEADER_BYTES and (more := file.read(_READ_BYTES)):
            data = (data + more).lstrip(b"\0")
        position = file.tell() - len(data)
        if not data:
            return
        if not codec.is_start(data[:HEADER_BYTES]):
            damage, position, _ = _garbage(codec, file, position, size, data)
        else:
            start, produced = position, 0
            decoder = codec.new_decoder(max_window)
            try:
                while not decoder.eof:
                    if decoder.needs_input and not data and not (data := file.read(_READ_BYTES)):
                        break
                    piece = decoder.decompress(data, piece_bytes)
                    data = b""
                    if piece:
                        produced += len(piece)
                        yield piece
            except codec.errors as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
            if decoder.eof:
                data = decoder.unused_data
                continue
            damage, position, search_from = yield from codec.salvage(file, start, produced, max_window)
            if damage is not None and search_from is not None:
                damage, position = _find_next(codec, file, damage, position, search_from, size)
        if damage is not None:
            yield damage
            damages += 1
        if position >= size or damages >= MAX_DAMAGES:
            return
        file.seek(position)
        data = b""


def find_start(codec: MemberCodec, file: BinaryIO, position: int, size: int) -> int:
    """Where, from `position` on, the next member begins; `size` if nowhere."""
    while position < size:
        file.seek(position)
        data = file.read(_SEARCH_BYTES + HEADER_BYTES)
        offset = data.find(codec.magic)
        while 0 <= offset < _SEARCH_BYTES:
            if codec.is_start(data[offset : offset + HEADER_BYTES]):
                return position + offset
            offset = data.find(codec.magic, offset + 1)
        position += _SEARCH_BYTES
    return size


def _garbage(codec: MemberCodec, file: BinaryIO, position: int, size: int, data: bytes) -> Salvaged:
    """Bytes that begin no member."""
    if len(data) < len(codec.magic) and codec.magic.startswith(data):
        return Salvaged(Damage("truncated_file", "the file ends in mid-header", len(data)), size)
    end = find_start(codec, file, position + 1, size)
    where = "the file begins with" if position == 0 else f"after byte {position} as stored come"
    detail = f"{where} {end - position:,} bytes that are not {codec.name} ({data[:8]!r})"
    return Salvaged(Damage("corrupt_file", detail, end - position), end)


def _find_next(
    codec: MemberCodec, file: BinaryIO, damage: Damage, position: int, search_from: int, size: int
) -> tuple[Damage, int]:
    """The damage with what was lost, and where reading continues.

    Damage is often noticed late, so the next member may begin before `position`: what seemed to be data was
    that member.
    """
    end = find_start(codec, file, search_from, size)
    if "checksum" in damage.detail:
        return damage, min(end, position)
    if damage.reason == "truncated_file" and end == size:
        return damage, size
    lost = max(1, end - position)
    detail = f"{damage.detail}; {lost:,} bytes as stored could not be decompressed"
    return Damage("corrupt_file", detail, lost), end


def feed_in_steps(
    make: Callable[[], Decoder],
    errors: tuple[type[Exception], ...],
    file: BinaryIO,
    start: int,
    skip: int,
) -> Generator[bytes, None, tuple[Decoder, int, Exception | None]]:
    """The bytes of one member after the first `skip`, fed byte by byte near the place where decompressing
    fails.

    Returns the decoder, the position in the file after the last byte it took, and the error (None: it ended,
    or the file did).
    """
    failing: tuple[int, int] | None = None
    while True:
        decoder, position, to_skip = make(), start, skip
        file.seek(start)
        error: Exception | None = None
        while not decoder.eof:
            one_by_one = failing is not None and failing[0] <= position < failing[1]
            data = file.read(1 if one_by_one else 2**14)
            if not data:
                break
            begin, position = position, position + len(data)
            try:
                while True:
                    piece = decoder.decompress(data, 2**20)
                    data = b""
                    if to_skip < len(piece):
                        yield piece[to_skip:] if to_skip else piece
                        skip += len(piece) - to_skip
                    to_skip = max(0, to_skip - len(piece))
                    if decoder.eof or decoder.needs_input:
                        break
            except errors as caught:
                if isinstance(caught, OSError) and caught.errno is not None:
                    raise
                error = caught
                if not one_by_one and failing is None:
                    failing = (begin, position)
                else:
                    return decoder, begin, error
                break
        if error is None:
            return decoder, position - len(decoder.unused_data), None
