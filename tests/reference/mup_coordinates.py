"""muP's coordinate check (Yang et al. 2022, "Tensor Programs V", appendix D.1): do activations keep their scale as the model widens?

A few training steps are made at several widths; every coordinate (what a layer puts out) is compared with itself before
the first step. Under muP both the coordinate and its *change* have the same size at any width, so the slope of
log(size) over log(width) is 0; without, the changes grow with the width until training breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from btlm_train import mup
from btlm_train.model import BTLM
from btlm_train.optim import AdamW
from btlm_train.parameters import Initializer, ModelConfig, OptimizerConfig

HEADS = 4  # the same at every width: ALiBi's slopes stay, the heads widen and the 1/d of muP is put to work
OPTIMIZER = OptimizerConfig(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def proxy_config(
    width: int, layers: int, vocab_size: int, *, parametrisation: str = "mup", base_width: int = 256
) -> ModelConfig:
    """BTLM's published values at another width. "standard": the same model at base_width, but widened without any muP rule."""
    narrow = Initializer(std=0.073)
    common = ModelConfig(
        hidden_size=width,
        filter_size=width * 8 // 3,
        num_heads=HEADS,
        num_hidden_layers=layers,
        vocab_size=vocab_size,
        initializer=narrow,
        embedding_initializer=narrow,
        output_layer_initializer=narrow,
        embeddings_scale=14.6,
        mup_base_hidden_size=base_width,
        mup_base_filter_size=base_width * 8 / 3,
        output_logits_alpha=2.22,
        attention_logits_alpha=(base_width / HEADS)
        ** 0.5,  # at the base width 1/d is then the usual 1/sqrt(d)
    )
    if parametrisation == "mup":
        return common
    depth = (2 * layers) ** -0.5
    return common.model_copy(
        update={
            "mup_base_hidden_size": None,
            "mup_base_filter_size": None,
            "output_logits_alpha": None,
            "output_logits_scale": 2.22,
            "attention_logits_alpha": 1.0,
            "output_layer_initializer": Initializer(std=0.073 * depth),
            "ffn_output_layer_initializer": Initializer(std=0.02 * depth),
        }
    )


def train_steps(
    config: ModelConfig,
    batches: Sequence[Tensor],
    rate: Callable[[int], float],
    seed: int,
    clip: float | None = None,
) -> Iterator[tuple[BTLM, float]]:
    """The model and its loss (nats a token) before each step, and after the last with a loss of nan. batches: (B, L + 1) ids each."""
    model = BTLM(config)
    mup.initialize(model, config, seed)
    optimizer = AdamW(model.named_parameters(), config, OPTIMIZER)
    for step, batch in enumerate(batches):
        labels = batch[:, 1:]
        loss = model(batch[:, :-1], labels) / labels.numel()
        yield model, loss.item()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step(rate(step))
        optimizer.zero_grad()
    yield model, float("nan")


@torch.no_grad()
def coordinates(model: BTLM, ids: Tensor) -> dict[str, Tensor]:
    """What each layer puts out for ids (B, L): residual stream, attention scores, both branches, logits."""
    found: dict[str, Tensor] = {}
    scale = mup.attention_scale(model.config)

    def keep(label: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, out: found.__setitem__(label, out)

    def keep_scores(label: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, out: Tensor) -> None:
            q, k, _ = (
                part.view(*part.shape[:2], HEADS, -1).transpose(1, 2) for part in out.chunk(3, dim=2)
            )  # (B, n, L, d)
            found[label] = torch.tril(q @ k.transpose(2, 3) * scale)

        return hook

    hooks = []
    for number in range(model.config.num_hidden_layers):
        for part, label, keeper in (
            (".attn.qkv", "q.k", keep_scores),
            (".attn.proj", "attention", keep),
            (".ffn", "ffn", keep),
            ("", "stream", keep),
        ):
            module = model.get_submodule(f"blocks.{number}{part}")
            hooks.append(module.register_forward_hook(keeper(f"layer {number}: {label}")))
    found["logits"] = model.logits(model(ids))
    for handle in hooks:
        handle.remove()
    return found


def sizes(
    config: ModelConfig,
    batches: Sequence[Tensor],
    rate: float,
    seeds: Sequence[int],
    clip: float | None = None,
) -> dict[str, np.ndarray]:
    """Root mean squares of every coordinate: before the first step, after the last, and of the change; geometric mean over seeds, (3,) each."""
    logs: dict[str, np.ndarray] = {}
    probe = batches[0][:, :-1]
    for seed in seeds:
        seen = [
            coordinates(model, probe)
            for step, (model, _) in enumerate(train_steps(config, batches, lambda _: rate, seed, clip))
            if step in (0, len(batches))
        ]
        for name, after in seen[1].items():
            before = seen[0][name]
            found = np.array(
                [value.square().mean().sqrt().item() for value in (before, after, after - before)]
            )
            logs[name] = logs.get(name, np.zeros(3)) + np.log(found) / len(seeds)
    return {name: np.exp(value) for name, value in logs.items()}


def exponents(by_width: dict[int, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Powers of the width: least-squares slopes of log(size) over log(width), (3,) as in `sizes`, by coordinate."""
    widths = np.log2(list(by_width))
    return {
        name: np.polyfit(widths, np.log2([found[name] for found in by_width.values()]), 1)[0]
        for name in next(iter(by_width.values()))
    }


def not_flat(by_width: dict[int, dict[str, np.ndarray]], tolerance: float) -> dict[str, float]:
    """The exponents that should be 0 and are not, by coordinate and moment.

    Before the first step attention scores and logits shrink as width^-1/2, as they should: what is random in them averages
    out. What they learn takes its place, in the first layer's scores more slowly than a few steps.
    """
    found = {}
    for name, (start, after, change) in exponents(by_width).items():
        if not name.endswith(("q.k", "logits")):
            found[f"{name}, start"] = start
        if name != "layer 0: q.k":
            found |= {f"{name}, after": after, f"{name}, change": change}
    return {name: float(value) for name, value in found.items() if not abs(value) <= tolerance}
