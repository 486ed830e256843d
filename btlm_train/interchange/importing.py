"""Takes over checkpoints of other programs: everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from btlm_data.errors import DataError
from btlm_train.files import read_json_object
from btlm_train.interchange.huggingface import config_from_huggingface
from btlm_train.interchange.names import check_slopes, from_huggingface, from_modelzoo, is_modelzoo
from btlm_train.interchange.tensor_files import read_state
from btlm_train.model import BTLM
from btlm_train.parameters import ModelConfig, load_model_config

MAX_CONFIG_BYTES = 2**20


def read_weights(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """Weights under our names from a folder or file in Hugging Face's or the Model Zoo's layout.

    With the model's configuration if it is beside them (config.json or params.yaml), and then checked
    against it. Raises ConfigError when nothing that can be read is there or the configuration is of another
    model, DataError for damaged files and for tensors that are not the configuration's.
    """
    state, folder = read_state(path)
    config = read_config(folder)
    weights = from_modelzoo(state) if is_modelzoo(state) else from_huggingface(state)
    if config is not None:
        check_weights(weights, config, str(path))
        check_slopes(state, config.num_heads)
    return weights, config


def read_config(folder: Path) -> ModelConfig | None:
    """The model of config.json, or of params.yaml in any form that the trainer reads; None if neither is
    there.
    """
    if (folder / "config.json").is_file():
        return config_from_huggingface(read_json_object(folder / "config.json", MAX_CONFIG_BYTES))
    if (folder / "params.yaml").is_file():
        return load_model_config(folder / "params.yaml")
    return None


def check_weights(weights: Mapping[str, Tensor], config: ModelConfig, source: str) -> None:
    """Compare names, shapes and types with those of the model, built without memory. Raises DataError."""
    with torch.device("meta"):
        expected = dict(BTLM(config).named_parameters())
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} has no place in the model" for name in weights if name not in expected]
    for name, tensor in weights.items():
        if name in expected and tensor.shape != expected[name].shape:
            problems.append(
                f"{name} has shape {tuple(tensor.shape)}, the model {tuple(expected[name].shape)}"
            )
        elif not tensor.is_floating_point():
            problems.append(f"{name} holds {tensor.dtype}, expected floating-point numbers")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"The weights at {source} are not of the model that the configuration beside them describes: "
            f"{'; '.join(problems[:5])}{more}. Use the configuration they were saved with."
        )
