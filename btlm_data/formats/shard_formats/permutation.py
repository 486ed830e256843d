"""A seeded bijection of [0, n), so that an order of n things takes no table. With numpy alone: whoever only looks things up need
not wait for compiled code. A plain twin is in tests/reference/packing.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.ranges import check_below

UInt64Array = npt.NDArray[np.uint64]

_ROUNDS = 6
_AT_ONCE = 1 << 14  # so that what a round makes stays in the processor's cache


def permute_index(index: UInt64Array, n: int, seed: int) -> UInt64Array:
    """Send each index to its place under a seeded bijection of [0, n); 1 <= n <= 2^48.

    Raises DataError for an index of n or more.

    A balanced Feistel network on the smallest even number of bits that holds n (at least 8), walked along its
    cycle until the value falls below n (fewer than 4 steps on average from n = 64 on): Black & Rogaway,
    "Ciphers with arbitrary finite domains" (CT-RSA 2002), sections 4 and 5. Integer arithmetic only, so the
    order is the same on every machine. index: (n,) uint64; returns the same shape.
    """
    return _walked(index, n, seed, inverse=False)


def unpermute_index(permuted: UInt64Array, n: int, seed: int) -> UInt64Array:
    """The inverse of `permute_index`. permuted: (n,) uint64; returns the same shape."""
    return _walked(permuted, n, seed, inverse=True)


def _walked(values: UInt64Array, n: int, seed: int, *, inverse: bool) -> UInt64Array:
    if not 1 <= n <= 2**48:
        raise ValueError(f"a permutation of {n} items: 1 to 2^48 are possible")
    check_below(values, n, "Sample")
    keys, half = _round_keys(seed), _half_bits(n)
    out = np.empty(len(values), np.uint64)
    for begin in range(0, len(values), _AT_ONCE):
        part = out[begin : begin + _AT_ONCE]
        part[:] = _network(values[begin : begin + _AT_ONCE], keys, half, inverse)
        above = np.flatnonzero(part >= n)
        while len(above):
            moved = _network(part[above], keys, half, inverse)
            part[above] = moved
            above = above[moved >= n]
    return out


def _network(values: UInt64Array, keys: UInt64Array, half: np.uint64, inverse: bool) -> UInt64Array:
    """One pass through all rounds. values: (n,) below 2^(2 half)."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys[::-1] if inverse else keys:
        # Inverse rounds swap the roles of the halves: undo the last round first.
        z = ((left if inverse else right) + key) * np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(32)
        z *= np.uint64(0x94D049BB133111EB)
        z = (z >> np.uint64(16) ^ z >> np.uint64(40)) & mask
        left, right = (right ^ z, left) if inverse else (right, left ^ z)
    return left << half | right


def _half_bits(n: int) -> np.uint64:
    return np.uint64(
        max(4, ((n - 1).bit_length() + 1) // 2)
    )  # never below 4: a network on 1 to 3 bits a half mixes badly


def _round_keys(seed: int) -> UInt64Array:
    """One 64-bit key a round: SplitMix64 outputs (Steele, Lea & Flood 2014) from `seed` mod 2^64."""
    keys = np.empty(_ROUNDS, np.uint64)
    state = seed % 2**64
    for i in range(_ROUNDS):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        keys[i] = z ^ z >> 31
    return keys
