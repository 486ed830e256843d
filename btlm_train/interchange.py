"""Weights and configurations to and from Hugging Face's and the Model Zoo's names and layouts; every conversion is exact.

| here                      | Hugging Face (`transformer.` +)   | Model Zoo (`model.` +)                                      |
|---------------------------|-----------------------------------|-------------------------------------------------------------|
| wte.weight                | wte.weight, and lm_head.weight    | embedding_layer.word_embeddings.weight, and lm_head.weight  |
| blocks.N.ln_1, ln_2       | h.N.ln_1, ln_2                    | transformer_decoder.layers.N.norm1, norm3                   |
| blocks.N.attn.qkv         | h.N.attn.c_attn (transposed)      | ...self_attn.proj_{q,k,v}_dense_layer                       |
| blocks.N.attn.proj        | h.N.attn.c_proj (transposed)      | ...self_attn.proj_output_dense_layer                        |
| blocks.N.ffn.fc, gate     | h.N.mlp.c_fc, c_fc2 (transposed)  | ...ffn.ffn.0.linear_layer, linear_layer_for_glu             |
| blocks.N.ffn.proj         | h.N.mlp.c_proj (transposed)       | ...ffn.ffn.1.linear_layer                                   |
| ln_f                      | ln_f                              | transformer_decoder.norm, and ln_f (the same tensor)        |
| (from the configuration)  | relative_pe.slopes                | embedding_layer.position_embed_helper.slopes                |

Only safetensors are read and written: a pickled checkpoint could run code when it is loaded.
"""

from __future__ import annotations

import importlib.resources
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from btlm_data.errors import ConfigError, DataError
from btlm_train import mup
from btlm_train.files import creating, write_bytes, write_json, write_tensors
from btlm_train.model import alibi_slopes
from btlm_train.parameters import ModelConfig

_LAYER = {  # here -> (Hugging Face, Model Zoo), within a layer
    "ln_1": ("ln_1", "norm1"),
    "ln_2": ("ln_2", "norm3"),
    "attn.proj": ("attn.c_proj", "self_attn.proj_output_dense_layer"),
    "ffn.fc": ("mlp.c_fc", "ffn.ffn.0.linear_layer"),
    "ffn.gate": ("mlp.c_fc2", "ffn.ffn.0.linear_layer_for_glu"),
    "ffn.proj": ("mlp.c_proj", "ffn.ffn.1.linear_layer"),
}
_QKV = tuple(f"self_attn.proj_{part}_dense_layer" for part in "qkv")
_BTLM_REMOTE_CODE = "cerebras/btlm-3b-8k-base--"
GPT2_FILES = ("vocab.json", "merges.txt")


def to_huggingface(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Names and layout of `cerebras/btlm-3b-8k-base`: Conv1D weights are [in, out]."""
    out = {"lm_head.weight": weights["wte.weight"], "transformer.wte.weight": weights["wte.weight"]}
    out["transformer.relative_pe.slopes"] = alibi_slopes(config.num_heads)[:, None]
    for name, tensor in weights.items():
        layer, part, kind = _split(name)
        if layer is None:
            if part == "ln_f":
                out[f"transformer.ln_f.{kind}"] = tensor
            continue
        theirs = "attn.c_attn" if part == "attn.qkv" else _LAYER[part][0]
        out[f"transformer.h.{layer}.{theirs}.{kind}"] = tensor.T if tensor.ndim == 2 else tensor
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in out.items()}


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `to_huggingface`; slopes and the second copy of the embedding are left out. Raises DataError for foreign names."""
    back = {theirs: here for here, (theirs, _) in _LAYER.items()} | {"attn.c_attn": "attn.qkv"}
    out: dict[str, Tensor] = {}
    for full, tensor in state.items():
        name = full.removeprefix("transformer.")
        if name in ("lm_head.weight", "relative_pe.slopes"):
            continue
        parts = name.split(".")
        if parts[0] == "h" and ".".join(parts[2:-1]) in back:
            out[f"blocks.{parts[1]}.{back['.'.join(parts[2:-1])]}.{parts[-1]}"] = (
                tensor.T.contiguous() if tensor.ndim == 2 else tensor
            )
        elif parts[0] in ("wte", "ln_f"):
            out[name] = tensor
        else:
            raise DataError(
                f"The checkpoint holds a tensor {full!r}, which BTLM does not have. It is of another model; import only BTLM checkpoints."
            )
    return out


def to_modelzoo(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The Model Zoo's state dict, with its second names for the final norm and the head."""
    out = {
        "model.embedding_layer.word_embeddings.weight": weights["wte.weight"],
        "model.lm_head.weight": weights["wte.weight"],
    }
    out["model.embedding_layer.position_embed_helper.slopes"] = alibi_slopes(config.num_heads)[:, None]
    for name, tensor in weights.items():
        layer, part, kind = _split(name)
        if layer is None:
            if part == "ln_f":
                out[f"model.ln_f.{kind}"] = out[f"model.transformer_decoder.norm.{kind}"] = tensor
            continue
        head = f"model.transformer_decoder.layers.{layer}"
        if part == "attn.qkv":
            out |= {
                f"{head}.{theirs}.{kind}": third for theirs, third in zip(_QKV, tensor.chunk(3), strict=True)
            }
        else:
            out[f"{head}.{_LAYER[part][1]}.{kind}"] = tensor
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in out.items()}


def from_modelzoo(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `to_modelzoo`. Raises DataError for foreign names or a missing q, k or v."""
    back = {theirs: here for here, (_, theirs) in _LAYER.items()}
    out: dict[str, Tensor] = {}
    for full, tensor in state.items():
        name = full.removeprefix("model.")
        parts = name.split(".")
        inner = ".".join(parts[3:-1])
        if name == "embedding_layer.word_embeddings.weight":
            out["wte.weight"] = tensor
        elif name in ("lm_head.weight", "embedding_layer.position_embed_helper.slopes") or parts[0] == "ln_f":
            continue
        elif parts[:2] == ["transformer_decoder", "norm"]:
            out[f"ln_f.{parts[-1]}"] = tensor
        elif parts[:2] == ["transformer_decoder", "layers"] and inner in back:
            out[f"blocks.{parts[2]}.{back[inner]}.{parts[-1]}"] = tensor
        elif parts[:2] == ["transformer_decoder", "layers"] and inner in _QKV:
            if inner != _QKV[0]:
                continue
            try:
                thirds = [state[full.replace(_QKV[0], theirs)] for theirs in _QKV]
            except KeyError as missing:
                raise DataError(
                    f"The checkpoint has {full} but no {missing}. It is incomplete; export it again."
                ) from None
            out[f"blocks.{parts[2]}.attn.qkv.{parts[-1]}"] = torch.cat(thirds)
        else:
            raise DataError(
                f"The checkpoint holds a tensor {full!r}, which BTLM does not have. It is of another model; import only BTLM checkpoints."
            )
    return out


def _split(name: str) -> tuple[str | None, str, str]:
    """("3", "attn.qkv", "weight") of blocks.3.attn.qkv.weight; (None, "ln_f", "bias") of ln_f.bias."""
    *head, kind = name.split(".")
    return (head[1], ".".join(head[2:]), kind) if head[0] == "blocks" else (None, head[0], kind)


def huggingface_config(config: ModelConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """`config.json` of the HF layout. Every mup_* key is written: left out they mean 1.0 and false, which is another model."""
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
    if config.attention_logits_alpha != 1.0 or config.attention_type != "scaled_dot_product":
        raise ConfigError(
            "attention_logits_alpha and attention_type: dot_product have no counterpart in Hugging Face's BTLM, and this model uses one. "
            "Export with --to modelzoo instead."
        )
    return {
        "model_type": "btlm",
        "architectures": ["BTLMLMHeadModel"],
        "auto_map": {
            "AutoConfig": f"{_BTLM_REMOTE_CODE}configuration_btlm.BTLMConfig",
            "AutoModel": f"{_BTLM_REMOTE_CODE}modeling_btlm.BTLMModel",
            "AutoModelForCausalLM": f"{_BTLM_REMOTE_CODE}modeling_btlm.BTLMLMHeadModel",
        },
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
        "scale_attn_weights": True,
        "mup_width_scale": 1 / m if config.mup else 1.0,
        "mup_embeddings_scale": config.embeddings_scale,
        "mup_output_alpha": alpha,
        "mup_scale_qk_dot_by_d": config.mup if config.scale_qk_dot_by_d is None else config.scale_qk_dot_by_d,
        "alibi_scaling": scaling,
        "bos_token_id": config.vocab_size - 1,
        "eos_token_id": config.vocab_size - 1,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "btlm_train_model": config.model_dump(
            mode="json", exclude_defaults=True
        ),  # what HF has no keys for; others ignore it
    }


def config_from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """A ModelConfig from `config.json`, from our own record where we wrote the file.

    From a foreign file the muP base sizes follow from mup_width_scale, the base filter size by the same factor (as it is in
    the published model). Raises ConfigError for another model_type or for missing keys.
    """
    if values.get("model_type") != "btlm":
        raise ConfigError(
            f"config.json has model_type {values.get('model_type')!r}, not btlm. Import a BTLM checkpoint."
        )
    if "btlm_train_model" in values:
        return ModelConfig.model_validate(values["btlm_train_model"])
    try:
        scaling = values.get("alibi_scaling") or {}
        width = float(values.get("mup_width_scale", 1.0))
        tree: dict[str, Any] = {
            "vocab_size": values["vocab_size"],
            "hidden_size": values["n_embd"],
            "num_heads": values["n_head"],
            "num_hidden_layers": values["n_layer"],
            "filter_size": values["n_inner"],
            "max_position_embeddings": values["n_positions"],
            "position_embedding_type": values.get("position_embedding_type", "learned"),
            "nonlinearity": values.get("activation_function", "gelu"),
            "layer_norm_epsilon": values.get("layer_norm_epsilon", 1e-5),
            "initializer_range": values.get("initializer_range", 0.02),
            "dropout_rate": values.get("resid_pdrop", 0.1),
            "embedding_dropout_rate": values.get("embd_pdrop", 0.1),
            "attention_dropout_rate": values.get("attn_pdrop", 0.1),
            "embeddings_scale": values.get("mup_embeddings_scale", 1.0),
            "output_logits_alpha": values.get("mup_output_alpha", 1.0),
            "scale_qk_dot_by_d": values.get("mup_scale_qk_dot_by_d", False),
            "mup_base_hidden_size": width * values["n_embd"],
            "mup_base_filter_size": width * values["n_inner"],
            "pos_scaling_factor": scaling.get("factor", 1.0),
            "alibi_train_seq_len": scaling.get("train_seq_len"),
        }
        return ModelConfig.model_validate(tree)
    except KeyError as missing:
        raise ConfigError(
            f"config.json lacks {missing}, without which the model is not known. Take the file of the original checkpoint."
        ) from None


def export(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    folder: Path,
    to: Literal["hf", "modelzoo"],
    dtype: torch.dtype = torch.float32,
) -> list[Path]:
    """Write a checkpoint others can load; returns the files. float32 is exact, bfloat16 half the size."""
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    if to == "hf":
        target = folder / "model.safetensors"
        state = to_huggingface(weights, config)
        write_json(folder / "config.json", huggingface_config(config, dtype))
        files = [folder / "config.json", *_write_tokenizer(folder, config)]
    else:
        target = folder / "checkpoint.safetensors"
        state = to_modelzoo(weights, config)
        params = yaml.safe_dump(
            {
                "trainer": {
                    "init": {
                        "model": config.model_dump(mode="json", exclude_defaults=True) | {"name": "btlm"}
                    }
                }
            },
            sort_keys=False,
        )
        write_bytes(folder / "params.yaml", params.encode())
        files = [folder / "params.yaml"]
    with creating(target) as temporary:
        write_tensors(state, temporary, metadata={"format": "pt"})
    return [*files, target]


def read_weights(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """Weights under our names from a Hugging Face or Model Zoo folder or safetensors file, with its configuration if it lies beside.

    Raises ConfigError when nothing readable is there (a pickled .bin, .pt or .mdl is refused), DataError for a torn file.
    """
    file = path
    if path.is_dir():
        candidates = [path / "model.safetensors", path / "checkpoint.safetensors"]
        file = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    if not file.is_file() or file.suffix != ".safetensors":
        raise ConfigError(
            f"No safetensors weights at {path}. Pickled checkpoints (.bin, .pt, .mdl) are never loaded, since they can run code. "
            "Convert them to safetensors with the program that wrote them."
        )
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise DataError(
            f"{file} is torn or not a safetensors file ({error}). Copy or export it again."
        ) from None
    config = None
    if (file.parent / "config.json").is_file():
        config = config_from_huggingface(
            json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
        )
    elif (file.parent / "params.yaml").is_file():
        tree = yaml.safe_load((file.parent / "params.yaml").read_text(encoding="utf-8"))
        config = ModelConfig.model_validate(tree["trainer"]["init"]["model"])
    modelzoo = any(name.startswith("model.transformer_decoder.") for name in state)
    return (from_modelzoo(state) if modelzoo else from_huggingface(state)), config


def _write_tokenizer(folder: Path, config: ModelConfig) -> list[Path]:
    """GPT-2's tokenizer files, where the vocabulary is GPT-2's; a model with another vocabulary needs its own files."""
    if config.vocab_size != 50257:
        return []
    source = Path(str(importlib.resources.files("btlm_data") / "data" / "gpt2"))
    for name in GPT2_FILES:
        with creating(folder / name) as temporary:
            shutil.copyfile(source / name, temporary)
    end = "<|endoftext|>"
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "model_max_length": config.max_position_embeddings,
    }
    write_json(
        folder / "tokenizer_config.json", settings | {"bos_token": end, "eos_token": end, "unk_token": end}
    )
    return [folder / name for name in (*GPT2_FILES, "tokenizer_config.json")]
