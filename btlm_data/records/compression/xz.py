"""xz, by the standard library; files of several streams (pixz, xz -T, cat) too."""

from __future__ import annotations

import lzma
from collections.abc import Generator, Iterator
from typing import BinaryIO

from btlm_data.records.base import Compression, Damage
from btlm_data.records.compression.members import MemberCodec, Salvaged, decompress, feed_in_steps

_ERRORS = (lzma.LZMAError, ValueError, EOFError)
_MAGIC = b"\xfd7zXZ\0"
_DECODER_BYTES = 2**20  # besides the dictionary


def _new_decoder(max_window: int) -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=max_window + _DECODER_BYTES)


def _is_start(data: bytes) -> bool:
    return data[:6] == _MAGIC[: len(data)]


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


XZ = Compression("xz", (".xz",), _is_start, _decompress)
