"""BTLM trained in a loop of Accelerate's. Our loader cuts batches by ranks itself, so Accelerate's `prepare` gets model and
optimizer alone; its checkpoints hold the loader's place, since the loader is registered for them.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from btlm_train.data import GptHDF5MapDataProcessor
from btlm_train.model import BTLM
from btlm_train.parameters import load_params


def main(data_dir: str, folder: Path, steps: int, *changes: str) -> list[float]:
    """Train `steps` more steps; continue where the checkpoint in `folder` is."""
    params = load_params("params_btlm_tiny_2k.yaml", changes)
    accelerator = Accelerator(cpu=True)
    processor = GptHDF5MapDataProcessor({"data_dir": data_dir, "batch_size": 4, "shuffle": True})
    loader = processor.create_dataloader(rank=accelerator.process_index, world_size=accelerator.num_processes)
    torch.manual_seed(params.seed)
    model: Any = BTLM(params.model)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    accelerator.register_for_checkpointing(loader)
    if (folder / "checkpoint").is_dir():
        accelerator.load_state(str(folder / "checkpoint"))
    losses: list[float] = []
    while len(losses) < steps:
        for batch in loader:
            batch = {name: values.to(accelerator.device) for name, values in batch.items()}
            summed = model(batch["input_ids"], batch["labels"], batch["attention_mask"])
            loss = summed / batch["attention_mask"].sum()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    accelerator.save_state(str(folder / "checkpoint"))
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir", help="a folder of prepared shards of 2,048 tokens, or a whole dataset")
    parser.add_argument("folder", type=Path, help="where the checkpoint is")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    print(main(given.data_dir, given.folder, given.steps))
