"""A model as one GGUF file, for llama.cpp and what is built on it.

llama.cpp knows BTLM's architecture under the name `jais`. Its graph has no muP factors, so they are
multiplied into the tensors: embeddings_scale into the embedding, the scale of logits into the output head,
and what q.k is scaled by, beyond the 1/d that is built in there, into q.

Source: "GGUF specification" of ggml, version 3; llama.cpp's src/models/jais.cpp.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from btlm_data.errors import ConfigError, install_command
from btlm_train import mup
from btlm_train.parameters import ModelConfig

Precision = Literal["float32", "float16", "bfloat16", "q8_0"]
_END = "<|endoftext|>"
_LAYER = {
    "ln_1": "attn_norm", "attn.qkv": "attn_qkv", "attn.proj": "attn_output",
    "ln_2": "ffn_norm", "ffn.fc": "ffn_up", "ffn.gate": "ffn_gate", "ffn.proj": "ffn_down",
}  # fmt: skip
_BLOCK = 32  # numbers that share a scale in q8_0


def write_gguf(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    path: Path,
    precision: Precision,
    tokenizer: Path | None,
) -> None:
    """Write `path`. Vectors stay float32, and so do matrices in q8_0 whose rows are no multiple of 32 numbers
    (float16).

    tokenizer: a tokenizer.json with GPT-2's rules of splitting; None: GPT-2's own, where the vocabulary is
    GPT-2's. Raises ConfigError for a model or tokenizer that llama.cpp cannot express.
    """
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            f"--to gguf needs the package gguf, not installed here. Install it with: {install_command('gguf')}."
        ) from None
    if config.pos_scaling_factor != 1.0:
        raise ConfigError(
            f"pos_scaling_factor is {config.pos_scaling_factor}, and llama.cpp has no scaling of ALiBi's "
            "distances. Export with --to hf instead."
        )
    writer = gguf.GGUFWriter(path, "jais")
    trained = config.alibi_train_seq_len or config.max_position_embeddings
    writer.add_name("BTLM")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(min(trained, config.max_position_embeddings))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.filter_size)
    writer.add_head_count(config.num_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_max_alibi_bias(8.0)  # slopes 2^(-8 (i+1) / n)
    kinds = gguf.GGMLQuantizationType
    kind = {"float32": kinds.F32, "float16": kinds.F16, "bfloat16": kinds.BF16, "q8_0": kinds.Q8_0}[precision]
    files = gguf.LlamaFileType
    writer.add_file_type(
        {
            "float32": files.ALL_F32,
            "float16": files.MOSTLY_F16,
            "bfloat16": files.MOSTLY_BF16,
            "q8_0": files.MOSTLY_Q8_0,
        }[precision]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, gguf, config, tokenizer)
    for name, values in gguf_tensors(weights, config):
        chosen = kind if values.ndim == 2 else kinds.F32
        if chosen == kinds.Q8_0 and values.shape[1] % _BLOCK:
            chosen = kinds.F16
        writer.add_tensor(name, gguf.quants.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(
    weights: Mapping[str, Tensor], config: ModelConfig
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Names and float32 values as llama.cpp's graph takes them; biases that the model does not have are 0.
    Shapes as in the model, (rows, columns) or (n,).
    """
    yield "token_embd.weight", _values(weights["wte.weight"] * config.embeddings_scale)
    yield "output.weight", _values(weights["wte.weight"] * mup.logit_scale(config))
    for kind in ("weight", "bias"):
        yield f"output_norm.{kind}", _values(weights[f"ln_f.{kind}"])
    query = mup.attention_scale(config) * config.head_dim
    for layer in range(config.num_hidden_layers):
        for part, gguf_name in _LAYER.items():
            matrix = weights[f"blocks.{layer}.{part}.weight"].float()
            bias = weights.get(f"blocks.{layer}.{part}.bias", torch.zeros(len(matrix))).float()
            if part == "attn.qkv" and query != 1.0:
                factors = torch.ones(len(matrix))
                factors[: config.hidden_size] = query
                matrix, bias = matrix * factors[:, None], bias * factors
            yield f"blk.{layer}.{gguf_name}.weight", _values(matrix)
            yield f"blk.{layer}.{gguf_name}.bias", _values(bias)


def _values(tensor: Tensor) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = tensor.float().contiguous().numpy()
    return values


def _add_tokenizer(writer: Any, gguf: Any, config: ModelConfig, tokenizer: Path | None) -> None:
    """The vocabulary, padded to the model's size, and the merges; or a note that there are none."""
    if tokenizer is None and config.vocab_size != 50257:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(config.vocab_size)
        return
    vocabulary, merges, special = _gpt2() if tokenizer is None else _from_json(tokenizer)
    tokens = [f"[PAD{number}]" for number in range(config.vocab_size)]
    types = [int(gguf.TokenType.UNUSED)] * config.vocab_size
    for token, number in vocabulary.items():
        tokens[number] = token
        types[number] = int(gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    if _END in vocabulary:
        writer.add_bos_token_id(vocabulary[_END])
        writer.add_eos_token_id(vocabulary[_END])
    writer.add_add_bos_token(False)


def _gpt2() -> tuple[dict[str, int], list[str], set[str]]:
    """GPT-2's vocabulary, merges and special tokens."""
    folder = importlib.resources.files("btlm_data") / "data" / "gpt2"
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    return vocabulary, merges, {_END}


def _from_json(path: Path) -> tuple[dict[str, int], list[str], set[str]]:
    """The same of a tokenizer.json. llama.cpp knows rules of splitting by name only, so others than GPT-2's
    are refused.
    """
    from btlm_data.tokenizer.configuration import read_tokenizer_json

    tree = read_tokenizer_json(path)
    model, splitting = tree.get("model") or {}, tree.get("pre_tokenizer") or {}
    plain = (
        model.get("type", "BPE") == "BPE"
        and not tree.get("normalizer")
        and splitting.get("type") == "ByteLevel"
        and not splitting.get("add_prefix_space")
        and splitting.get("use_regex", True)
        and not model.get("ignore_merges")
        and not model.get("byte_fallback")
    )
    if not plain:
        raise ConfigError(
            f"{path} splits text in another way than GPT-2 (byte-level BPE with its regular expression, no "
            "normaliser), and llama.cpp knows only ways that it has names for. Export with --to jais, and "
            "see whether llama.cpp's own converter knows this tokenizer."
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or ()]
    added = {entry["content"]: entry["id"] for entry in tree.get("added_tokens") or ()}
    special = {entry["content"] for entry in tree.get("added_tokens") or () if entry.get("special")}
    return {**model["vocab"], **added}, merges, special
