"""Read prepared shards for training: the Model Zoo's samples, in its order, resumable at the very next
sample.

    settings      the Model Zoo's keys                    order         which sample when, and for which rank
    shard_reader  rows of one file                        loader        batches, and the state
    manifests     what dataset.json says of the files     description   what is in a folder of shards
    shard_set     rows of all files, end to end           state         how saved and present data differ
    history       what a run read, step by step
    samples       samples by index                        mixture       several data sets by weight
    folders       folders here and below URLs             remote_shard  shards in a store, by ranges
    block_cache   what was fetched, on the disk           read_ahead    what comes next, fetched before

The names below are the public ones. They are imported when they are first used, so that parameter files can
be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btlm_train.data.description import DataDescription, describe_data
    from btlm_train.data.loader import GptHDF5MapDataProcessor, RestartableDataLoader, ResumableBatches
    from btlm_train.data.order import SampleOrder
    from btlm_train.data.samples import HDF5Dataset
    from btlm_train.data.settings import DataConfig, MixtureEntry

__all__ = [
    "DataConfig",
    "DataDescription",
    "GptHDF5MapDataProcessor",
    "HDF5Dataset",
    "MixtureEntry",
    "RestartableDataLoader",
    "ResumableBatches",
    "SampleOrder",
    "describe_data",
]
_MODULES = {
    "DataConfig": "settings",
    "DataDescription": "description",
    "GptHDF5MapDataProcessor": "loader",
    "HDF5Dataset": "samples",
    "MixtureEntry": "settings",
    "ResumableBatches": "loader",
    "RestartableDataLoader": "loader",
    "SampleOrder": "order",
    "describe_data": "description",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
