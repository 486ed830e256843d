"""Every random choice of a run: a hash of (seed, what is chosen, whom it concerns), never a generator's
state.

So a choice depends on nothing but the seed and the document (or sample): not on order, workers or block
sizes. Hashes are splitmix64's finaliser (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
generators"), on uint64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

UInt64Array = npt.NDArray[np.uint64]
_GOLDEN = 0x9E3779B97F4A7C15


def salt(seed: int, purpose: str) -> int:
    """One 64-bit number per (seed, purpose), for example (7, "shuffle")."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{purpose}".encode())


def mix64(values: UInt64Array, salt_value: int = 0) -> UInt64Array:
    """A seeded bijection of 64-bit values, applied to each. values: any shape, uint64; returns the same
    shape.
    """
    with np.errstate(over="ignore"):
        x = (values ^ np.uint64(salt_value)) + np.uint64(_GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def document_keys(file_name: str, offsets: UInt64Array) -> UInt64Array:
    """A document's identity: its file's name in the source, and where it begins there (bytes decompressed, or
    row). (n,) -> (n,).
    """
    return mix64(offsets, xxhash.xxh3_64_intdigest(file_name.encode("utf-8", "surrogateescape")))


def unit_interval(keys: UInt64Array, seed: int, purpose: str) -> npt.NDArray[np.float64]:
    """A number in [0, 1) per key, uniform with 53 bits; independent for each purpose. keys: (n,) uint64;
    returns (n,) float64.
    """
    return (mix64(keys, salt(seed, purpose)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
