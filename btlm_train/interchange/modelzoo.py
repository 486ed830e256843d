"""params.yaml for the Model Zoo, in its current trainer form, with every model setting written out.

A key that is left out means the Model Zoo's default there, which for four of them is not BTLM's value; and
its initialisers are distinguished by `name`, so that is always written.
"""

from __future__ import annotations

import logging
from typing import Any

from btlm_data.errors import ConfigError
from btlm_train.checkpoint import State
from btlm_train.parameters import Initializer, ModelConfig

logger = logging.getLogger(__name__)
_OURS_ALONE = {"alibi_train_seq_len"}  # no counterpart there
_KINDS = {"linear": "LinearLR", "cosine": "CosineDecayLR"}


def modelzoo_model(config: ModelConfig) -> dict[str, Any]:
    """The `model` section. Raises ConfigError for a model that the Model Zoo cannot express."""
    trained = config.alibi_train_seq_len
    if trained is not None and config.max_position_embeddings > trained:
        raise ConfigError(
            f"alibi_train_seq_len ({trained}) below max_position_embeddings "
            f"({config.max_position_embeddings}) scales ALiBi "
            "dynamically, which the Model Zoo does not. Export with --to hf instead."
        )
    values: dict[str, Any] = {}
    for key in ModelConfig.model_fields:
        if key in _OURS_ALONE:
            continue
        value = getattr(config, key)
        values[key] = _initializer(value) if isinstance(value, Initializer) else value
    return values | {
        "name": "btlm",
        "embedding_dropout_rate": config.embedding_dropout,
        "attention_dropout_rate": config.attention_dropout,
    }


def modelzoo_params(config: ModelConfig, state: State | None = None) -> dict[str, Any]:
    """The whole file: the model, and of the checkpoint's state what the Model Zoo has keys for."""
    init: dict[str, Any] = {"backend": {"backend_type": "CPU"}, "model": modelzoo_model(config)}
    if state is not None:
        init["seed"] = state.seed
        optimizer = state.optimizer or {}
        if optimizer:
            init["optimizer"] = {
                "AdamW": {key: optimizer.get(key) for key in ("betas", "eps", "weight_decay", "correct_bias")}
            }
            init["precision"] = {"max_gradient_norm": optimizer.get("max_gradient_norm")}
        if optimizer.get("adjust_learning_rate"):
            logger.warning(
                "adjust_learning_rate is not written: current releases of the Model Zoo derive it from the "
                "muP base sizes."
            )
        if state.schedule:
            pieces = [_scheduler(segment) for segment in state.schedule]
            init["schedulers"] = [{"SequentialLR": {"schedulers": pieces}}] if len(pieces) > 1 else pieces
    return {"trainer": {"init": init}}


def _initializer(value: Initializer) -> dict[str, Any]:
    named: dict[str, Any] = {"name": value.name, "mean": value.mean, "std": value.std}
    if value.name == "normal":
        return named
    low, high = value.bounds
    return named | {"a": low, "b": high}


def _scheduler(segment: dict[str, Any]) -> dict[str, Any]:
    if segment["kind"] == "constant":
        return {"ConstantLR": {"learning_rate": segment["initial"], "total_iters": segment["total_iters"]}}
    return {
        _KINDS[segment["kind"]]: {
            "initial_learning_rate": segment["initial"],
            "end_learning_rate": segment["end"],
            "total_iters": segment["total_iters"],
        }
    }
