"""One optimizer step: all micro-batches forward and backward, clip, AdamW at the schedule's rate for this
step, zero.

The loss is divided by counts over the *global* batch before the backward pass, so micro-batches and ranks
change nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from btlm_data.errors import SafetyStop
from btlm_train import evaluate
from btlm_train.training.trainer import Trainer
from btlm_train.training.world import autocast, synchronised

Batch = Mapping[str, Tensor]


def optimizer_step(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """One update from this rank's part of a global batch.

    Returns loss (the objective), cross_entropy (nats per token), learning_rate, gradient_norm (before
    clipping), and counts. Raises SafetyStop, before the weights change, if the gradient is not finite.
    """
    params, world, model = trainer.params, trainer.world, trainer.model
    evaluate.check_tokens(batch, params.model.vocab_size)
    length = batch["input_ids"].shape[1] if len(batch["input_ids"]) else params.model.max_position_embeddings
    rows, tokens, stop = world.sum(
        len(batch["input_ids"]), int(batch["attention_mask"].sum()), float(trainer.interrupted)
    )
    trainer.stop_requested = bool(stop)
    by_tokens = params.model.loss_scaling == "num_tokens"
    weight = 1.0 / max(tokens, 1.0) if by_tokens else params.model.loss_weight / rows
    if params.model.dropout_rate or params.model.attention_dropout or params.model.embedding_dropout:
        # no state to keep: see checkpoint.py
        seed = (params.seed * 1_000_003 + trainer.step) * 65_537 + world.rank
        torch.manual_seed(seed % 2**63)
    # on any rank: all take the same number of passes, or they would wait for each other forever
    most_rows = math.ceil(rows / world.size)
    micro = max(1, (params.micro_batch_size or most_rows * world.size) // world.size)
    total = torch.zeros((), device=world.device)
    for start in range(0, most_rows, micro):
        part = {name: tensor[start : start + micro] for name, tensor in batch.items()}
        part = {
            name: tensor.to(world.device, non_blocking=True)
            for name, tensor in evaluate.at_least_one_row(part, length).items()
        }
        with synchronised(model, start + micro >= most_rows), autocast(params, world.device):
            summed = model(
                part["input_ids"], part["labels"], part["attention_mask"], part.get("attention_span")
            )
            # Ranks average their gradients; the global sum is the average times their number.
            (summed * (weight * world.size)).backward()
        total += summed.detach()
    norm = _clip(trainer)
    (cross_entropy,) = world.sum(float(total))
    if not math.isfinite(norm) or not math.isfinite(cross_entropy):
        raise SafetyStop(
            f"The loss or its gradient is not finite at step {trainer.step} (gradient norm {norm}). The "
            "weights were "
            "not changed and no checkpoint was written since the last one. "
            "Lower the learning rate, or clip (max_gradient_norm), and run again."
        )
    rate = params.learning_rate(trainer.step)
    trainer.optimizer.step(rate)
    trainer.optimizer.zero_grad()
    trainer.step += 1
    trainer.tokens += int(rows) * length
    return {
        "loss": cross_entropy * weight,
        "cross_entropy": cross_entropy / max(tokens, 1.0),
        "learning_rate": rate,
        "gradient_norm": norm,
        "step_tokens": int(rows) * length,
        "length": length,
    }


def _clip(trainer: Trainer) -> float:
    """Scale the gradients to at most max_gradient_norm, if it is set; returns their norm before, over all
    ranks.
    """
    most = trainer.params.optimizer.max_gradient_norm
    norm = torch.nn.utils.clip_grad_norm_(trainer.core.parameters(), math.inf if most is None else most)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
