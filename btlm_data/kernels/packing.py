"""Where documents and samples go: seeded permutations, token streams, and bins. Numba kernels; callers check ranges.

Plain twins of every kernel are in tests/reference/packing.py.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_jit = numba.njit(cache=True, nogil=True)
_ROUNDS = 6


def permute_index(index: npt.NDArray[np.uint64], n: int, seed: int) -> npt.NDArray[np.uint64]:
    """Send each index to its place under a seeded bijection of [0, n); 1 <= n <= 2^48, every index < n.

    A balanced Feistel network on the smallest even number of bits that holds n, walked along its cycle until the value
    falls below n (fewer than 4 steps on average): Black & Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002),
    sections 4 and 5. Integer arithmetic only, so the order is the same on every machine.
    """
    return _permute(np.ascontiguousarray(index, np.uint64), np.uint64(n), _round_keys(seed), _half_bits(n), False)


def unpermute_index(place: npt.NDArray[np.uint64], n: int, seed: int) -> npt.NDArray[np.uint64]:
    """The inverse of `permute_index`."""
    return _permute(np.ascontiguousarray(place, np.uint64), np.uint64(n), _round_keys(seed), _half_bits(n), True)


def _half_bits(n: int) -> np.uint64:
    return np.uint64(max(4, ((n - 1).bit_length() + 1) // 2))  # never below 4: a network on 1 to 3 bits a half mixes badly


def _round_keys(seed: int) -> npt.NDArray[np.uint64]:
    """One 64-bit key a round: SplitMix64 outputs (Steele, Lea & Flood 2014) from `seed` mod 2^64."""
    keys = np.empty(_ROUNDS, np.uint64)
    state = seed % 2**64
    for i in range(_ROUNDS):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        keys[i] = z ^ z >> 31
    return keys


@_jit
def _permute(
    index: npt.NDArray[np.uint64], n: np.uint64, keys: npt.NDArray[np.uint64], half: np.uint64, inverse: bool
) -> npt.NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    out = np.empty_like(index)
    for i in range(len(index)):
        value = index[i]
        while True:
            left, right = value >> half, value & mask
            for r in range(len(keys)):
                key = keys[len(keys) - 1 - r] if inverse else keys[r]
                # Inverse rounds swap the roles of the halves: undo the last round first.
                source = left if inverse else right
                z = (source + key) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)
                mixed = (z >> np.uint64(16) ^ z >> np.uint64(40)) & mask
                if inverse:
                    left, right = right ^ mixed, left
                else:
                    left, right = right, left ^ mixed
            value = left << half | right
            if value < n:
                break
        out[i] = value
    return out


def place_documents(
    tokens: npt.NDArray[Any],
    src_start: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    dst_start: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
    eos_id: int,
) -> None:
    """Copy documents into `out`, which holds the stream's positions [0, len(out)), each with one EOS after its tokens.

    tokens: staging tokens of any unsigned dtype; document d is tokens[src_start[d] : src_start[d] + lengths[d]] and its
    first token belongs at position dst_start[d] of the stream, where its EOS follows at dst_start[d] + lengths[d].
    dst_start is relative to `out` and may be negative, or a document may end behind `out`: a document that crosses a border
    of the range gives only the part within.
    """
    _place(tokens, src_start, lengths, dst_start, out, eos_id)


@_jit
def _place(
    tokens: npt.NDArray[Any],
    src_start: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    dst_start: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
    eos_id: int,
) -> None:
    for d in range(len(lengths)):
        first = max(0, -dst_start[d])
        last = min(lengths[d], len(out) - dst_start[d])
        for k in range(first, last):
            out[dst_start[d] + k] = tokens[src_start[d] + k]
        end = dst_start[d] + lengths[d]
        if 0 <= end < len(out):
            out[end] = eos_id
