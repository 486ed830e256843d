"""gzip: ISA-L decompresses; zlib reads what damage has left. Format: RFC 1952; deflate: RFC 1951."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

from isal import igzip_lib

from btlm_data.records.base import Compression, Damage
from btlm_data.records.compression.members import MemberCodec, Salvaged, decompress

_FLAG_CRC, _FLAG_EXTRA, _FLAG_NAME, _FLAG_COMMENT = 2, 4, 8, 16
_IsalError: Any = igzip_lib.IsalError
_MAX_HEADER_BYTES = 2**17 + 2**16  # extra field, name and comment


def _new_decoder(_: int) -> Any:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def _is_start(data: bytes) -> bool:
    """Magic, method 8, known flags, and the extra flags and system that writers use: 1 in 10^11 places by
    chance.
    """
    if len(data) < 10:
        return data[:3] == b"\x1f\x8b\x08"[: len(data)]
    return (
        data[:3] == b"\x1f\x8b\x08"
        and data[3] < 32
        and data[8] in (0, 2, 4)
        and (data[9] <= 13 or data[9] == 255)
    )


def _header_bytes(data: bytes) -> int | None:
    """Length of the header that `data` begins with; None if it does not end there."""
    flags, position = data[3] if len(data) > 3 else 0, 10
    if flags & _FLAG_EXTRA:
        position += 2 + int.from_bytes(data[position : position + 2], "little")
    for flag in (_FLAG_NAME, _FLAG_COMMENT):
        if flags & flag:
            end = data.find(b"\0", position)
            if end < 0:
                return None
            position = end + 1
    if flags & _FLAG_CRC:
        position += 2
    return position if position <= len(data) else None


def _salvage(file: BinaryIO, start: int, skip: int, _: int) -> Generator[bytes, None, Salvaged]:
    """Inflate the member at `start` with zlib, byte by byte where it fails; its checksum is compared at the
    end.
    """
    file.seek(start)
    header = _header_bytes(file.read(_MAX_HEADER_BYTES))
    size = file.seek(0, 2)
    if header is None:
        if size - start <= _MAX_HEADER_BYTES:
            return Salvaged(Damage("truncated_file", "the file ends in a gzip header", size - start), size)
        detail = f"a damaged gzip header at byte {start} as stored"
        return Salvaged(Damage("corrupt_file", detail), start, start + 1)
    position = file.seek(start + header)
    inflate, crc, length = zlib.decompressobj(-15), 0, 0
    failed = ""
    while not inflate.eof and not failed:
        data = file.read(2**14)
        if not data:
            break
        before = inflate.copy()
        try:
            pieces = [inflate.decompress(data)]
            position += len(data)
        except zlib.error:
            pieces, inflate = [], before
            for index in range(len(data)):
                try:
                    pieces.append(inflate.decompress(data[index : index + 1]))
                except zlib.error as error:
                    failed = str(error).split(": ")[-1]
                    break
                position += 1
        piece = b"".join(pieces)
        crc, length = zlib.crc32(piece, crc), length + len(piece)
        if skip < len(piece):
            yield piece[skip:]
        skip = max(0, skip - len(piece))
    if failed:
        detail = f"damaged gzip data at byte {position} as stored ({failed})"
        return Salvaged(Damage("corrupt_file", detail), position, start + 1)
    if not inflate.eof:
        detail = f"the file ends in the middle of gzip data, at byte {size} as stored"
        return Salvaged(Damage("truncated_file", detail), size, start + 1)
    position -= len(inflate.unused_data)
    file.seek(position)
    trailer = file.read(8)
    if len(trailer) < 8:
        detail = "the file ends in the gzip trailer; the text before it is whole, but was not checked"
        return Salvaged(Damage("truncated_file", detail), size)
    if trailer != crc.to_bytes(4, "little") + (length % 2**32).to_bytes(4, "little"):
        detail = (
            f"the checksum of the gzip data that ends at byte {position} as stored does not match: "
            f"the {length:,} bytes decompressed from it were used, and some of them may be wrong"
        )
        return Salvaged(Damage("corrupt_file", detail), position + 8, start + 1)
    return Salvaged(None, position + 8)


_CODEC = MemberCodec("gzip", b"\x1f\x8b\x08", _new_decoder, _is_start, (_IsalError, EOFError), _salvage)


def _decompress(file: BinaryIO, piece_bytes: int, max_window: int) -> Iterator[bytes | Damage]:
    return decompress(_CODEC, file, piece_bytes, max_window)


GZIP = Compression("gzip", (".gz", ".gzip"), _is_start, _decompress)
