"""Batches for training, resumable at the very next sample: the Model Zoo's data processor.

One number says where a run is: how many samples it has consumed, on all ranks together. The stream of samples
is epoch 0, epoch 1, ... end to end, each in the order its epoch number and the seed give, so that number
alone names the next sample, whatever the batch size, the number of workers or the number of ranks. What each
rank reads is its slice of the global batch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from btlm_data.errors import ConfigError, DataError
from btlm_train.data.order import GlobalBatches, SampleOrder
from btlm_train.data.read_ahead import ReadAhead
from btlm_train.data.samples import Batch, HDF5Dataset
from btlm_train.data.settings import DataConfig
from btlm_train.data.state import STATE_VERSION, parse_state

logger = logging.getLogger(__name__)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Resumable:
    """The place in the data of whatever gives out its batches: state, and how to return to it."""

    dataset: Any
    batches: GlobalBatches
    samples_streamed: int

    def state_dict(self) -> dict[str, Any]:
        """Where the run is: the samples consumed on all ranks together, and what they were samples of. The
        same on every rank.
        """
        return {
            "samples_streamed": self.samples_streamed,
            "__version__": STATE_VERSION,
            "dataset": self.dataset.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Continue with the sample after `state`.

        Raises ConfigError or DataError, naming the differences, if it is of other data or settings.
        """
        saved = parse_state(state)
        dataset = self.dataset
        if saved.version == 0:  # the seed is all there is to compare
            seed = dataset.config.shuffle_seed
            ordered_by_seed = dataset.config.shuffle or dataset.config.mixture
            if strict and ordered_by_seed and saved.seed not in (None, seed):
                raise ConfigError(
                    f"The saved data state has the seed {saved.seed}, shuffle_seed is {seed}. "
                    "Set shuffle_seed to the former."
                )
        elif saved.dataset is not None:
            dataset.load_state_dict(saved.dataset, strict=strict)
        elif strict:
            raise DataError(
                'The saved data state lacks "dataset", the settings it was made with. '
                "Load another one, or with strict=False."
            )
        self.samples_streamed = saved.samples_streamed
        if dataset.config.strict_compat:
            self.batches.forget_num_samples()
        self.batches.seek(saved.samples_streamed)

    def _streamed(self) -> Iterator[int]:
        """samples_streamed after each batch of the pass that begins."""
        self.samples_streamed = self.batches.start - self.batches.skipped
        return (end - self.batches.skipped for _, end in self.batches.spans())

    def _finish(self) -> None:
        """The pass is over: the next one is of the next epoch."""
        self.batches.finish(self.samples_streamed + self.batches.skipped)


class ResumableBatches(_Resumable, Sampler[list[int]]):
    """Batches as indices of this rank, for other programs' loaders: DataLoader(dataset, batch_size=None,
    sampler=...).

    A pass is an epoch; finished, the next pass is the next epoch, and one that is abandoned starts over. Its
    state counts what was requested. So it belongs to a loader that saves it with each batch, as torchdata's
    StatefulDataLoader does; with workers, another loader asks ahead of what it hands out.
    """

    def __init__(self, dataset: HDF5Dataset, batches: GlobalBatches) -> None:
        self.dataset = dataset
        self.batches = batches
        self.samples_streamed = 0

    def __iter__(self) -> Iterator[list[int]]:
        for streamed, indices in zip(self._streamed(), self.batches, strict=True):
            self.samples_streamed = streamed
            yield indices
        self._finish()

    def __len__(self) -> int:
        return len(self.batches)


class RestartableDataLoader(_Resumable, DataLoader[Batch]):
    """Batches of this rank, one epoch a pass, and the state to continue from any of them.

    `for batch in loader` consumes samples; finished, the next pass is the next epoch. A pass that is
    abandoned starts over when the loader is iterated again, as an evaluation wants. `state_dict` counts what
    was handed out, not what workers have read ahead.
    """

    def __init__(self, dataset: HDF5Dataset, batches: GlobalBatches, **options: Any) -> None:
        self.batches = batches
        self.samples_streamed = 0
        super().__init__(dataset, batch_size=None, sampler=batches, collate_fn=_as_it_is, **options)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch's is a class of its own
        batches = super().__iter__()  # starts the workers, before any thread of ours
        with self._reading_ahead() as ahead:
            for streamed, batch in zip(self._streamed(), batches, strict=True):
                self.samples_streamed = streamed
                if ahead is not None:
                    ahead.consumed()
                yield batch
        self._finish()

    def _reading_ahead(self) -> contextlib.AbstractContextManager[ReadAhead | None]:
        if not self.dataset.is_remote:
            return contextlib.nullcontext()
        coming = (self.dataset.remote_rows(indices) for indices in self.batches)
        return ReadAhead(coming, self.dataset.config.cache_size)


class GptHDF5MapDataProcessor:
    """The Model Zoo's data processor of the same name: its configuration in, its batches out, in its order.

    Raises ConfigError for a wrong setting, InputError if there is no data, DataError if the shards are not
    what they should be; all of that happens here, before a batch is requested.
    """

    def __init__(self, config: DataConfig | Mapping[str, Any]) -> None:
        self.dataset = HDF5Dataset(config)
        self.config = self.dataset.config
        self.features_list = self.dataset.features_list
        if unused := self.config.unused_keys():
            logger.info("Not used by this reader: %s.", ", ".join(unused))
        if self.config.drop_last and self.config.pad_last:
            logger.warning("pad_last has no effect while drop_last is true (the default).")
        if self.config.shuffle and any(source.has_phases for source in self.dataset.sources):
            logger.warning(
                "shuffle mixes the phases that the data were prepared in (mix.schedule). Set shuffle to false to see them "
                "in their order; they are shuffled within each phase."
            )
        elif self.dataset.by_sample and self.config.shuffle:
            logger.info(
                "shuffle with sample data reads at random; for one epoch, data shuffled when prepared reads "
                "faster."
            )

    def create_dataloader(
        self,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        multiprocessing_context: str | None = None,
        pin_memory: bool = False,
    ) -> RestartableDataLoader:
        """A loader of this rank's slices of the global batches; by default rank and world size are
        torch.distributed's.

        multiprocessing_context: how workers start ("fork", "spawn" or "forkserver"; None is the platform's
        default).
        """
        config = self.config
        batches = self._batches(rank, world_size)
        loader = partial(RestartableDataLoader, self.dataset, batches, pin_memory=pin_memory)
        if not config.num_workers:
            return loader()
        return loader(
            num_workers=config.num_workers,
            prefetch_factor=config.prefetch_factor,
            persistent_workers=config.persistent_workers,
            multiprocessing_context=multiprocessing_context,
        )

    def create_sampler(self, *, rank: int | None = None, world_size: int | None = None) -> ResumableBatches:
        """What `create_dataloader` reads, for other programs' loaders: `DataLoader(processor.dataset,
        batch_size=None, sampler=processor.create_sampler())` gives the same batches.
        """
        return ResumableBatches(self.dataset, self._batches(rank, world_size))

    def _batches(self, rank: int | None, world_size: int | None) -> GlobalBatches:
        if rank is None or world_size is None:
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = (torch.distributed.get_rank() if distributed else 0) if rank is None else rank
            world_size = (
                (torch.distributed.get_world_size() if distributed else 1)
                if world_size is None
                else world_size
            )
        config = self.config
        order = SampleOrder(len(self.dataset), config.num_samples, config.shuffle, config.shuffle_seed)
        return GlobalBatches(order, config, rank, world_size)
