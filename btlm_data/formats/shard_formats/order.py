"""The order of samples after the shuffle: a seeded bijection, so that no table of samples is ever made."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.errors import DataError
from btlm_data.formats.shard_formats.permutation import permute_index, unpermute_index


def sample_purpose(seq_len: int, split: str) -> str:
    """What the salt of a split's sample order is for (seeding.salt): a length prepared alone or beside others
    is shuffled alike.
    """
    return f"samples/{seq_len}/{split}"


class SampleOrder(msgspec.Struct, frozen=True):
    """The order of one split's samples. purpose: of the salt. ends: samples up to the end of each phase of a mix;
    each phase is shuffled by itself, so that what it holds stays in its part of the order.
    """

    num_samples: int
    seed: int
    purpose: str
    ends: tuple[int, ...] = ()

    def rows_of(self, samples: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        """Where samples of the stream are after the shuffle. samples: (n,) of an integer type; returns (n,) uint64. Raises
        DataError for a sample behind the last phase.
        """
        return self._moved(samples, permute_index)

    def samples_at(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        """Which samples of the stream are at some places after the shuffle: the inverse of `rows_of`. rows: (n,) of
        an integer type; returns (n,) uint64.
        """
        return self._moved(rows, unpermute_index)

    def _moved(self, values: npt.NDArray[Any], move: Any) -> npt.NDArray[np.uint64]:
        numbers = values.astype(np.uint64)
        if not len(numbers):  # of a stream too short for one sample, of which there is no order
            return numbers
        if not self.ends:
            whole: npt.NDArray[np.uint64] = move(
                numbers, self.num_samples, seeding.salt(self.seed, self.purpose)
            )
            return whole
        if (numbers >= self.ends[-1]).any():
            raise DataError(f"There is no sample {int(numbers.max()):,}: the phases have {self.ends[-1]:,}.")
        moved = np.empty(len(numbers), np.uint64)
        for first, last, salt in self._phases():
            chosen = (numbers >= first) & (numbers < last)
            if chosen.any():
                within = numbers[chosen] - np.uint64(first)
                moved[chosen] = move(within, last - first, salt) + np.uint64(first)
        return moved

    def _phases(self) -> Iterator[tuple[int, int, int]]:
        """First sample of each phase, one past its last, and its salt."""
        for number, (first, last) in enumerate(pairwise((0, *self.ends))):
            yield first, last, seeding.salt(self.seed, f"{self.purpose}/{number}")
