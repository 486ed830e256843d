"""One forward and backward pass of our model against `transformers`' GPT-2 of the same size, on the CPU.

    python -m tests.benchmarks.bench_model

Both have GPT-2 small's shape: hidden 768, 12 layers, 12 heads, vocabulary 50,257. GPT-2's feed-forward layer
has two matrices of 768 x 3,072, ours (SwiGLU) three, so 2,048 wide: the same count; what is left over is
GPT-2's table of learned positions (1.3 % at 2,048) and a few biases. GPT-2 runs as `transformers` sets it up
(scaled_dot_product_attention) with dropout 0 and without a cache for generation. A pass is the mean loss over
the same random tokens and all its gradients.

The two take turns; the ratio is the median over the pairs of our time / theirs: CPU seconds of one thread,
which other programs on the machine disturb least, or with BTLM_BENCH_THREADS=2 and more the time on the
clock. bfloat16 (autocast) is measured where the CPU computes with it (AVX512-BF16 or AMX); elsewhere it is
emulated and nobody would train with it. BTLM_BENCH_PAIRS (3) sets the number of pairs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN, LAYERS, HEADS, VOCABULARY = 768, 12, 12, 50257
SHAPES = ((1, 512), (1, 2048))  # sequences, tokens each
BUDGET = "<= 1.0"


def our_model(length: int) -> nn.Module:
    """BTLM without muP, which would only change constants, not work."""
    from btlm_train import mup
    from btlm_train.model import BTLM
    from btlm_train.parameters import ModelConfig

    config = ModelConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_heads=HEADS,
        filter_size=2048,
        vocab_size=VOCABULARY,
        max_position_embeddings=length,
    )
    model = BTLM(config)
    mup.initialize(model, config, seed=1)
    return model


def their_model(length: int) -> nn.Module:
    """`transformers`' GPT-2, dropout 0."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=3072, vocab_size=VOCABULARY, n_positions=length,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model: nn.Module = GPT2LMHeadModel(config)
    return model.train()


def passes(length: int, batch: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor], int, int]:
    """Ours and theirs: a function each that computes loss and gradients of one batch; and both parameter
    counts.
    """
    ours, theirs = our_model(length), their_model(length)
    ids = torch.randint(VOCABULARY, (batch, length + 1), generator=torch.Generator().manual_seed(0))
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step_ours() -> Tensor:
        ours.zero_grad()
        loss: Tensor = ours(inputs, labels) / labels.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step_theirs() -> Tensor:
        theirs.zero_grad()
        loss: Tensor = theirs(input_ids=inputs, labels=inputs, shift_labels=labels).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    size_ours, size_theirs = (sum(p.numel() for p in model.parameters()) for model in (ours, theirs))
    return step_ours, step_theirs, size_ours, size_theirs


def measure(batch: int, length: int, dtype: torch.dtype, pairs: int) -> dict[str, Any]:
    """One row: seconds a pass, ours and theirs."""
    step_ours, step_theirs, size_ours, size_theirs = passes(length, batch)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    assert abs(size_ours / size_theirs - 1) < 0.02, f"{size_ours} parameters against {size_theirs}"
    seconds: list[tuple[float, float]] = []
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = [step().item() for step in (step_ours, step_theirs)]  # and warm up
        assert all(10 < loss < 12 for loss in losses), (
            f"untrained models know no better than chance, ln {VOCABULARY} = 10.8: {losses}"
        )
        for _ in range(pairs):
            start = clock()
            step_ours()
            middle = clock()
            step_theirs()
            seconds.append((middle - start, clock() - middle))
    precision = str(dtype).removeprefix("torch.")
    return {
        "name": f"forward + backward, {size_ours / 1e6:.0f}M parameters, {batch} x {length} tokens, {precision}, against transformers' GPT-2",
        "ours": statistics.median(ours for ours, _ in seconds),
        "theirs": statistics.median(theirs for _, theirs in seconds),
        "ratio": statistics.median(ours / theirs for ours, theirs in seconds),
        "unit": "CPU s a pass" if clock is time.process_time else "s a pass",
        "budget": BUDGET,
    }


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def run() -> list[dict[str, Any]]:
    """A row for each sequence length and precision."""
    torch.set_num_threads(int(os.environ.get("BTLM_BENCH_THREADS", "1")))
    torch.set_flush_denormal(True)  # as `btlm-train` does
    pairs = int(os.environ.get("BTLM_BENCH_PAIRS", "3"))
    precisions = [torch.float32, *([torch.bfloat16] if has_bfloat16() else [])]
    return [measure(batch, length, dtype, pairs) for dtype in precisions for batch, length in SHAPES]


if __name__ == "__main__":
    for row in run():
        print(row, flush=True)
