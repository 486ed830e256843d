"""Text out of tokens: the bytes that each token stands for, one after the other; or the normalised text at once, out of what
each token becomes when it is normalised.

Normalised token by token, a text is right unless what becomes of a character depends on more than its token: parts of a
character in several tokens, and a capital sigma. So whoever asks for it compares a hash of the text.
"""

from __future__ import annotations

import re
import string
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_below, check_offsets, check_same_length, check_stretches

_WIDTH = 15  # bytes of a token that are copied at once; the sixteenth of its entry has what follows
_LENGTH, _BEGINS, _ENDS, _LONG = (
    0x0F,
    0x10,
    0x20,
    0x80,
)  # bytes; with a space; with a space; it has more than 15
_SPACE = 0x20
_SLACK = 16  # bytes around the texts that are written and not used
UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]


class TokenBytes(NamedTuple):
    """Token t stands for utf8[offsets[t]:offsets[t + 1]]; offsets (V + 1,) int64."""

    utf8: UInt8Array
    offsets: Int64Array


class Table(msgspec.Struct, frozen=True):
    """What `decode` writes for each token. entries: (V, 2) uint64. collapses: spaces that meet become one, and none is left
    at a text's ends.
    """

    tokens: TokenBytes
    entries: UInt64Array
    collapses: bool

    @staticmethod
    def of(tokens: TokenBytes, *, collapses: bool = False) -> Table:
        """Raises DataError where the offsets of tokens are not inside of their bytes."""
        check_offsets(tokens.offsets, len(tokens.utf8), "The offsets of tokens")
        entries = np.zeros((len(tokens.offsets) - 1, _WIDTH + 1), np.uint8)
        _enter(readonly(tokens.utf8), readonly(tokens.offsets), collapses, entries)
        return Table(tokens, readonly(entries.view("<u8")), collapses)


def normalised(tokens: TokenBytes) -> TokenBytes:
    """What becomes of each token in a normalised text (normalisation.py): a space at its ends stays. Bytes of a token that are
    no whole character are left as they are.
    """
    data = tokens.utf8.tobytes()
    # Between tokens stands a character that none of them has: no text has it, so that it is not lost in normalising.
    separator = next(
        character for character in map(chr, range(0x10FFFF, 0xF0000, -1)) if character.encode() not in data
    )
    ends = np.repeat(tokens.offsets[1:-1], len(separator.encode()))
    between = np.tile(np.frombuffer(separator.encode(), np.uint8), max(0, len(tokens.offsets) - 2))
    text = np.insert(tokens.utf8, ends, between).tobytes().decode(errors="surrogateescape")
    # As bytes: punctuation is a byte each, and `str.translate` looks up every character.
    without = text.lower().encode(errors="surrogateescape").translate(None, string.punctuation.encode())
    text = without.decode(errors="surrogateescape")
    pieces = re.sub(r"[^\S ]\s*| \s+", " ", text).encode(errors="surrogateescape").split(separator.encode())
    offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)[: len(tokens.offsets)]
    return TokenBytes(np.frombuffer(b"".join(pieces), np.uint8), offsets)


def decode(
    tokens: npt.NDArray[Any], starts: Int64Array, lengths: Int64Array, table: Table, most: Int64Array
) -> tuple[UInt8Array, Int64Array]:
    """Texts of documents tokens[starts[i]:starts[i] + lengths[i]]: their bytes, and n + 1 offsets. A text of more than most[i]
    bytes is left empty.

    Raises DataError for a document outside the tokens, and for a token without an entry. tokens: (t,) of any
    integer dtype; starts, lengths, most: (n,) int64; returns (bytes,) uint8 and (n + 1,) int64.
    """
    check_stretches(starts, starts + lengths, len(tokens), "The tokens of document")
    check_same_length("Documents and their most bytes", starts, most)
    room = int(most.sum())
    check_below(most, room + 1, "The most bytes of document")
    offsets = np.zeros(len(starts) + 1, np.int64)
    out = np.empty(room + 2 * _SLACK, np.uint8)
    unknown = _decode(
        readonly(tokens),
        readonly(starts),
        readonly(lengths),
        readonly(most),
        readonly(table.tokens.utf8),
        readonly(table.tokens.offsets),
        table.entries,
        int(table.collapses),
        offsets,
        out[_SLACK - 1 :],
    )
    if unknown >= 0:
        raise DataError(
            f"The id of a token is {unknown}, outside the range from 0 to {len(table.entries) - 1}. "
            "The file is damaged or was written by another version. Delete it and rerun the same command."
        )
    return out[_SLACK : _SLACK + offsets[-1]], offsets


@jit
def _decode(
    tokens: npt.NDArray[Any],
    starts: Int64Array,
    lengths: Int64Array,
    most: Int64Array,
    utf8: UInt8Array,
    token_offsets: Int64Array,
    entries: UInt64Array,
    collapses: int,
    offsets: Int64Array,
    out: UInt8Array,
) -> int:
    """Write the texts to out[1:]; returns an id that has no entry, else -1.

    Nearly all tokens are short: 16 bytes are copied at once, and what is too much is overwritten by what follows. A space
    that follows another is written over it; so is one at a text's beginning, over the byte before, which is put back.
    """
    one, eight, zero = np.uint64(1), np.uint64(8), np.uint64(0)
    position = one
    for i in range(len(starts)):
        first, limit = position, position + np.uint64(most[i])
        before = out[first - one]
        ends_with_space = np.uint64(collapses)  # as if a space stood before: leading ones vanish
        for k in range(starts[i], starts[i] + lengths[i]):
            token = np.uint64(tokens[k])
            if token >= np.uint64(len(entries)):
                return int(np.int64(token))
            low, high = entries[token, 0], entries[token, 1]
            flags = high >> np.uint64(56)
            size = flags & np.uint64(_LENGTH)
            if flags & np.uint64(_LONG):
                size = np.uint64(token_offsets[token + one] - token_offsets[token])
            position -= ends_with_space & (flags >> np.uint64(4))
            if position + size > limit:
                position, ends_with_space = first, zero
                break
            if flags & np.uint64(_LONG):
                begin = np.uint64(token_offsets[token])
                for j in range(size):
                    out[position + np.uint64(j)] = utf8[begin + np.uint64(j)]
            else:
                for j in range(8):  # LLVM makes one store of each
                    out[position + np.uint64(j)] = np.uint8(low >> np.uint64(8 * j))
                for j in range(8):
                    out[position + eight + np.uint64(j)] = np.uint8(high >> np.uint64(8 * j))
            position += size
            ends_with_space = ends_with_space if size == zero else (flags >> np.uint64(5)) & one
        if position > first:
            position -= ends_with_space
        out[first - one] = before
        offsets[i + 1] = np.int64(position - one)
    return -1


@jit
def _enter(utf8: UInt8Array, token_offsets: Int64Array, collapses: bool, entries: UInt8Array) -> None:
    """Write the entry of every token: its bytes, its length, and where it has a space."""
    for token in range(len(entries)):
        begin, end = token_offsets[token], token_offsets[token + 1]
        size = end - begin
        flags = np.uint8(size) if size <= _WIDTH else np.uint8(_LONG)
        if collapses and size > 0:
            if utf8[begin] == _SPACE:
                flags |= np.uint8(_BEGINS)
            if utf8[end - 1] == _SPACE:
                flags |= np.uint8(_ENDS)
        entries[token, _WIDTH] = flags
        for j in range(min(_WIDTH, size)):
            entries[token, j] = utf8[begin + j]
