"""BTLM for Hugging Face transformers (4.57 and 5): logits and generation with a cache of keys and values.

Shapes: B sequences, L new positions, K positions with those in the cache, n heads of width d, H = n * d
hidden size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D

from .configuration_btlm import BTLMConfig

_TIED = {"lm_head.weight": "transformer.wte.weight"}


def alibi_slopes(num_heads: int) -> Tensor:
    """One slope per head (Press et al. 2022, "Train short, test long"); (n,) float32."""
    p = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / p) for i in range(p)]
    slopes += [2 ** (-8 * (i + 1) / (2 * p)) for i in range(0, 2 * (num_heads - p), 2)]
    return torch.tensor(slopes)


class BTLMPositions(nn.Module):
    """ALiBi's slopes, (n, 1), stored with the weights."""

    def __init__(self, config: BTLMConfig) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(config.n_head)[:, None])


class BTLMAttention(nn.Module):
    """softmax(q.k * scale + bias) v, over all heads at once."""

    def __init__(self, config: BTLMConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.num_heads, self.dropout = layer, config.n_head, config.attn_pdrop
        d = config.n_embd // config.n_head
        self.scale = 1.0
        if config.scale_attn_weights:
            self.scale = 1 / d if config.mup_scale_qk_dot_by_d else 1 / math.sqrt(d)
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, bias: Tensor, cache: Any) -> Tensor:
        """(B, L, H) -> (B, L, H). bias: (B or 1, n, L, K)."""
        q, k, v = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=2)
        )
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class BTLMMLP(nn.Module):
    """SwiGLU: c_proj(c_fc(x) * silu(c_fc2(x)))."""

    def __init__(self, config: BTLMConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.n_inner, config.n_embd)
        self.c_fc2 = Conv1D(config.n_inner, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_inner)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        return self.c_proj(self.c_fc(x) * F.silu(self.c_fc2(x)))


class BTLMBlock(nn.Module):
    """One decoder layer, normalised first."""

    def __init__(self, config: BTLMConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = BTLMAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = BTLMMLP(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, bias: Tensor, cache: Any) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        x = x + self.dropout(self.attn(self.ln_1(x), bias, cache))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class BTLMPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of all BTLM models."""

    config_class = BTLMConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["BTLMBlock"]  # noqa: RUF012
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Embedding, nn.Linear, Conv1D)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, BTLMPositions):
            with torch.no_grad():
                module.slopes.copy_(alibi_slopes(self.config.n_head)[:, None])


class BTLMModel(BTLMPreTrainedModel):
    """Hidden states after the final normalisation."""

    def __init__(self, config: BTLMConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.relative_pe = BTLMPositions(config)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(BTLMBlock(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.wte = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids (B, L), attention_mask (B, K) with 0 on padding -> hidden states (B, L, H)."""
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        x = self.drop(x * self.config.mup_embeddings_scale)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        bias = self._bias(x.shape[1], past + x.shape[1], attention_mask, x.dtype)
        for block in self.h:
            x = block(x, bias, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(x), past_key_values=past_key_values)

    def _bias(self, queries: int, keys: int, attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """ALiBi, the causal mask and the padding mask in one: (B or 1, n, L, K)."""
        slopes = self.relative_pe.slopes.float().flatten() / self._position_scale(keys)
        key = torch.arange(keys, device=slopes.device)
        distance = key[keys - queries :, None] - key
        visible = (distance >= 0)[None]
        if attention_mask is not None and attention_mask.ndim == 2:
            visible = visible & attention_mask[:, None, :keys].bool()
        bias = -slopes[None, :, None, None] * distance
        # the lowest number, not -inf: a padded query sees nothing, and must not become nan
        return bias.to(dtype).masked_fill(~visible[:, None], torch.finfo(dtype).min)

    def _position_scale(self, length: int) -> float:
        """What distances are divided by."""
        scaling = self.config.alibi_scaling or {}
        if scaling.get("train_seq_len"):
            return max(length / scaling["train_seq_len"], 1.0)
        return scaling.get("factor") or 1.0


class BTLMLMHeadModel(BTLMPreTrainedModel, GenerationMixin):
    """The language model; its head is tied to the embedding."""

    _tied_weights_keys = _TIED if int(transformers.__version__.split(".")[0]) >= 5 else list(_TIED)

    def __init__(self, config: BTLMConfig) -> None:
        super().__init__(config)
        self.transformer = BTLMModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.logit_scale = config.mup_output_alpha * config.mup_width_scale
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, L) -> logits (B, L or logits_to_keep, V). labels (B, L) are shifted here; -100 does
        not count.
        """
        outputs = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept]) * self.logit_scale
        loss = None
        if labels is not None:
            target = labels[:, 1:].flatten().long()
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target, ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)
