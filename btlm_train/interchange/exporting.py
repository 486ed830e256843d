"""Writes checkpoints that other programs load: Hugging Face's BTLM and JAIS, GGUF, and the Model Zoo."""

from __future__ import annotations

import importlib.resources
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import yaml
from torch import Tensor

from btlm_data.errors import ConfigError, DataError, OutputError
from btlm_train.checkpoint import State
from btlm_train.files import creating, read_json_object, refuse_link, write_bytes, write_json, write_tensors
from btlm_train.interchange.gguf_file import Precision, write_gguf
from btlm_train.interchange.huggingface import huggingface_config
from btlm_train.interchange.modelzoo import modelzoo_params
from btlm_train.interchange.names import to_huggingface, to_modelzoo
from btlm_train.parameters import ModelConfig

logger = logging.getLogger(__name__)
Target = Literal["hf", "jais", "gguf", "modelzoo"]
REMOTE_CODE = ("configuration_btlm.py", "modeling_btlm.py")
_GPT2_FILES = ("vocab.json", "merges.txt")
_MODEL_ZOO_FILES = ("params.yaml", "checkpoint.safetensors", "checkpoint.mdl")
_GGUF_FILE = "model.gguf"
_MARKER = ".btlm-export.json"
_END = "<|endoftext|>"


def export(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    folder: Path,
    to: Target,
    precision: Precision = "float32",
    *,
    state: State | None = None,
    tokenizer: Path | None = None,
) -> list[Path]:
    """Write a checkpoint others can load; returns the files. float32 is exact, bfloat16 and float16 are half
    the size; q8_0 (GGUF alone) is a quarter.

    state: the checkpoint's, for optimizer and schedule in the Model Zoo's params.yaml. tokenizer: a
    tokenizer.json that travels with the model; without one GPT-2's, where the vocabulary is GPT-2's.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Give a folder as --out.")
    if precision == "q8_0" and to != "gguf":
        raise ConfigError(f"--dtype q8_0 is for --to gguf. Give float32, bfloat16 or float16 for {to}.")
    _claim(folder, _file_names(to, config, tokenizer))
    if to == "gguf":
        return _write_gguf(weights, config, folder, precision, tokenizer)
    dtype: torch.dtype = getattr(torch, precision)
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    if to == "modelzoo":
        return [
            *_write_modelzoo(weights, config, folder, state),
            *_write_tokenizer(folder, config, tokenizer),
        ]
    kind: Literal["btlm", "jais"] = "jais" if to == "jais" else "btlm"
    write_json(folder / "config.json", huggingface_config(config, dtype, kind))
    files = [folder / "config.json", *_write_tokenizer(folder, config, tokenizer)]
    if kind == "btlm":
        files += _write_remote_code(folder)
    with creating(folder / "model.safetensors") as temporary:
        write_tensors(to_huggingface(weights, config), temporary, metadata={"format": "pt"})
    return [*files, folder / "model.safetensors"]


def _file_names(to: Target, config: ModelConfig, tokenizer: Path | None) -> list[str]:
    """The files of an export."""
    if to == "gguf":
        return [_GGUF_FILE]
    names = ["config.json", "model.safetensors", *(REMOTE_CODE if to == "hf" else ())]
    if to == "modelzoo":
        names = list(_MODEL_ZOO_FILES)
    if tokenizer is not None:
        return [*names, "tokenizer.json", "tokenizer_config.json"]
    return [*names, *_GPT2_FILES, "tokenizer_config.json"] if config.vocab_size == 50257 else names


def _claim(folder: Path, names: list[str]) -> None:
    """Record which files of a folder are an export's, so that only those are ever replaced.

    Raises OutputError if one of `names` is there and no export wrote it.
    """
    marker = folder / _MARKER
    refuse_link(marker)
    try:
        listed = read_json_object(marker, 2**16).get("files")
    except (FileNotFoundError, DataError):
        listed = None
    written = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    for name in names:
        if os.path.lexists(folder / name) and name not in written:
            raise OutputError(
                f"{folder / name} is there, and no export wrote it: it would be replaced. "
                "Choose another --out, or move the file away."
            )
    write_json(marker, {"files": sorted(written.union(names))})


def _write_gguf(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    folder: Path,
    precision: Precision,
    tokenizer: Path | None,
) -> list[Path]:
    """model.gguf, with its tokenizer inside."""
    if tokenizer is not None:
        from btlm_train.generate import load_tokenizer

        load_tokenizer(str(tokenizer), config.vocab_size)
    elif config.vocab_size != 50257:
        _warn_of_no_tokenizer(config)
    with creating(folder / _GGUF_FILE) as temporary:
        write_gguf(weights, config, temporary, precision, tokenizer)
    return [folder / _GGUF_FILE]


def _warn_of_no_tokenizer(config: ModelConfig) -> None:
    logger.warning(
        "No tokenizer is written: the vocabulary of %d tokens is not GPT-2's. Give it with --tokenizer "
        "tokenizer.json.",
        config.vocab_size,
    )


def _write_modelzoo(
    weights: Mapping[str, Tensor], config: ModelConfig, folder: Path, state: State | None
) -> list[Path]:
    """params.yaml; checkpoint.mdl as its trainer loads it (`{"model": ...}`, by torch.save);
    checkpoint.safetensors, flat.
    """
    tensors = to_modelzoo(weights, config)
    text = yaml.safe_dump(modelzoo_params(config, state), sort_keys=False)
    write_bytes(folder / "params.yaml", text.encode())
    with creating(folder / "checkpoint.safetensors") as temporary:
        write_tensors(tensors, temporary, metadata={"format": "pt"})
    with creating(folder / "checkpoint.mdl") as temporary, temporary.open("wb") as file:
        torch.save({"model": tensors}, file)  # to an open file: a path's name would be part of the archive
    return [folder / name for name in _MODEL_ZOO_FILES]


def _write_remote_code(folder: Path) -> list[Path]:
    """The code that transformers runs with trust_remote_code, so that the folder works offline."""
    source = importlib.resources.files("btlm_train.interchange") / "remote_code"
    for name in REMOTE_CODE:
        write_bytes(folder / name, (source / name).read_bytes())
    return [folder / name for name in REMOTE_CODE]


def _write_tokenizer(folder: Path, config: ModelConfig, tokenizer: Path | None) -> list[Path]:
    """A given tokenizer.json, or GPT-2's files; a warning where neither fits. Raises ConfigError for a
    tokenizer that is none.
    """
    if tokenizer is not None:
        from btlm_train.generate import load_tokenizer

        load_tokenizer(str(tokenizer), config.vocab_size)
        with creating(folder / "tokenizer.json") as temporary:
            shutil.copyfile(tokenizer, temporary)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position_embeddings,
        }
        write_json(folder / "tokenizer_config.json", settings)
        return [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    if config.vocab_size != 50257:
        _warn_of_no_tokenizer(config)
        return []
    source = Path(str(importlib.resources.files("btlm_data") / "data" / "gpt2"))
    for name in _GPT2_FILES:
        with creating(folder / name) as temporary:
            shutil.copyfile(source / name, temporary)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "model_max_length": config.max_position_embeddings,
            "bos_token": _END,
            "eos_token": _END,
            "unk_token": _END,
        },
    )
    return [folder / name for name in (*_GPT2_FILES, "tokenizer_config.json")]
