"""Text out of tokens: the bytes that each token stands for, one after the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_below, check_offsets, check_stretches

_WIDTH = 15  # bytes of a token that are copied at once; the sixteenth of its entry says how many it has
_LONG = 0xFF  # it has more
UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]


class TokenBytes(NamedTuple):
    """Token t stands for utf8[offsets[t]:offsets[t + 1]]; offsets (V + 1,) int64."""

    utf8: UInt8Array
    offsets: Int64Array


def decode(
    tokens: npt.NDArray[Any], starts: Int64Array, lengths: Int64Array, table: TokenBytes
) -> tuple[UInt8Array, Int64Array]:
    """Texts of documents tokens[starts[i]:starts[i] + lengths[i]]: their bytes, and n + 1 offsets.

    Raises DataError for a document outside the tokens, and for a token without an entry. tokens: (t,) of any
    integer dtype; starts, lengths: (n,) int64; returns (bytes,) uint8 and (n + 1,) int64.
    """
    check_stretches(starts, starts + lengths, len(tokens), "The tokens of document")
    check_offsets(table.offsets, len(table.utf8), "The offsets of tokens")
    vocabulary = len(table.offsets) - 1
    offsets = np.zeros(len(starts) + 1, np.int64)
    tokens, starts, lengths = readonly(tokens), readonly(starts), readonly(lengths)
    widest = _measure(tokens, starts, lengths, readonly(table.offsets), offsets)
    check_below(np.array([widest]), vocabulary, "The largest id of token")
    np.cumsum(offsets, out=offsets)
    out = np.empty(int(offsets[-1]) + 16, np.uint8)
    entries = np.zeros((vocabulary, 16), np.uint8)
    _enter(readonly(table.utf8), readonly(table.offsets), entries)
    words = readonly(entries.view("<u8"))
    _decode(tokens, starts, lengths, readonly(table.utf8), readonly(table.offsets), words, offsets, out)
    return out[: offsets[-1]], offsets


@jit
def _measure(
    tokens: npt.NDArray[Any],
    starts: Int64Array,
    lengths: Int64Array,
    token_offsets: Int64Array,
    sizes: Int64Array,
) -> int:
    """Bytes of each document into sizes[i + 1]; returns the largest id, and stops at one that is too large."""
    widest = 0
    for i in range(len(starts)):
        size = np.int64(0)
        for k in range(starts[i], starts[i] + lengths[i]):
            token = np.int64(tokens[k])
            widest = max(widest, int(token))
            if token >= len(token_offsets) - 1:
                return widest
            size += token_offsets[token + 1] - token_offsets[token]
        sizes[i + 1] = size
    return widest


@jit
def _decode(
    tokens: npt.NDArray[Any],
    starts: Int64Array,
    lengths: Int64Array,
    utf8: UInt8Array,
    token_offsets: Int64Array,
    entries: npt.NDArray[np.uint64],
    offsets: Int64Array,
    out: UInt8Array,
) -> None:
    """Nearly all tokens are short: 16 bytes are copied at once, and what is too much is overwritten by what follows."""
    eight = np.uint64(8)
    for i in range(len(starts)):
        position = np.uint64(offsets[i])
        for k in range(starts[i], starts[i] + lengths[i]):
            token = np.uint64(tokens[k])
            low, high = entries[token, 0], entries[token, 1]
            size = high >> np.uint64(56)
            if size == np.uint64(_LONG):
                first = np.uint64(token_offsets[token])
                size = np.uint64(token_offsets[token + np.uint64(1)]) - first
                for j in range(size):
                    out[position + np.uint64(j)] = utf8[first + np.uint64(j)]
            else:
                for j in range(8):  # LLVM makes one store of each
                    out[position + np.uint64(j)] = np.uint8(low >> np.uint64(8 * j))
                for j in range(8):
                    out[position + eight + np.uint64(j)] = np.uint8(high >> np.uint64(8 * j))
            position += size


@jit
def _enter(utf8: UInt8Array, token_offsets: Int64Array, entries: UInt8Array) -> None:
    """Write the entry of every token: its bytes and its length."""
    for token in range(len(entries)):
        size = token_offsets[token + 1] - token_offsets[token]
        entries[token, _WIDTH] = size if size <= _WIDTH else _LONG
        for j in range(min(_WIDTH, size)):
            entries[token, j] = utf8[token_offsets[token] + j]
