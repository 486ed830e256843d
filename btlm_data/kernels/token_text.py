"""Text out of tokens: the bytes that each token stands for, one after the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_below, check_offsets, check_stretches

_WIDTH = 16  # bytes
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
    out = np.empty(int(offsets[-1]) + _WIDTH, np.uint8)
    padded = np.zeros((vocabulary, _WIDTH), np.uint8)
    _pad(readonly(table.utf8), readonly(table.offsets), padded)
    _decode(tokens, starts, lengths, readonly(table.utf8), readonly(table.offsets), padded, offsets, out)
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
    padded: UInt8Array,
    offsets: Int64Array,
    out: UInt8Array,
) -> None:
    """Nearly all tokens are short: _WIDTH bytes are copied at once, and what is too much is overwritten by
    what follows.
    """
    for i in range(len(starts)):
        start = offsets[i]
        for k in range(starts[i], starts[i] + lengths[i]):
            token = np.int64(tokens[k])
            size = token_offsets[token + 1] - token_offsets[token]
            if size <= _WIDTH:
                for j in range(_WIDTH):
                    out[start + j] = padded[token, j]
            else:
                for j in range(size):
                    out[start + j] = utf8[token_offsets[token] + j]
            start += size


@jit
def _pad(utf8: UInt8Array, token_offsets: Int64Array, padded: UInt8Array) -> None:
    """The first _WIDTH bytes of every token."""
    for token in range(len(padded)):
        for j in range(min(_WIDTH, token_offsets[token + 1] - token_offsets[token])):
            padded[token, j] = utf8[token_offsets[token] + j]
