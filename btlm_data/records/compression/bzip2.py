"""bzip2, by the standard library; files of several streams (pbzip2, lbzip2) too."""

from __future__ import annotations

import bz2
from collections.abc import Generator, Iterator
from typing import BinaryIO

from btlm_data.records.base import Compression, Damage
from btlm_data.records.compression.members import MemberCodec, Salvaged, decompress, feed_in_steps

_ERRORS = (OSError, ValueError, EOFError)  # an OSError without a number is about the data
_BLOCKS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")  # a block, or an empty stream's end


def _new_decoder(_: int) -> bz2.BZ2Decompressor:
    return bz2.BZ2Decompressor()


def _is_start(data: bytes) -> bool:
    if data[:3] != b"BZh"[: len(data)]:
        return False
    return len(data) < 10 or (data[3:4] in b"123456789" and data[4:10] in _BLOCKS)


def _salvage(file: BinaryIO, start: int, skip: int, _: int) -> Generator[bytes, None, Salvaged]:
    decoder, position, error = yield from feed_in_steps(bz2.BZ2Decompressor, _ERRORS, file, start, skip)
    if error is not None:
        detail = f"damaged bzip2 data before byte {position} as stored"
        return Salvaged(Damage("corrupt_file", detail), position, start + 1)
    if not decoder.eof:
        detail = f"the file ends in the middle of bzip2 data, at byte {position} as stored"
        return Salvaged(Damage("truncated_file", detail), position, start + 1)
    return Salvaged(None, position)


_CODEC = MemberCodec("bzip2", b"BZh", _new_decoder, _is_start, _ERRORS, _salvage)


def _decompress(file: BinaryIO, piece_bytes: int, max_window: int) -> Iterator[bytes | Damage]:
    return decompress(_CODEC, file, piece_bytes, max_window)


BZIP2 = Compression("bzip2", (".bz2",), _is_start, _decompress)
