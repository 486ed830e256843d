"""The order of samples after the shuffle: a seeded bijection, so that no table of samples is ever made."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data import seeding


def sample_purpose(seq_len: int, split: str) -> str:
    """What the salt of a split's sample order is for (seeding.salt): a length prepared alone or beside others
    is shuffled alike.
    """
    return f"samples/{seq_len}/{split}"


def destinations(first: int, last: int, num_samples: int, seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    """Where samples [first, last) of num_samples are after the shuffle, (last - first,) uint64."""
    from btlm_data.kernels.packing import permute_index

    return permute_index(np.arange(first, last, dtype=np.uint64), num_samples, seeding.salt(seed, purpose))


def origins(first: int, last: int, num_samples: int, seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    """Which samples of the stream are at places [first, last) after the shuffle: the inverse of
    `destinations`. Returns (last - first,) uint64.
    """
    from btlm_data.kernels.packing import unpermute_index

    return unpermute_index(np.arange(first, last, dtype=np.uint64), num_samples, seeding.salt(seed, purpose))
