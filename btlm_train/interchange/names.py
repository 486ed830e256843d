"""Tensor names and layouts: ours, Hugging Face's and the Model Zoo's; every conversion is exact.

| here                    | Hugging Face (`transformer.` +) | Model Zoo (`model.` +)                       |
|-------------------------|---------------------------------|----------------------------------------------|
| wte.weight              | wte.weight, and lm_head.weight  | embedding_layer.word_embeddings, lm_head     |
| blocks.N.ln_1, ln_2     | h.N.ln_1, ln_2                  | transformer_decoder.layers.N.norm1, norm3    |
| blocks.N.attn.qkv       | h.N.attn.c_attn (transposed)    | ...self_attn.proj_{q,k,v}_dense_layer        |
| blocks.N.attn.proj      | h.N.attn.c_proj (transposed)    | ...self_attn.proj_output_dense_layer         |
| blocks.N.ffn.fc, gate   | h.N.mlp.c_fc, c_fc2 (transp.)    | ...ffn.ffn.0.linear_layer, .._for_glu |
| blocks.N.ffn.proj       | h.N.mlp.c_proj (transposed)     | ...ffn.ffn.1.linear_layer                    |
| ln_f                    | ln_f                            | transformer_decoder.norm, and ln_f, the same |
| (from the configuration) | relative_pe.slopes              | embedding_layer.position_embed_helper.slopes |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from btlm_data.errors import DataError
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
_SLOPES = ("relative_pe.slopes", "embedding_layer.position_embed_helper.slopes")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")


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
        inner_name = "attn.c_attn" if part == "attn.qkv" else _LAYER[part][0]
        out[f"transformer.h.{layer}.{inner_name}.{kind}"] = tensor.T if tensor.ndim == 2 else tensor
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in out.items()}


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `to_huggingface`. Raises DataError for foreign names, an untied head, or foreign ALiBi
    slopes.

    The published attention masks of older transformers (`attn.bias`, `attn.masked_bias`) are left out.
    """
    back = {inner_name: btlm_name for btlm_name, (inner_name, _) in _LAYER.items()} | {
        "attn.c_attn": "attn.qkv"
    }
    out: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for full, tensor in state.items():
        name = full.removeprefix("transformer.")
        parts = name.split(".")
        inner = ".".join(parts[2:-1])
        if name in ("lm_head.weight", "wte.weight"):
            heads[full] = tensor
        elif name == _SLOPES[0] or (parts[0] == "h" and name.endswith((".attn.bias", ".attn.masked_bias"))):
            continue
        elif parts[0] == "h" and inner in back and _NUMBER.fullmatch(parts[1]):
            btlm_name = f"blocks.{parts[1]}.{back[inner]}.{parts[-1]}"
            _put(out, btlm_name, tensor.T.contiguous() if tensor.ndim == 2 else tensor, full)
        elif name in ("ln_f.weight", "ln_f.bias"):
            _put(out, name, tensor, full)
        else:
            raise _foreign(full)
    return out | _tied("wte.weight", heads)


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
                f"{head}.{projection}.{kind}": third
                for projection, third in zip(_QKV, tensor.chunk(3), strict=True)
            }
        else:
            out[f"{head}.{_LAYER[part][1]}.{kind}"] = tensor
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in out.items()}


def from_modelzoo(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `to_modelzoo`. Raises DataError for foreign names, a missing q, k or v, an untied head
    or norm.
    """
    back = {inner_name: btlm_name for btlm_name, (_, inner_name) in _LAYER.items()}
    out: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    norms: dict[str, dict[str, Tensor]] = {}
    for full, tensor in state.items():
        name = full.removeprefix("model.")
        parts = name.split(".")
        inner = ".".join(parts[3:-1])
        in_layer = (
            parts[:2] == ["transformer_decoder", "layers"]
            and len(parts) > 4
            and bool(_NUMBER.fullmatch(parts[2]))
        )
        if name in ("embedding_layer.word_embeddings.weight", "lm_head.weight"):
            heads[full] = tensor
        elif name == _SLOPES[1]:
            continue
        elif parts[:-1] in (["ln_f"], ["transformer_decoder", "norm"]):
            norms.setdefault(f"ln_f.{parts[-1]}", {})[full] = tensor
        elif in_layer and inner in back:
            _put(out, f"blocks.{parts[2]}.{back[inner]}.{parts[-1]}", tensor, full)
        elif in_layer and inner in _QKV:
            names = [full.replace(inner, projection) for projection in _QKV]
            if missing := [full_name for full_name in names if full_name not in state]:
                raise DataError(
                    f"The checkpoint has {full} but no {missing[0]}. It is incomplete; export it again."
                )
            if inner == _QKV[0]:
                thirds = [state[full_name] for full_name in names]
                if any(not third.ndim or third.shape != tensor.shape for third in thirds):
                    raise DataError(
                        f"{names[0]}, k and v have shapes that do not fit each other. Export it again."
                    )
                _put(out, f"blocks.{parts[2]}.attn.qkv.{parts[-1]}", torch.cat(thirds), full)
        else:
            raise _foreign(full)
    for name, copies in norms.items():
        out |= _tied(name, copies)
    return out | _tied("wte.weight", heads)


def is_modelzoo(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the Model Zoo's names."""
    return any("transformer_decoder." in name or "embedding_layer." in name for name in state)


def check_slopes(state: Mapping[str, Tensor], num_heads: int) -> None:
    """Raise DataError if a checkpoint holds ALiBi slopes, and they are not the standard ones up to bfloat16's
    rounding.
    """
    slopes = next((tensor for name, tensor in state.items() if name.endswith(_SLOPES)), None)
    if slopes is None:
        return
    expected = alibi_slopes(num_heads)
    if slopes.numel() != num_heads or not torch.allclose(
        slopes.flatten().float(), expected, rtol=2**-7, atol=0
    ):
        raise DataError(
            f"The checkpoint's ALiBi slopes are not those of {num_heads} heads "
            f"(first {slopes.flatten()[:3].tolist()}, expected {expected[:3].tolist()}): another model, or "
            "trained slopes, "
            "which BTLM does not have."
        )


def _put(out: dict[str, Tensor], name: str, tensor: Tensor, full: str) -> None:
    if name in out:
        raise DataError(
            f"The checkpoint holds two tensors for {name}, one of them {full!r}. Export it again."
        )
    out[name] = tensor


def _tied(name: str, copies: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor under `name` of those that should be copies of it. Raises DataError if they differ."""
    if not copies:
        return {}
    (first, tensor), *others = copies.items()
    for second, value in others:
        if value.shape != tensor.shape or not torch.equal(value, tensor):
            raise DataError(
                f"The tensors {first} and {second} differ. In BTLM they are one and the same (tied); "
                "the checkpoint is of another model."
            )
    return {name: tensor}


def _foreign(name: str) -> DataError:
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    return DataError(
        f"The checkpoint holds a tensor {shown!r}, which BTLM does not have. "
        "It is of another model; import only BTLM checkpoints."
    )


def _split(name: str) -> tuple[str | None, str, str]:
    """("3", "attn.qkv", "weight") of blocks.3.attn.qkv.weight; (None, "ln_f", "bias") of ln_f.bias."""
    *head, kind = name.split(".")
    return (head[1], ".".join(head[2:]), kind) if head[0] == "blocks" else (None, head[0], kind)
