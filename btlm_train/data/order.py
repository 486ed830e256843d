"""Which sample comes when: the endless stream of sample indices, and each rank's slices of its batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from btlm_data.errors import ConfigError
from btlm_train.data.samples import PAD
from btlm_train.data.settings import DataConfig

Int64Array = npt.NDArray[np.int64]
_POSITIONS_AT_ONCE = 2**24  # looked at together, 128 MB


class SampleOrder:
    """The endless stream of sample indices: epoch 0, epoch 1, ..., each `epoch_length` long.

    Unshuffled an epoch is 0, 1, ... modulo the data's length n. Shuffled it is the start of a permutation
    drawn with seed + epoch; longer than the data, it is ceil(epoch_length / n) - 1 copies in order and a
    permutation, cut to the length, then permuted as a whole.
    """

    def __init__(
        self, num_samples: int, epoch_length: int | None = None, shuffle: bool = False, seed: int = 0
    ) -> None:
        self.num_samples = num_samples
        self.epoch_length = epoch_length or num_samples
        self.shuffle = shuffle
        self.seed = seed
        self._drawn: tuple[int, npt.NDArray[Any]] | None = None

    def between(self, start: int, stop: int) -> Int64Array:
        """The indices at positions [start, stop) of the stream. Returns (stop - start,) int64."""
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self.epoch_length)
            count = min(stop - start, self.epoch_length - offset)
            if self.shuffle:
                pieces.append(self._epoch(epoch)[offset : offset + count].astype(np.int64))
            else:
                pieces.append(np.arange(offset, offset + count, dtype=np.int64) % self.num_samples)
            start += count
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def positions_of(self, indices: Int64Array, start: int, stop: int) -> tuple[Int64Array, Int64Array]:
        """The inverse of `between`: every (position, which of `indices` it is) at positions [start, stop) of
        the stream.
        """
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        positions, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while start < stop:
            offset = start % self.epoch_length
            count = min(stop - start, self.epoch_length - offset, _POSITIONS_AT_ONCE)
            chunk = self.between(start, start + count)
            low = np.searchsorted(ordered, chunk, side="left")
            high = np.searchsorted(ordered, chunk, side="right")
            for k in np.flatnonzero(high > low).tolist():
                positions.append(np.full(high[k] - low[k], start + k, np.int64))
                numbers.append(order[low[k] : high[k]])
            start += count
        return np.concatenate(positions), np.concatenate(numbers)

    def _epoch(self, epoch: int) -> npt.NDArray[Any]:
        if self._drawn is None or self._drawn[0] != epoch:
            try:
                order = self._permutation(epoch)
            except (MemoryError, RuntimeError) as error:  # torch reports a refused allocation as RuntimeError
                raise ConfigError(
                    f"The order of {self.epoch_length:,} shuffled samples does not fit into memory. "
                    "Lower num_samples, or shuffle when the data is prepared and set shuffle to false."
                ) from error
            self._drawn = epoch, order
        return self._drawn[1]

    def _permutation(self, epoch: int) -> npt.NDArray[Any]:
        """The indices of one epoch: (epoch_length,) int32, or int64 where that is too small."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        # The permutation does not depend on its dtype (a test checks this); int32 halves what a large epoch
        # takes.
        dtype = torch.int32 if max(self.num_samples, self.epoch_length) < 2**31 else torch.int64
        order = torch.randperm(self.num_samples, generator=generator, dtype=dtype)
        if self.epoch_length > self.num_samples:
            copies = math.ceil(self.epoch_length / self.num_samples) - 1
            repeated = torch.arange(self.num_samples, dtype=dtype).repeat(copies)
            order = torch.cat([repeated, order])[: self.epoch_length]
            order = order[torch.randperm(self.epoch_length, generator=generator, dtype=dtype)]
        return order[: self.epoch_length].numpy()


class GlobalBatches(Sampler[list[int]]):
    """The batches of one pass, as indices for one rank: its slice of each global batch.

    A pass covers positions [start, stop) of the stream, which the loader sets. Rank r of W gets items [r * b
    // W, (r + 1) * b // W) of a batch of b, so the ranks' slices end to end are the batch, whatever W is; a
    rank's slice is empty where b < W.
    """

    def __init__(self, order: SampleOrder, config: DataConfig, rank: int, world_size: int) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"Rank {rank} of {world_size} ranks does not exist. Give a rank from 0 to {world_size - 1}."
            )
        self.order = order
        self.batch_size = config.batch_size
        self.drop_last = config.drop_last
        self.pad_last = config.pad_last
        self.rank = rank
        self.world_size = world_size
        self.skips_short_rest = config.strict_compat and not config.drop_last
        self.start = self.stop = self.skipped = 0
        self.seek(0)

    def seek(self, position: int) -> None:
        """Start the next pass at `position`; it ends with its epoch, or with the next one where less than a
        batch is left.

        An epoch's samples that fill no batch thus open the next one (drop_last). A first epoch shorter than a
        batch is joined with the second one, as the Model Zoo does; if both are too short, the pass has no
        batch and the next one ends an epoch later.

        With strict_compat, and without drop_last, what is left of an epoch is passed over if it is less than
        a batch: so does the Model Zoo. `skipped` counts it, since it was not consumed.
        """
        length = self.order.epoch_length
        self.start = position
        self.stop = (position // length + 1) * length
        self.skipped = 0
        if self.skips_short_rest and self.stop - position < self.batch_size:
            self.skipped = self.stop - position
            self.start = self.stop
            self.stop += length
        if self.drop_last and self.stop - position < self.batch_size:
            self.stop += length

    def forget_num_samples(self) -> None:
        """From now on an epoch is as long as the data, as in the Model Zoo after a restart."""
        self.order = SampleOrder(self.order.num_samples, None, self.order.shuffle, self.order.seed)

    def finish(self, position: int) -> None:
        """A pass is over, `position` samples consumed: continue with the next epoch."""
        self.start = position
        self.stop += self.order.epoch_length

    def spans(self) -> Iterator[tuple[int, int]]:
        """The positions [first, end) of each global batch of this pass."""
        for first in range(self.start, self.stop, self.batch_size):
            end = min(first + self.batch_size, self.stop)
            if self.drop_last and end - first < self.batch_size:
                return
            yield first, end

    def __iter__(self) -> Iterator[list[int]]:
        for first, end in self.spans():
            batch = self.order.between(first, end)
            if self.pad_last:
                batch = np.pad(batch, (0, self.batch_size - len(batch)), constant_values=PAD)
            bounds = [rank * len(batch) // self.world_size for rank in (self.rank, self.rank + 1)]
            yield batch[slice(*bounds)].tolist()

    def __len__(self) -> int:
        count = self.stop - self.start
        return count // self.batch_size if self.drop_last else math.ceil(count / self.batch_size)
