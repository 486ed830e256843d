"""What one run holds, and its state in and out of checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from btlm_data.errors import ConfigError, DataError
from btlm_data.storage.lease import Lease
from btlm_train import checkpoint, mup
from btlm_train.checkpoint import Checkpoint, State
from btlm_train.model import BTLM, allow_shapes, count_parameters
from btlm_train.optim import AdamW
from btlm_train.parameters import ModelConfig, Params
from btlm_train.training.world import World, fill, whole, wrap

logger = logging.getLogger(__name__)
# Model settings that a later stage or an evaluation may change: they decide no parameter's shape or meaning.
_MAY_CHANGE = {
    "name", "max_position_embeddings", "loss_weight", "loss_scaling", "pos_scaling_factor",
    "alibi_train_seq_len", "dropout_rate", "embedding_dropout_rate", "attention_dropout_rate", "initializer",
    "initializer_range",
    "embedding_initializer", "output_layer_initializer", "ffn_initializer", "ffn_output_layer_initializer",
}  # fmt: skip


@dataclass
class Trainer:
    """What one run holds: the model as built and as wrapped, the optimizer, and how far it is."""

    params: Params
    world: World
    folder: Path
    core: BTLM
    model: nn.Module
    optimizer: AdamW
    run: str = "0" * 32  # the run's identity: see run_folder.py
    lease: Lease | None = None  # of the run's folder, on rank 0
    step: int = 0
    tokens: int = 0
    data_state: dict[str, Any] | None = None
    interrupted: bool = False  # this process was asked to stop
    stop_requested: bool = False  # and all ranks know of it
    final: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def build(cls, params: Params, world: World, folder: Path) -> Trainer:
        """Initialise, spread and (if requested) compile the model. Raises ConfigError if it does not fit the
        memory.
        """
        flex = world.device.type == "cuda" and not params.model.attention_dropout
        with torch.device("meta"):
            core = BTLM(
                params.model,
                activation_checkpointing=params.loop.activation_checkpointing,
                attention="flex" if flex else "sdpa",
            )
        try:
            core.to_empty(device=world.device)
            core.reset_buffers()
            mup.initialize(core, params.model, params.seed)
            if params.loop.compile:
                allow_shapes()
                for block in core.blocks:
                    block.compile(dynamic=False)  # one version per shape: general ones are slower
            model = wrap(core, world)
            optimizer = AdamW(core.named_parameters(), params.model, params.optimizer)
        except (MemoryError, RuntimeError) as error:  # torch reports a refused allocation as RuntimeError
            count = count_parameters(params.model)
            raise ConfigError(
                f"The model of {count:,} parameters cannot be built on {world.device.type}: "
                f"{str(error).splitlines()[0]}. "
                f"Weights and optimizer take {12 * count / 1e9:,.1f} GB; use a smaller model, or more memory."
            ) from error
        return cls(params, world, folder, core, model, optimizer)

    def load(self, saved: Checkpoint, *, weights_only: bool = False) -> None:
        """Take over a checkpoint of this or an earlier stage.

        Raises ConfigError naming what differs in the architecture, DataError if its tensors are not the
        model's.
        """
        check_architecture(saved, self.params.model)
        self.load_weights(saved.weights(), str(saved.path))
        if weights_only:
            return
        moments = saved.optimizer()
        if moments is not None:
            for kind, targets in (("m", self.optimizer.m), ("v", self.optimizer.v)):
                for name, tensor in targets.items():
                    fill(tensor, _tensor(moments, f"{kind}.{name}", tensor.shape, str(saved.path)))
        self.optimizer.updates, self.step, self.tokens = saved.state.updates, saved.step, saved.state.tokens
        self.data_state = saved.state.data

    def load_weights(self, weights: Mapping[str, Tensor], source: str = "the checkpoint") -> None:
        """Copy weights in. Raises DataError if a parameter is missing, or has another shape."""
        for name, parameter in self.core.named_parameters():
            fill(parameter, _tensor(weights, name, parameter.shape, source))

    def save(self, data: Mapping[str, Any] | None) -> None:
        """Write a checkpoint. All ranks take part in gathering; rank 0 writes."""
        weights = {name: whole(p) for name, p in self.core.named_parameters()}
        moments = {
            f"{kind}.{name}": whole(tensor)
            for kind, tensors in (("m", self.optimizer.m), ("v", self.optimizer.v))
            for name, tensor in tensors.items()
        }
        if self.world.rank == 0:
            if self.lease is not None:
                self.lease.check()  # another run may have taken the folder over while this one was not responding
            state = State(
                run=self.run,
                step=self.step,
                updates=self.optimizer.updates,
                tokens=self.tokens,
                seed=self.params.seed,
                data=None if data is None else dict(data),
                **_settings(self.params),
            )
            path = checkpoint.save(
                self.folder / "checkpoints", state, weights, moments, self.params.loop.keep
            )
            logger.info("Checkpoint of step %d written to %s.", self.step, path)
        self.world.barrier()


def check_architecture(saved: Checkpoint, model: ModelConfig) -> None:
    """Raises ConfigError if the checkpoint is of another model, naming the settings that differ."""
    then, now = saved.model_config().model_dump(mode="json"), model.model_dump(mode="json")
    differences = [
        f"{key}: {then[key]!r} then, {now[key]!r} now"
        for key in now
        if key not in _MAY_CHANGE and then[key] != now[key]
    ]
    if differences:
        raise ConfigError(
            f"The checkpoint {saved.path} is of another model: {'; '.join(differences)}. "
            "Use the parameters it was trained with, or another --model-dir."
        )


def check_same_function(config: ModelConfig, model: ModelConfig, source: str) -> None:
    """Raises ConfigError if foreign weights were saved with another function than `model` computes.

    Compared are sizes and the scales that act on them, since a foreign configuration may spell those
    otherwise.
    """
    then, now = _function(config), _function(model)
    differences = [
        f"{key}: {then[key]:g} there, {now[key]:g} here"
        for key in now
        if not math.isclose(then[key], now[key], rel_tol=1e-6)
    ]
    if differences:
        raise ConfigError(
            f"The weights at {source} are of another model: {'; '.join(differences)}. "
            "Use the parameters they were trained with."
        )


def _function(config: ModelConfig) -> dict[str, float]:
    sizes = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_heads",
        "filter_size",
        "layer_norm_epsilon",
    )
    return {key: getattr(config, key) for key in (*sizes, "embeddings_scale")} | {
        "scale of logits": mup.logit_scale(config),
        "scale of attention scores": mup.attention_scale(config),
    }


def changed_settings(saved: Checkpoint, params: Params) -> list[str]:
    """Settings of optimizer and schedule that are not what the checkpoint was trained with."""
    lines = []
    now = _settings(params)
    then = saved.state.optimizer
    if then is not None:
        lines += [
            f"optimizer.{key}: {then.get(key)!r} then, {value!r} now"
            for key, value in now["optimizer"].items()
            if then.get(key) != value
        ]
    if saved.state.schedule is not None and saved.state.schedule != now["schedule"]:
        lines.append("the learning-rate schedule")
    return lines


def _settings(params: Params) -> dict[str, Any]:
    """What a checkpoint records of the parameters."""
    return {
        "model": params.model.model_dump(mode="json"),
        "optimizer": params.optimizer.model_dump(mode="json"),
        "schedule": [segment.model_dump(mode="json") for segment in params.schedule],
    }


def _tensor(tensors: Mapping[str, Tensor], name: str, shape: torch.Size, source: str) -> Tensor:
    """One tensor as float32, checked."""
    value = tensors.get(name)
    if value is None or value.shape != shape or not value.is_floating_point():
        problem = "missing" if value is None else f"of shape {tuple(value.shape)} and type {value.dtype}"
        raise DataError(
            f"{name} is {problem} in {source}, the model has {tuple(shape)}. Use the parameters it was "
            "trained with."
        )
    return value.float()
