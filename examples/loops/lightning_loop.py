"""BTLM trained by Lightning, which reads batches before it trains on them. So each batch carries the place after it, and the
module keeps the one that it trained on last: a run that is given `ckpt_path` goes on with the very next sample.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch

from btlm_train.data import GptHDF5MapDataProcessor, RestartableDataLoader
from btlm_train.model import BTLM
from btlm_train.parameters import Params, load_params


class Batches:
    """What Lightning iterates over. It has no length: a pass that goes on in mid-epoch is shorter than an epoch."""

    def __init__(self, loader: RestartableDataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            yield {**batch, "samples_streamed": self.loader.samples_streamed}


class Module(lightning.LightningModule):
    """The model, its loss, its optimizer, and its place in the data."""

    def __init__(self, params: Params, data_dir: str) -> None:
        super().__init__()
        torch.manual_seed(params.seed)
        self.model = BTLM(params.model)
        settings = {"data_dir": data_dir, "batch_size": 4, "shuffle": True}
        self.loader = GptHDF5MapDataProcessor(settings).create_dataloader()
        self.samples_streamed = 0
        self.seen: list[torch.Tensor] = []

    def train_dataloader(self) -> Batches:
        """Batches of this rank."""
        return Batches(self.loader)

    def training_step(self, batch: dict[str, Any], number: int) -> torch.Tensor:
        """Nats per token that counts."""
        self.samples_streamed = batch["samples_streamed"]
        self.seen.append(batch["labels"])
        summed: torch.Tensor = self.model(batch["input_ids"], batch["labels"], batch["attention_mask"])
        return summed / batch["attention_mask"].sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The place goes with the weights."""
        checkpoint["data"] = {**self.loader.state_dict(), "samples_streamed": self.samples_streamed}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the next sample."""
        self.loader.load_state_dict(checkpoint["data"])


def main(data_dir: str, folder: Path, steps: int, *changes: str) -> Any:
    """Train to step `steps`, from the checkpoint in `folder` if there is one; returns the module."""
    module = Module(load_params("params_btlm_tiny_2k.yaml", changes), data_dir)
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, use_distributed_sampler=False, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    path = folder / "last.ckpt"
    trainer.fit(module, ckpt_path=str(path) if path.is_file() else None, weights_only=False)
    trainer.save_checkpoint(path)
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir", help="a folder of prepared shards of 2,048 tokens, or a whole dataset")
    parser.add_argument("folder", type=Path, help="where the checkpoint is")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    main(given.data_dir, given.folder, given.steps)
