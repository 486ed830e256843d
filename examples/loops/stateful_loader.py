"""Prepared shards in torchdata's StatefulDataLoader: workers of its own, and a state to continue from any batch."""

import argparse
from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader

from btlm_train.data import GptHDF5MapDataProcessor


def loader(
    data_dir: str, rank: int = 0, world_size: int = 1, num_workers: int = 2, **settings: Any
) -> StatefulDataLoader[Any]:
    """Batches of one rank: dicts of torch.int32 (batch, length). The sampler gives lists, so batch_size is None."""
    processor = GptHDF5MapDataProcessor({"data_dir": data_dir, "batch_size": 8, "shuffle": True, **settings})
    return StatefulDataLoader(
        processor.dataset,
        batch_size=None,
        sampler=processor.create_sampler(rank=rank, world_size=world_size),
        num_workers=num_workers,
    )


def main(data_dir: str) -> None:
    """Stop in the middle of an epoch, and go on in a new loader."""
    first = loader(data_dir)
    batches = iter(first)
    for _ in range(3):
        next(batches)
    state = first.state_dict()
    second = loader(data_dir)
    second.load_state_dict(state)
    print(
        "goes on with the right batch:", bool((next(iter(second))["labels"] == next(batches)["labels"]).all())
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir", help="a folder of prepared shards, or a whole dataset")
    main(parser.parse_args().data_dir)
