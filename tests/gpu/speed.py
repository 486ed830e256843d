"""Speed on a GPU: what its matrix units give at BTLM's sizes, and the published 2.6 B model's steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btlm_train import model as btlm_model
from btlm_train import mup
from btlm_train.model import count_parameters, flops_per_token
from btlm_train.parameters import load_params
from btlm_train.training.metrics import _peak_flops
from btlm_train.training.step import optimizer_step
from btlm_train.training.trainer import Trainer
from btlm_train.training.world import World


def _median_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    for _ in range(3):
        work()
    times: list[float] = []
    for _ in range(repeats):
        begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[repeats // 2]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def machine(_data: Path, _out: Path) -> bool:
    """The two rates that everything else is measured against."""
    print(f"  {torch.cuda.get_device_name()}, torch {torch.__version__}")
    a, b = _random(8192, 8192), _random(8192, 8192)
    rate = 2 * 8192**3 / _median_seconds(lambda: a @ b)
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _median_seconds(lambda: target.copy_(source))
    print(f"  bfloat16 product of 8192: {rate / 1e12:.0f} TFLOP/s; copy: {copied / 1e12:.2f} TB/s")
    return True


def sizes(_data: Path, _out: Path) -> bool:
    """Products of 16,384 tokens at BTLM's sizes, as they are and rounded up to multiples of 8."""
    x, tokens = _random(16384, 2560), 16384
    print("  matrix           forward, gradient of input, gradient of weight in TFLOP/s")
    for name, out, inner in (
        ("fc 2560->6826", 6826, 2560), ("fc 2560->6832", 6832, 2560), ("proj 6826->2560", 2560, 6826),
        ("proj 6832->2560", 2560, 6832), ("head 50257", 50257, 2560), ("head 50264", 50264, 2560),
        ("qkv 2560->7680", 7680, 2560),
    ):  # fmt: skip
        some = tokens if out < 50000 else 4096
        x, w, gradient = _random(some, inner), _random(out, inner) * 0.02, _random(some, out)
        operations = 2 * some * out * inner
        pairs = ((x, w.T), (gradient, w), (gradient.T, x))
        rates = [operations / _median_seconds(lambda pair=pair: pair[0] @ pair[1]) / 1e12 for pair in pairs]  # type: ignore[misc]
        print(f"  {name:<16} " + "  ".join(f"{rate:5.0f}" for rate in rates), flush=True)
    return True


def attention(_data: Path, _out: Path) -> bool:
    """Forward and backward passes of FlexAttention at BTLM's sizes (32 heads of 80), as compiled by default
    and as tuned by trying; operations counted with half the square, as causal attention has.
    """
    from torch.nn.attention.flex_attention import flex_attention

    print("  length  samples  kernel     forward  backward in TFLOP/s")
    for length, samples in ((2048, 8), (8192, 2)):
        slopes = btlm_model.alibi_slopes(32).cuda()
        drawn = [_random(samples, length, 32, 80).transpose(1, 2).requires_grad_() for _ in range(3)]
        gradient = _random(samples, 32, length, 80)
        visibility = btlm_model._flex_visibility(slopes, length, None)
        tuned: Any = torch.compile(
            flex_attention, dynamic=False, fullgraph=True, mode="max-autotune-no-cudagraphs"
        )
        for name, kernel in (("default", btlm_model._flex_kernel(True)), ("tuned", tuned)):

            def forward(kernel: Any = kernel, q: Any = drawn, rule: Any = visibility) -> Tensor:
                y: Tensor = kernel(*q, score_mod=rule.score_mod, block_mask=rule.block_mask, scale=1 / 80)
                return y

            ahead = _median_seconds(forward)
            both = _median_seconds(
                lambda forward=forward, g=gradient, q=drawn: torch.autograd.grad(forward(), q, g)  # type: ignore[misc]
            )
            count = 4 * samples * 32 * 80 * length**2 / 2
            rates = f"{count / ahead / 1e12:7.0f}  {2.5 * count / (both - ahead) / 1e12:8.0f}"
            print(f"  {length:>6}  {samples:>7}  {name:<9}  {rates}", flush=True)
    return True


def speed(_data: Path, _out: Path) -> bool:
    """Optimizer steps of the published 2.6 B model: tokens a second, MFU and memory, in several ways."""
    params = load_params("params_btlm_2p7b_2k.yaml")
    mup.initialize = _drawn_on_the_gpu  # the real one draws on one CPU core, the same on any device
    trainer = Trainer.build(params, World(0, 1, torch.device("cuda", 0), "none"), Path("."))
    print(f"  {count_parameters(params.model):,} parameters, peak {_peak_flops(trainer.world.device)}")
    print("  length  samples  in a pass  recompute  compiled  aligned  tokens/s    MFU  peak memory")
    best = 0.0
    compiled = False
    for length, samples, micro, recompute, compile_blocks, alignment in (
        (2048, 32, 8, True, False, 1),
        (2048, 32, 8, True, False, 8),
        (8192, 8, 2, True, False, 8),
        (2048, 32, 8, True, True, 8),
        (8192, 8, 2, True, True, 8),
        (2048, 32, 3, False, True, 8),
    ):
        btlm_model.ALIGNMENT["cuda"] = alignment
        if compile_blocks and not compiled:
            compiled = True
            btlm_model.allow_shapes()
            for block in trainer.core.blocks:
                block.compile(dynamic=False)
        trainer.core.activation_checkpointing = recompute
        trainer.params = params.model_copy(update={"micro_batch_size": micro})
        line = f"  {length:>6}  {samples:>7}  {micro:>9}  {recompute!s:<9}  {compile_blocks!s:<8}  {alignment:>7}  "
        torch.cuda.reset_peak_memory_stats()
        try:
            begun = time.perf_counter()
            _step(trainer, length, micro)
            warm = time.perf_counter() - begun
            _step(trainer, length, samples)
            torch.cuda.reset_peak_memory_stats()
            begun = time.perf_counter()
            _step(trainer, length, samples)
            rate = samples * length / (time.perf_counter() - begun)
        except torch.cuda.OutOfMemoryError:
            trainer.optimizer.zero_grad()
            print(line + f"out of memory at {torch.cuda.max_memory_allocated() / 1e9:.1f} GB", flush=True)
            torch.cuda.empty_cache()
            continue
        used = rate * flops_per_token(params.model, length) / (_peak_flops(trainer.world.device) or 1e18)
        best = max(best, used)
        memory = torch.cuda.max_memory_allocated() / 1e9
        print(line + f"{rate:>8,.0f}  {used:6.1%}  {memory:6.1f} GB  (first {warm:.0f} s)", flush=True)
    return best >= 1 / 3


def _drawn_on_the_gpu(model: torch.nn.Module, config: object, seed: int) -> None:
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.ndim < 2:
                parameter.fill_(1.0 if ".ln_" in name or name.startswith("ln_f.weight") else 0.0)
            else:
                parameter.normal_(0.0, mup.initializer(config, name).std)  # type: ignore[arg-type]


def _step(trainer: Trainer, length: int, samples: int) -> None:
    ids = torch.randint(0, 50257, (samples, length + 1))
    figures = optimizer_step(
        trainer,
        {
            "input_ids": ids[:, :-1].contiguous(),
            "labels": ids[:, 1:].contiguous(),
            "attention_mask": torch.ones(samples, length, dtype=torch.int32),
        },
    )
    torch.cuda.synchronize()
    if not 0 < figures["loss"] < 1e3:
        raise RuntimeError(f"The loss is {figures['loss']}.")
