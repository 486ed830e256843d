"""Which parts of a training step give the same bits each time, in one process and in several at once."""

from __future__ import annotations

import collections
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from btlm_train import model as btlm_model
from btlm_train.parameters import load_params
from btlm_train.training.step import optimizer_step
from btlm_train.training.trainer import Trainer
from btlm_train.training.world import World, autocast

PROCESSES, STEPS, REPEATS = 8, 20, 300


def _tiny() -> tuple[Trainer, dict[str, Tensor]]:
    params = load_params("params_btlm_tiny_2k.yaml")
    trainer = Trainer.build(params, World(0, 1, torch.device("cuda", 0), "none"), Path("."))
    ids = torch.randint(0, 50257, (4, 2049), generator=torch.Generator().manual_seed(5))
    return trainer, {
        "input_ids": ids[:, :-1].contiguous(),
        "labels": ids[:, 1:].contiguous(),
        "attention_mask": torch.ones(4, 2048, dtype=torch.int32),
    }


def _different(compute: Callable[[], dict[str, Tensor]], repeats: int = REPEATS) -> collections.Counter[str]:
    """How often each result differed from the first, of `repeats` times."""
    first = {name: value.clone() for name, value in compute().items()}
    found: collections.Counter[str] = collections.Counter()
    for _ in range(repeats):
        found.update(name for name, value in compute().items() if not torch.equal(value, first[name]))
    return found


def parts(_data: Path, _out: Path) -> bool:
    """Each part of the tiny model's step, again and again from the same numbers."""
    trainer, batch = _tiny()
    on_gpu = {name: value.cuda() for name, value in batch.items()}
    core, slopes = trainer.core, btlm_model.alibi_slopes(32).cuda()
    hidden = torch.randn(8192, core.config.hidden_size, device="cuda", requires_grad=True)
    drawn = [
        torch.randn(4, 2048, 32, 80, device="cuda").bfloat16().transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]
    upstream = torch.randn(4, 32, 2048, 80, device="cuda").bfloat16()
    rule = btlm_model._flex_visibility(slopes, 2048, None)
    kernel = btlm_model._flex_kernel(True)

    def attention() -> dict[str, Tensor]:
        y = kernel(*drawn, score_mod=rule.score_mod, block_mask=rule.block_mask, scale=1 / 80)
        return dict(zip(("y", "q", "k", "v"), (y, *torch.autograd.grad(y, drawn, upstream)), strict=True))

    def embedding() -> dict[str, Tensor]:
        return {"weight": torch.autograd.grad(core.wte(on_gpu["input_ids"]).sum(), core.wte.weight)[0]}

    def loss() -> dict[str, Tensor]:
        with autocast(trainer.params, trainer.world.device):
            value = btlm_model._SummedCrossEntropy.apply(
                hidden, core.wte.weight, on_gpu["labels"].flatten(), on_gpu["attention_mask"].flatten(), 1.0
            )  # type: ignore[no-untyped-call]
        gradients = torch.autograd.grad(value, (hidden, core.wte.weight))
        return {"loss": value.detach(), "hidden": gradients[0], "weight": gradients[1]}

    def whole() -> dict[str, Tensor]:
        with autocast(trainer.params, trainer.world.device):
            core(on_gpu["input_ids"], on_gpu["labels"], on_gpu["attention_mask"], None).backward()
        gradients = {name: p.grad for name, p in core.named_parameters() if p.grad is not None}
        trainer.optimizer.zero_grad()
        return gradients

    def products() -> dict[str, Tensor]:
        with torch.no_grad(), autocast(trainer.params, trainer.world.device):
            return {
                name: (p @ p.T if p.shape[0] < p.shape[1] else p.T @ p)
                for name, p in core.named_parameters()
                if p.ndim == 2
            }

    held = True
    for name, compute in (
        ("attention", attention), ("embedding", embedding), ("loss", loss), ("products", products), ("all", whole),
    ):  # fmt: skip
        found = _different(compute)
        print(f"  {name:<10} {REPEATS} times: {dict(found) or 'the same bits'}", flush=True)
        held &= not found
    return held


def processes(_data: Path, _out: Path) -> bool:
    """The tiny model's first steps in several processes at once: the first step, if any, at which they differ."""
    commands = [[sys.executable, "-m", "tests.gpu.repeats"] for _ in range(PROCESSES)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    told = [process.communicate()[0].split() for process in running]
    held = all(len(lines) == STEPS for lines in told)
    for step, hashes in enumerate(zip(*told, strict=False)):
        if len(set(hashes)) > 1:
            print(f"  after step {step + 1}: {dict(collections.Counter(hashes))}")
            return False
    print(f"  {PROCESSES} processes, {STEPS} steps: {'the same bits' if held else 'some did not end'}")
    return held


def _tell_steps() -> None:
    trainer, batch = _tiny()
    for _ in range(STEPS):
        optimizer_step(trainer, batch)
        data = b"".join(p.detach().cpu().numpy().tobytes() for p in trainer.core.parameters())
        print(hashlib.sha256(data).hexdigest()[:12], flush=True)


if __name__ == "__main__":
    _tell_steps()
