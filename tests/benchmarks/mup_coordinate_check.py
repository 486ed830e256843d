"""muP's two promises, measured on a CPU: activations keep their scale at any width, and the best learning rate stays the best.

    python -m tests.benchmarks.mup_coordinate_check [--out FOLDER] [--quick]

Coordinate check (Yang et al. 2022, "Tensor Programs V", appendix D.1): after a few optimizer steps the mean absolute value
of each layer's output, of the final hidden states and of the logits is plotted against the width. Under muP the lines are
flat; under the standard parametrisation they climb. Learning-rate transfer: the loss after some steps for five rates at
three widths; the best rate is the same. Data: a second-order Markov source over 64 tokens, of which a unigram model learns
next to nothing. Writes mup.png and mup.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btlm_train import mup
from btlm_train.config import Initializer, ModelConfig, OptimizerConfig
from btlm_train.model import BTLM
from btlm_train.optim import AdamW, clip_gradients

VOCABULARY, LENGTH, BATCH, BASE = 64, 64, 8, 64
RATES = (0.0008, 0.003, 0.0125, 0.05, 0.2)  # four times each other, about BTLM's 0.012


def configuration(width: int, *, parametrised: bool = True) -> ModelConfig:
    """BTLM of one width, four heads at every width (the same ALiBi slopes), two layers; without muP the same initialisation with standard scales."""
    initial = Initializer(std=0.073)
    base: dict[str, Any] = (
        {"mup_base_hidden_size": BASE, "mup_base_filter_size": BASE * 8 / 3, "output_logits_alpha": 2.22} if parametrised else {}
    )
    return ModelConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=2, num_heads=4, filter_size=round(width * 8 / 3),
        max_position_embeddings=LENGTH, initializer=initial, embedding_initializer=initial, output_layer_initializer=initial,
        ffn_output_layer_initializer=initial, embeddings_scale=14.6, scale_qk_dot_by_d=parametrised, output_logits_scale=None if parametrised else 2.22, **base,
    )  # fmt: skip


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step: each token follows from the two before it by a fixed random table, one time in five by chance."""
    table = torch.randint(VOCABULARY, (VOCABULARY, VOCABULARY), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    chance = torch.rand(ids.shape, generator=generator) < 0.2
    for t in range(1, LENGTH + 1):
        follows = table[ids[:, t - 1] % 8, ids[:, t - 2] % 8 if t > 1 else ids[:, t - 1] % 8]
        ids[:, t] = torch.where(chance[:, t], ids[:, t], follows)
    return ids[:, :-1], ids[:, 1:]


def train(config: ModelConfig, rate: float, steps: int, seed: int) -> tuple[BTLM, list[float]]:
    """Train at a rate that warms up over the first ten steps; returns the model and its losses (nats per token)."""
    model = BTLM(config)
    mup.initialize(model, config, seed)
    optimizer = AdamW(model.named_parameters(), config, OptimizerConfig(betas=(0.9, 0.95), eps=1e-8))
    losses = []
    for step in range(steps):
        ids, labels = batch(step)
        loss = model(ids, labels) / labels.numel()
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step(rate * min(1.0, (step + 1) / 10))
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


@torch.no_grad()
def scales(model: BTLM) -> dict[str, float]:
    """Mean absolute value of the embedding's, each block's part's, the final norm's outputs, and of the logits, on one batch."""
    found: dict[str, float] = {}

    def note(name: str) -> Any:
        return lambda _module, _inputs, output: found.__setitem__(name, output.abs().mean().item())

    handles = [model.wte.register_forward_hook(note("embedding"))]
    for number, block in enumerate(model.blocks):
        handles += [
            block.attn.register_forward_hook(note(f"attention {number}")),
            block.ffn.register_forward_hook(note(f"feed-forward {number}")),
        ]  # type: ignore[union-attr, operator]
    hidden = model(batch(10_000)[0])
    for handle in handles:
        handle.remove()
    return found | {"hidden": hidden.abs().mean().item(), "logits": model.logits(hidden).abs().mean().item()}


def coordinate_check(
    widths: Sequence[int], steps: int, rate: float, seeds: int = 3, *, parametrised: bool = True
) -> dict[str, list[float]]:
    """Scale of each activation by width, after `steps` steps, averaged over seeds: {name: one value per width}."""
    rows: dict[str, list[float]] = {}
    for width in widths:
        drawn = [scales(train(configuration(width, parametrised=parametrised), rate, steps, seed)[0]) for seed in range(seeds)]
        for name in drawn[0]:
            rows.setdefault(name, []).append(sum(one[name] for one in drawn) / seeds)
    return rows


def transfer(widths: Sequence[int], rates: Sequence[float], steps: int, *, parametrised: bool = True) -> dict[int, list[float]]:
    """Loss at the end (mean of the last tenth of the steps) by width, one value per rate."""
    tail = max(1, steps // 10)
    return {w: [sum(train(configuration(w, parametrised=parametrised), r, steps, 0)[1][-tail:]) / tail for r in rates] for w in widths}


def best_rates(table: dict[int, list[float]], rates: Sequence[float]) -> dict[int, float]:
    """The rate with the lowest loss at each width; a loss that is not a number never wins."""
    return {width: rates[min(range(len(rates)), key=lambda i: (losses[i] != losses[i], losses[i]))] for width, losses in table.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("mup"))
    parser.add_argument("--quick", action="store_true", help="fewer steps and widths")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    widths, transfer_widths = ((64, 128, 256), (64, 128)) if arguments.quick else ((64, 128, 256, 512), (64, 128, 256))
    check_steps, transfer_steps = (5, 40) if arguments.quick else (10, 150)
    result: dict[str, Any] = {"widths": widths, "rates": RATES}
    for name, on in (("mup", True), ("standard", False)):
        result[f"coordinates_{name}"] = coordinate_check(widths, check_steps, 0.01, parametrised=on)
        result[f"transfer_{name}"] = table = transfer(transfer_widths, RATES, transfer_steps, parametrised=on)
        result[f"best_{name}"] = best_rates(table, RATES)
        print(name, json.dumps(result[f"best_{name}"]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "mup.json").write_text(json.dumps(result, indent=1) + "\n")

    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, name in enumerate(("mup", "standard")):
        for label, values in result[f"coordinates_{name}"].items():
            axes[0, column].plot(widths, values, marker="o", label=label)
        axes[0, column].set(
            xscale="log", yscale="log", xlabel="width", ylabel="mean |activation|", title=f"{name}: after {check_steps} steps"
        )
        for width, losses in result[f"transfer_{name}"].items():
            axes[1, column].plot(RATES, losses, marker="o", label=f"width {width}")
        axes[1, column].set(xscale="log", xlabel="learning rate", ylabel="loss (nats)", title=f"{name}: after {transfer_steps} steps")
    for one in axes.flat:
        one.legend(fontsize=7)
        one.grid(alpha=0.3)
    figure.savefig(arguments.out / "mup.png", dpi=120)


if __name__ == "__main__":
    main()
