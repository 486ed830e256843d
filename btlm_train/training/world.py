"""Where the work runs: this process among all, its device, and how parameters are spread over the ranks."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from btlm_data.errors import ConfigError
from btlm_train.model import BTLM
from btlm_train.optim import local
from btlm_train.parameters import Params


@dataclass
class World:
    """One process among all: its rank, their number, its device, and how parameters are spread."""

    rank: int
    size: int
    device: torch.device
    parallel: Literal["none", "ddp", "fsdp"]

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def joined(device: str | None, parallel: Literal["ddp", "fsdp"] = "ddp") -> Iterator[World]:
    """Choose the device and, under torchrun (WORLD_SIZE > 1), join the other ranks.

    Raises ConfigError for a device that is not there.
    """
    name = {"csx": "auto", None: "auto", "gpu": "cuda"}.get(device, device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"There is no device {str(device)[:80]!r} here. Use cpu or gpu.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "The device gpu was requested, and torch finds no GPU. "
            "Use --device cpu, or install a torch built for your GPU."
        )
    size = _number("WORLD_SIZE", 1)
    index = _number("LOCAL_RANK", 0)
    chosen = torch.device(name, index) if name == "cuda" else torch.device(name)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:  # far keys get weights below 1e-38 by ALiBi; a CPU computes with those 3 times slower
        torch.set_flush_denormal(True)
    try:
        if size == 1:
            yield World(0, 1, chosen, "none")
            return
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        try:
            yield World(dist.get_rank(), size, chosen, parallel)
        finally:
            dist.destroy_process_group()
    finally:
        if chosen.type == "cpu":
            torch.set_flush_denormal(False)  # a setting of the whole thread, which others' code may rely on


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ConfigError(
            f"The environment variable {variable} is {text[:80]!r}, expected a number. Unset it."
        )
    return int(text)


def autocast(params: Params, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 for matrix products where requested, or on a GPU unless float32 is requested. Parameters stay
    float32.
    """
    low = params.loop.precision == "bfloat16" or (params.loop.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=low, cache_enabled=False)


def wrap(model: BTLM, world: World) -> nn.Module:
    """Spread the model over the ranks: whole copies (DDP), or each parameter cut in pieces (FSDP2)."""
    if world.parallel == "ddp":
        with warnings.catch_warnings():
            # the option has another name since torch 2.13, and no other before
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    if world.parallel == "fsdp":
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    return model


@contextlib.contextmanager
def synchronised(model: nn.Module, last: bool) -> Iterator[None]:
    """Exchange gradients between ranks with the last micro-batch only."""
    if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    yield


def whole(tensor: Tensor) -> Tensor:
    """A parameter or its state as one CPU tensor; every rank of a sharded one must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().to("cpu")


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter or its state, wherever its pieces are."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    local(target).copy_(local(value))
