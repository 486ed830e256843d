"""One epoch of several data sets by weight: which set, and which of its samples, each index is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from btlm_data.errors import ConfigError

Int64Array = npt.NDArray[np.int64]


class Mixture:
    """Which (source, sample) each index of a mixture is.

    One epoch is the smallest number of samples T that shows every source of weight above 5% in full: T =
    max(len / weight), int(T * weight) samples of each, a source's own samples repeating in order. Shuffled
    later on, sources stand one after the other; else they are interleaved by a seeded shuffle of the places,
    each source keeping its own order.

    compared: the lengths that T is computed from, where they are others than the sources' own
    (strict_compat).
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        interleave: bool,
        seed: int,
        compared: Sequence[int] | None = None,
    ) -> None:
        total = sum(weights)
        shares = [weight / total for weight in weights]
        pairs = zip(lengths if compared is None else compared, shares, strict=True)
        heavy = [length / share for length, share in pairs if share > 0.05]
        if not heavy:
            raise ConfigError(
                f"No set of mixture has more than 5% of the weight (weights {list(weights)}), so an epoch "
                "has no length. "
                "Join some of the sets: data_dir may be a list."
            )
        counts = [int(max(heavy) * share) for share in shares]
        self.lengths = np.array(lengths, np.int64)
        self.bounds = np.cumsum([0, *counts])
        self.positions: Int64Array | None = None  # where each index is, sources standing one after the other
        if interleave:
            positions = np.arange(self.bounds[-1])
            np.random.default_rng(seed).shuffle(positions)
            source = self._source_at(positions)
            for number, first in enumerate(self.bounds[:-1]):
                members = np.flatnonzero(source == number)
                positions[members] = first + np.arange(len(members))
            self.positions = positions

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def locate(self, indices: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The number of the source, and of the sample in it, of each index: (n,) -> two of (n,)."""
        positions = indices if self.positions is None else self.positions[indices]
        source = self._source_at(positions)
        return source, (positions - self.bounds[source]) % self.lengths[source]

    def indices_of(self, source: int, samples: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The inverse of `locate`: every (index, which of `samples` it is) of samples of one source."""
        first, last, length = (
            int(self.bounds[source]),
            int(self.bounds[source + 1]),
            int(self.lengths[source]),
        )
        copies = -(-(last - first) // length)
        position = (first + samples[:, None] + np.arange(copies) * length).reshape(-1)
        number = np.repeat(np.arange(len(samples)), copies)
        position, number = position[position < last], number[position < last]
        if self.positions is None:
            return position, number
        index = np.empty(len(self.positions), np.int64)
        index[self.positions] = np.arange(len(self.positions))
        return index[position], number

    def _source_at(self, positions: Int64Array) -> Int64Array:
        """The number of the source at each position: (n,) -> (n,)."""
        return np.searchsorted(self.bounds, positions, side="right") - 1
