"""xz and the older .lzma, by the standard library; files of several streams (pixz, xz -T, cat) too.

Format of .lzma: https://github.com/tukaani-project/xz/blob/master/doc/lzma-file-format.txt
"""

from __future__ import annotations

import lzma
from collections.abc import Generator, Iterator
from typing import BinaryIO

from btlm_data.records.base import Compression, Damage
from btlm_data.records.compression.members import MemberCodec, Salvaged, decompress, feed_in_steps

_ERRORS = (lzma.LZMAError, ValueError, EOFError)
_MAGIC = b"\xfd7zXZ\0"
_ALONE_PROPERTIES = 0x5D  # lc=3, lp=0, pb=2: what every known writer of .lzma uses
_ALONE_HEADER_BYTES = 13
_ALONE_MAX_BYTES = 2**38  # of text, as xz checks it before it takes a file for .lzma
_DECODER_BYTES = 2**20  # besides the dictionary


def _new_decoder(max_window: int) -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_AUTO, memlimit=max_window + _DECODER_BYTES)


def _is_start(data: bytes) -> bool:
    return data[:6] == _MAGIC[: len(data)] or _is_lzma_alone(data)


def _is_lzma_alone(data: bytes) -> bool:
    """Whether bytes begin a .lzma file: its properties, a dictionary of 2^n or 2^n + 2^(n-1) bytes, and a
    size that is unknown or sensible.
    """
    if len(data) < _ALONE_HEADER_BYTES or data[0] != _ALONE_PROPERTIES:
        return False
    dictionary = int.from_bytes(data[1:5], "little")
    size = int.from_bytes(data[5:13], "little")
    top = 1 << dictionary.bit_length() >> 1
    return (
        dictionary in (top, top + top // 2)
        and dictionary > 0
        and (size == 2**64 - 1 or size < _ALONE_MAX_BYTES)
    )


def _salvage(file: BinaryIO, start: int, skip: int, max_window: int) -> Generator[bytes, None, Salvaged]:
    decoder, position, error = yield from feed_in_steps(
        lambda: _new_decoder(max_window), _ERRORS, file, start, skip
    )
    if error is not None and "limit" in str(error).lower():
        detail = f"the xz data needs a dictionary of more than {max_window:,} bytes; raise source.max_window"
        return Salvaged(Damage("window_too_large", detail, file.seek(0, 2) - start), file.seek(0, 2))
    if error is not None:
        detail = f"damaged xz data at byte {position} as stored"
        return Salvaged(Damage("corrupt_file", detail), position, start + 1)
    if not decoder.eof:
        detail = f"the file ends in the middle of xz data, at byte {position} as stored"
        return Salvaged(Damage("truncated_file", detail), position, start + 1)
    return Salvaged(None, position)


_CODEC = MemberCodec("xz", _MAGIC, _new_decoder, _is_start, _ERRORS, _salvage)


def _decompress(file: BinaryIO, piece_bytes: int, max_window: int) -> Iterator[bytes | Damage]:
    return decompress(_CODEC, file, piece_bytes, max_window)


XZ = Compression("xz", (".xz", ".lzma"), _is_start, _decompress)
