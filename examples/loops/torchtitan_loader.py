"""Prepared shards in torchtitan: a data loader for its training specification.

torchtitan's loop takes (inputs, labels) from whatever is a `BaseDataLoader`: something to iterate over with
`state_dict` and `load_state_dict`. Pass `build` where the specification of a model names its loader.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torchtitan.components.dataloader import BaseDataLoader

from btlm_train.data import GptHDF5MapDataProcessor


class ShardLoader(BaseDataLoader):
    """Batches of one data-parallel rank, epoch after epoch."""

    def __init__(
        self, data_dir: str, rank: int, world_size: int, batch_size: int, num_workers: int = 0
    ) -> None:
        processor = GptHDF5MapDataProcessor(
            {"data_dir": data_dir, "batch_size": batch_size * world_size, "num_workers": num_workers}
        )
        self.loader = processor.create_dataloader(rank=rank, world_size=world_size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while True:
            for batch in self.loader:
                labels = batch["labels"].long()
                yield {"input": batch["input_ids"]}, labels.masked_fill(batch["attention_mask"] == 0, -100)

    def state_dict(self) -> dict[str, Any]:
        """The samples consumed by all ranks, and what they were samples of."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the next sample, at any number of ranks. An empty state is a new run."""
        if state_dict:
            self.loader.load_state_dict(state_dict)


def build(data_dir: str, dp_rank: int, dp_world_size: int, local_batch_size: int) -> ShardLoader:
    """What torchtitan calls with its own ranks and batch size."""
    return ShardLoader(data_dir, dp_rank, dp_world_size, local_batch_size)
