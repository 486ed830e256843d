"""config.json of Hugging Face's BTLM and JAIS, from and to our model settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import ValidationError

from btlm_data.errors import ConfigError
from btlm_data.recipe.validation import explain
from btlm_train import mup
from btlm_train.parameters import ModelConfig

_OURS = "btlm_train_model"  # our own record in config.json, which others ignore
# Settings of Hugging Face's GPT-2 family that change what is computed, with the values that mean BTLM.
_FIXED: dict[str, tuple[object, ...]] = {
    "position_embedding_type": ("alibi",),
    "activation_function": ("swiglu",),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
}
# What the published configuration class takes for a key that the file leaves out.
_DEFAULTS = {"position_embedding_type": "learned", "activation_function": "gelu_new"}
# Keys that say how a file was written or is loaded, not what is computed.
_FREE = {
    "auto_map", "architectures", "torch_dtype", "dtype", "use_cache", "initializer_range", "resid_pdrop",
    "embd_pdrop", "attn_pdrop", "bos_token_id", "eos_token_id", "n_positions", "alibi_scaling", "model_type",
    "transformers_version", "tie_word_embeddings", _OURS,
}  # fmt: skip


def huggingface_config(
    config: ModelConfig, dtype: torch.dtype = torch.float32, kind: Literal["btlm", "jais"] = "btlm"
) -> dict[str, Any]:
    """config.json. Every mup_* key is written: left out they mean 1.0 and false, which is another model.

    Raises ConfigError for a model that Hugging Face's BTLM cannot express.
    """
    m = mup.hidden_multiplier(config)
    scaling = None
    if config.alibi_train_seq_len is not None:
        scaling = {"type": "linear", "train_seq_len": config.alibi_train_seq_len}
    elif config.pos_scaling_factor != 1.0:
        scaling = {"type": "linear", "factor": config.pos_scaling_factor}
    alpha = config.output_logits_alpha or 1.0
    if config.output_logits_scale is not None:  # the older form knows only the product
        alpha = config.output_logits_scale
    elif config.mup and not config.scale_output_logits_by_d:
        alpha = mup.logit_scale(config) * m
    if config.attention_logits_alpha != 1.0:
        raise ConfigError(
            "attention_logits_alpha has no counterpart in Hugging Face's BTLM, and this model uses it "
            f"({config.attention_logits_alpha}). Export with --to modelzoo instead."
        )
    by_d = config.mup if config.scale_qk_dot_by_d is None else config.scale_qk_dot_by_d
    name = "JAISLMHeadModel" if kind == "jais" else "BTLMLMHeadModel"
    values: dict[str, Any] = {
        "model_type": kind,
        "architectures": [name],
        "n_embd": config.hidden_size,
        "n_head": config.num_heads,
        "n_layer": config.num_hidden_layers,
        "n_positions": config.max_position_embeddings,
        "n_inner": config.filter_size,
        "activation_function": config.nonlinearity,
        "position_embedding_type": config.position_embedding_type,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "initializer_range": (config.initializer.std if config.initializer else config.initializer_range),
        "vocab_size": config.vocab_size,
        "resid_pdrop": config.dropout_rate,
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "tie_word_embeddings": True,
        "scale_attn_weights": config.attention_type == "scaled_dot_product",
        "mup_width_scale": 1 / m if config.mup else 1.0,
        "mup_embeddings_scale": config.embeddings_scale,
        "mup_output_alpha": alpha,
        "mup_scale_qk_dot_by_d": by_d,
        "alibi_scaling": scaling,
        "bos_token_id": config.vocab_size - 1,
        "eos_token_id": config.vocab_size - 1,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }
    if kind == "btlm":
        values["auto_map"] = {
            "AutoConfig": "configuration_btlm.BTLMConfig",
            "AutoModel": "modeling_btlm.BTLMModel",
            "AutoModelForCausalLM": "modeling_btlm.BTLMLMHeadModel",
        }
    values[_OURS] = config.model_dump(mode="json", exclude_defaults=True)  # what HF has no keys for
    return values


def config_from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """A ModelConfig from `config.json`, from our own record where we wrote the file.

    From a foreign file the muP base sizes follow from mup_width_scale, the base filter size by the same
    factor (as it is in the published model). Raises ConfigError for another model_type, missing keys, or what
    BTLM does not have.
    """
    if values.get("model_type") not in ("btlm", "jais"):
        raise ConfigError(
            f"config.json has model_type {str(values.get('model_type'))[:100]!r}, not btlm. Import a BTLM "
            "checkpoint."
        )
    for key, accepted in _FIXED.items():
        value = values.get(key, _DEFAULTS.get(key))
        if not any(value is allowed or value == allowed for allowed in accepted):
            raise ConfigError(
                f"config.json has {key} {str(value)[:100]!r}, which BTLM does not have (it has "
                f"{accepted[0]!r}). "
                "Import a BTLM checkpoint."
            )
    if _OURS in values:
        config = _validated(values[_OURS], f"config.json, {_OURS}")
        _check_agreement(values, config)
        return config
    return _validated(_foreign_tree(values), "config.json")


def _foreign_tree(values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        width, hidden = values.get("mup_width_scale", 1.0), values["n_embd"]
        inner = values.get("n_inner")
        for key, value in (("mup_width_scale", width), ("n_embd", hidden)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ConfigError(
                    f"config.json has {key} {str(value)[:100]!r}, expected a number above 0. Correct it."
                )
        inner = 4 * hidden if inner is None else inner  # as the published model takes null
        tree: dict[str, Any] = {
            "vocab_size": values["vocab_size"],
            "hidden_size": hidden,
            "num_heads": values["n_head"],
            "num_hidden_layers": values["n_layer"],
            "filter_size": inner,
            "max_position_embeddings": values["n_positions"],
            "layer_norm_epsilon": values.get("layer_norm_epsilon", 1e-5),
            "initializer_range": values.get("initializer_range", 0.02),
            "dropout_rate": values.get("resid_pdrop", 0.1),
            "embedding_dropout_rate": values.get("embd_pdrop", 0.1),
            "attention_dropout_rate": values.get("attn_pdrop", 0.1),
            "attention_type": "scaled_dot_product"
            if values.get("scale_attn_weights", True)
            else "dot_product",
            "embeddings_scale": values.get("mup_embeddings_scale", 1.0),
            "output_logits_alpha": values.get("mup_output_alpha", 1.0),
            "scale_qk_dot_by_d": values.get("mup_scale_qk_dot_by_d", False),
            "mup_base_hidden_size": width * hidden,
            "mup_base_filter_size": width * inner if isinstance(inner, int | float) else inner,
        }
    except KeyError as missing:
        raise ConfigError(
            f"config.json lacks {missing}, without which the model is not known. Take the file of the "
            "original checkpoint."
        ) from None
    return tree | _scaling(values.get("alibi_scaling"))


def _scaling(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping) and value.get("type", "linear") == "linear" and set(value) <= {
        "type", "factor", "train_seq_len",
    }:  # fmt: skip
        names = {"factor": "pos_scaling_factor", "train_seq_len": "alibi_train_seq_len"}
        return {names[key]: value[key] for key in names if value.get(key) is not None}
    raise ConfigError(
        f"config.json has alibi_scaling {str(value)[:100]!r}, expected null or a linear scaling with factor "
        "or train_seq_len."
    )


def _validated(tree: Any, where: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, ModelConfig, lambda _: where)) from None


def _check_agreement(values: Mapping[str, Any], config: ModelConfig) -> None:
    """Raise ConfigError where a key of the file was changed and our own record was not."""
    kind: Literal["btlm", "jais"] = "jais" if values["model_type"] == "jais" else "btlm"
    for key, value in huggingface_config(config, kind=kind).items():
        given = values.get(key, value)
        same = given == value or (
            isinstance(value, float)
            and isinstance(given, int | float)
            and math.isclose(given, value, rel_tol=1e-9)
        )
        if key not in _FREE and not same:
            raise ConfigError(
                f"config.json contradicts itself: {key} is {str(given)[:100]!r}, and {_OURS} means "
                f"{value!r}. "
                f"Remove {_OURS} from it if {key} is right."
            )
