"""muP, the maximal update parametrisation (Yang et al. 2022, "Tensor Programs V"): deviations, rates and
logit scale by width.

With m = hidden_size / mup_base_hidden_size and f = filter_size / mup_base_filter_size (both 1 when muP is
off), each matrix of the decoder starts with its base deviation / sqrt(m or f), and learns at the base rate /
(m or f); everything else (embedding, LayerNorm, biases) keeps the base rate. What is tuned at the base width
then holds at any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from btlm_train.parameters import Initializer, ModelConfig, OptimizerConfig

# Which multiplier group a matrix belongs to, by the end of its name; the order does not matter, no name ends
# in two of them.
GROUPS = {
    "attn.qkv.weight": "decoder_attention",
    "attn.proj.weight": "decoder_attention",
    "ffn.fc.weight": "decoder_input_ffn",
    "ffn.gate.weight": "decoder_input_ffn",
    "ffn.proj.weight": "decoder_output_ffn",
    "wte.weight": "embedding",
}


def hidden_multiplier(config: ModelConfig) -> float:
    """m, how much wider than the base model; 1 without muP."""
    return config.hidden_size / config.mup_base_hidden_size if config.mup_base_hidden_size else 1.0


def filter_multiplier(config: ModelConfig) -> float:
    """f, the same of the feed-forward layer."""
    return config.filter_size / config.mup_base_filter_size if config.mup_base_filter_size else 1.0


def logit_scale(config: ModelConfig) -> float:
    """What LN_f(x) wte^T is multiplied by: alpha / m (or / sqrt(m)); in the older form the factor is given
    itself.
    """
    if not config.mup:
        return config.output_logits_scale if config.output_logits_scale is not None else 1.0
    m = hidden_multiplier(config)
    return (config.output_logits_alpha or 1.0) / (m if config.scale_output_logits_by_d else math.sqrt(m))


def attention_scale(config: ModelConfig) -> float:
    """What q.k is multiplied by: 1/d under muP (unless asked otherwise), else 1/sqrt(d); times
    attention_logits_alpha.
    """
    by_d = config.mup if config.scale_qk_dot_by_d is None else config.scale_qk_dot_by_d
    d = config.head_dim
    scale = 1.0 if config.attention_type == "dot_product" else 1 / d if by_d else 1 / math.sqrt(d)
    return scale * config.attention_logits_alpha


def group(name: str) -> str | None:
    """The learning-rate group of a parameter, None for LayerNorm and biases."""
    return next((label for ending, label in GROUPS.items() if name.endswith(ending)), None)


def initializer(config: ModelConfig, name: str) -> Initializer:
    """The distribution a matrix is drawn from, with its width and depth factors applied.

    The feed-forward output falls back on `initializer_range`, not on `initializer`: so does the original
    under muP.
    """
    default = Initializer(std=config.initializer_range)
    inner = config.initializer or default
    depth = (2 * config.num_hidden_layers) ** -0.5
    m, f = hidden_multiplier(config), filter_multiplier(config)
    if name.endswith("wte.weight"):
        return config.embedding_initializer or default
    if name.endswith("attn.qkv.weight"):
        return _scaled(inner, m**-0.5)
    if name.endswith(("ffn.fc.weight", "ffn.gate.weight")):
        return _scaled(config.ffn_initializer or inner, m**-0.5)
    output = config.output_layer_initializer
    if config.mup:
        if name.endswith("attn.proj.weight"):
            return _scaled(output or default, m**-0.5 * depth)
        return _scaled(config.ffn_output_layer_initializer or default, f**-0.5 * depth)
    if output is None:
        output = inner if config.initializer else _scaled(default, depth)
    return output if name.endswith("attn.proj.weight") else config.ffn_output_layer_initializer or output


def _scaled(base: Initializer, factor: float) -> Initializer:
    bounds = {side: bound * factor for side, bound in (("a", base.a), ("b", base.b)) if bound is not None}
    return base.model_copy(update={"std": base.std * factor, "mean": base.mean * factor, **bounds})


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Draw every parameter of `model`, from one CPU generator in the order of the names: the same on any
    device and world size.

    Biases become 0 and LayerNorm weights 1; deviations are those of btlm's table (see `initializer`).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(
                parameter, 1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0
            )
            continue
        drawn = initializer(config, name)
        value = torch.empty(parameter.shape)
        if drawn.name == "normal":
            nn.init.normal_(value, drawn.mean, drawn.std, generator=generator)
        elif drawn.std == 0:
            value.fill_(drawn.mean)
        else:
            low, high = drawn.bounds
            nn.init.trunc_normal_(value, drawn.mean, drawn.std, low, high, generator=generator)
        parameter.copy_(value)


def learning_rate_multiplier(name: str, config: ModelConfig, optimizer: OptimizerConfig) -> float:
    """The factor on the learning rate (and so on the weight decay) of one parameter.

    `adjust_learning_rate` of the older form wins; its `decoder_kernel` means every matrix of the decoder.
    """
    label = group(name)
    if label is None:
        return 1.0
    given = optimizer.adjust_learning_rate
    if label in given:
        return given[label]
    if label != "embedding" and "decoder_kernel" in given:
        return given["decoder_kernel"]
    return {"decoder_output_ffn": 1 / filter_multiplier(config), "embedding": 1.0}.get(
        label, 1 / hidden_multiplier(config)
    )


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], config: ModelConfig, optimizer: OptimizerConfig
) -> dict[tuple[float, float], list[tuple[str, nn.Parameter]]]:
    """Parameters by (rate multiplier, weight decay). Matrices decay, the embedding included; biases and
    LayerNorm do not.
    """
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in parameters:
        decay = optimizer.weight_decay if group(name) is not None else 0.0
        groups.setdefault((learning_rate_multiplier(name, config, optimizer), decay), []).append(
            (name, parameter)
        )
    return groups
