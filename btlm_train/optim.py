"""AdamW exactly as BTLM was trained with it.

    p -= lr * mult * ( sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)  +  wd * p )

Unlike torch.optim.AdamW, eps joins sqrt(v) *before* the bias correction, so it shrinks with the early steps'
v.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from btlm_train import mup
from btlm_train.parameters import ModelConfig, OptimizerConfig


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a sharded tensor that is on this rank; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class AdamW:
    """The optimizer's state is two tensors per parameter, `m` and `v` by name, and the number of updates
    made.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], model: ModelConfig, config: OptimizerConfig
    ):
        self.config = config
        self.groups = mup.parameter_groups(parameters, model, config)
        named = [item for group in self.groups.values() for item in group]
        self.m = {name: torch.zeros_like(p, requires_grad=False) for name, p in named}
        self.v = {name: torch.zeros_like(p, requires_grad=False) for name, p in named}
        self.updates = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update. Parameters without a gradient keep their value and state."""
        self.updates += 1
        b1, b2 = self.config.betas
        correction = (
            math.sqrt(1 - b2**self.updates) / (1 - b1**self.updates) if self.config.correct_bias else 1.0
        )
        for (multiplier, decay), members in self.groups.items():
            present = [(name, p) for name, p in members if p.grad is not None]
            if not present:
                continue
            rate = learning_rate * multiplier
            values: Any = [local(p) for _, p in present]
            grads: Any = [local(p.grad) for _, p in present if p.grad is not None]
            m: Any = [local(self.m[name]) for name, _ in present]
            v: Any = [local(self.v[name]) for name, _ in present]
            torch._foreach_lerp_(m, grads, 1 - b1)
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, grads, grads, 1 - b2)
            denominator = torch._foreach_sqrt(v)
            torch._foreach_add_(denominator, self.config.eps)
            if decay:
                torch._foreach_mul_(values, 1 - rate * decay)
            torch._foreach_addcdiv_(values, m, denominator, -rate * correction)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for members in self.groups.values():
            for _, parameter in members:
                parameter.grad = None
