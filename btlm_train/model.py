"""All of BTLM: GPT-2 with ALiBi positions, SwiGLU and muP (Dey et al. 2023, "BTLM-3B-8K").

Shapes: B sequences, L positions, H hidden size, n heads of width d, F filter size, V vocabulary.

    x = wte[ids] * embeddings_scale                              (B, L, H)
    per layer:  x += attention(LN_1(x));  x += ffn(LN_2(x))
    logits = LN_f(x) wte^T * logit_scale                         (B, L, V), never whole in memory

`forward` gives hidden states, `loss` the training loss from them, `logits` what generation needs.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from btlm_train import mup
from btlm_train.parameters import ModelConfig

LOSS_CHUNK_TOKENS = {
    "cpu": (256, 1024),
    "cuda": (4096, 4096),
}  # logits of so many tokens exist at once: 256 x 50257 floats are 51 MB

# Sizes that a GPU's matrix units take at full speed are multiples of this. BTLM's filter size (6,826) and
# vocabulary (50,257) are none: there, weights are widened with zeros for the product, and only for it.
ALIGNMENT = {"cuda": 8}

# What scaled_dot_product_attention runs on a CPU. This kernel can skip the future *and* add a bias, half the
# work of a long
# sequence; the public function allows only one of the two. Where a version of PyTorch lacks it, the public
# one serves.
_CPU_FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def alibi_slopes(num_heads: int) -> Tensor:
    """One slope per head (Press et al. 2022, "Train short, test long"); (n,) float32.

    2^(-8(i+1)/n) for n a power of two; else those of the power of two p below n, then every other slope of
    2p, from its first.
    """
    p = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / p) for i in range(p)]
    slopes += [2 ** (-8 * (i + 1) / (2 * p)) for i in range(0, 2 * (num_heads - p), 2)]
    return torch.tensor(slopes)


def attention_bias(
    slopes: Tensor,
    num_queries: int,
    num_keys: int,
    attention_span: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """ALiBi and the mask in one: -slope * distance where query i may see key j, -inf elsewhere. Made once a
    forward pass, shared by all layers.

    Queries are the last num_queries of num_keys positions. attention_span (B, L): key j is visible to queries
    j .. j + span[j] (variable sequence length: the tokens left in j's document). Returns (1 or B, n,
    num_queries, num_keys).
    """
    key = torch.arange(num_keys, device=slopes.device)
    query = key[num_keys - num_queries :, None]
    distance = query - key  # (queries, keys); negative: the future
    visible = (distance >= 0)[None]
    if attention_span is not None:
        visible = visible & (distance <= attention_span[:, None, :])
    bias = -slopes[None, :, None, None] * distance
    return bias.masked_fill(~visible[:, None], -math.inf).to(dtype or bias.dtype)


@dataclass
class Visibility:
    """What the layers of one forward pass share: a bias for scaled_dot_product_attention, or FlexAttention's
    two functions.

    skip_future: the CPU kernel need not even compute the keys that the bias hides behind the causal mask.
    """

    bias: Tensor | None = None
    skip_future: bool = False
    score_mod: Any = None
    block_mask: Any = None


class LayerCache:
    """Keys and values of the positions one layer has seen: (B, n, positions, d) each."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions; returns all of them."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)
        self.key, self.value = key, value
        return key, value


class KeyValueCache:
    """One `LayerCache` per layer; its length is the number of positions seen."""

    def __init__(self, num_layers: int):
        self.layers = [LayerCache() for _ in range(num_layers)]

    def __len__(self) -> int:
        key = self.layers[0].key
        return 0 if key is None else key.shape[2]


class Attention(nn.Module):
    """softmax(q.k * scale + alibi + mask) v, over all heads at once."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.scale, self.dropout = mup.attention_scale(config), config.attention_dropout
        self.qkv = nn.Linear(
            config.hidden_size, 3 * config.hidden_size, bias=config.use_projection_bias_in_attention
        )
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_ffn_bias_in_attention)

    def forward(self, x: Tensor, visibility: Visibility, cache: LayerCache | None = None) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        q, k, v = (
            self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        )  # each (B, n, L, d)
        if cache is not None:
            k, v = cache.append(k, v)
        if visibility.score_mod is not None:
            y = _flex_attention(q, k, v, visibility, self.scale)
        elif visibility.skip_future and not (self.training and self.dropout):
            y = _CPU_FLASH(q, k, v, 0.0, True, attn_mask=visibility.bias, scale=self.scale)[0]
        else:
            dropout = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=visibility.bias, dropout_p=dropout, scale=self.scale
            )
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))  # (B, L, n * d)
        return out


class FeedForward(nn.Module):
    """SwiGLU: proj(fc(x) * silu(gate(x))) (Shazeer 2020, "GLU variants improve Transformer")."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.fc = nn.Linear(config.hidden_size, config.filter_size, bias=config.use_ffn_bias)
        self.gate = nn.Linear(config.hidden_size, config.filter_size, bias=config.use_ffn_bias)
        self.proj = nn.Linear(config.filter_size, config.hidden_size, bias=config.use_ffn_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H), (B, L, F) in between, F rounded up to the device's alignment."""
        more = _missing(self.fc.out_features, x.device)
        up, gate = (
            F.linear(x, _widened(part.weight, more, 0), _widened(part.bias, 0, more))
            for part in (self.fc, self.gate)
        )
        return F.linear(up * F.silu(gate), _widened(self.proj.weight, 0, more), self.proj.bias)


def _missing(size: int, device: torch.device) -> int:
    """How much `size` lacks to the next size that the device is fast with."""
    return -size % ALIGNMENT.get(device.type, 1)


def _widened(weight: Tensor, rows: int, columns: int) -> Tensor:
    """A weight with rows and columns of zeros added at the end (a vector: columns), in the type that products
    are computed in; None stays None.
    """
    if weight is None or not (rows or columns):
        return weight
    if torch.is_autocast_enabled(weight.device.type):
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))
    return F.pad(weight, (0, columns, 0, rows) if weight.ndim == 2 else (0, columns))


class Block(nn.Module):
    """One decoder layer, normalised first."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor, visibility: Visibility, cache: LayerCache | None = None) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        x = x + self.dropout(self.attn(self.ln_1(x), visibility, cache))
        out: Tensor = x + self.dropout(self.ffn(self.ln_2(x)))
        return out


class BTLM(nn.Module):
    """The language model; the output head is tied to the embedding.

    attention: "sdpa" (any device) or "flex" (FlexAttention: no L x L bias at all; compiled on a GPU).
    """

    def __init__(
        self, config: ModelConfig, *, activation_checkpointing: bool = False, attention: str = "sdpa"
    ):
        super().__init__()
        self.config, self.activation_checkpointing, self.attention = (
            config,
            activation_checkpointing,
            attention,
        )
        self.logit_scale = mup.logit_scale(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.slopes: Tensor
        self.register_buffer("slopes", alibi_slopes(config.num_heads), persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        attention_span: Tensor | None = None,
        cache: KeyValueCache | None = None,
        position_scale: float | None = None,
        per_token: bool = False,
    ) -> Any:
        """Hidden states after LN_f, (B, L, H). With labels: the sum of masked cross-entropies (a scalar,
        float32), or if per_token the cross-entropy of each position and whether its likeliest token is the
        label: (B, L) float32 and bool.

        input_ids, labels, loss_mask, attention_span: (B, L) integers. The loss mask never masks attention.
        position_scale: what ALiBi distances are divided by (default: the configuration's, dynamic for inputs
        longer than alibi_train_seq_len).
        """
        past = len(cache) if cache is not None else 0
        length = input_ids.shape[1]
        x: Tensor = self.dropout(self.wte(input_ids) * self.config.embeddings_scale)
        visibility = self._visibility(
            length,
            past + length,
            attention_span,
            position_scale or self.position_scale(past + length),
            x.dtype,
        )
        for layer, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, visibility, use_reentrant=False)
            else:
                x = block(x, visibility, cache.layers[layer] if cache is not None else None)
        x = self.ln_f(x)
        if labels is None:
            return x
        if per_token:
            return self._token_losses(x, labels)
        mask = torch.ones_like(labels) if loss_mask is None else loss_mask
        return _SummedCrossEntropy.apply(
            x.flatten(0, 1), self.wte.weight, labels.flatten(), mask.flatten(), self.logit_scale
        )  # type: ignore[no-untyped-call]

    def reset_buffers(self) -> None:
        """Compute the slopes again, on the parameters' device, after the model was built without memory."""
        self.slopes = alibi_slopes(self.config.num_heads).to(self.wte.weight.device)

    def position_scale(self, length: int) -> float:
        """What ALiBi distances are divided by for an input of `length`: once it is longer than trained for,
        length / trained length.
        """
        trained = self.config.alibi_train_seq_len
        return max(length / trained, 1.0) if trained else self.config.pos_scaling_factor

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., V), scaled."""
        return F.linear(hidden, self.wte.weight) * self.logit_scale

    @torch.no_grad()
    def _token_losses(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        losses, hits = [], []
        flat, target = hidden.flatten(0, 1), labels.flatten().long()
        size = _chunk_tokens(flat)
        for start in range(0, len(target), size):
            h, y = flat[start : start + size], target[start : start + size]
            logits = self.logits(h).float()
            losses.append(F.cross_entropy(logits, y, reduction="none"))
            hits.append(logits.argmax(1) == y)
        return torch.cat(losses).view(labels.shape), torch.cat(hits).view(labels.shape)

    def _visibility(
        self, num_queries: int, num_keys: int, span: Tensor | None, position_scale: float, dtype: torch.dtype
    ) -> Visibility:
        slopes = self.slopes / position_scale
        if self.attention == "flex" and num_queries == num_keys:
            return _flex_visibility(slopes, num_keys, span)
        if torch.is_autocast_enabled(slopes.device.type):
            dtype = torch.get_autocast_dtype(slopes.device.type)
        flash: bool = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
        on_cpu = slopes.device.type == "cpu" and _CPU_FLASH is not None and flash
        return Visibility(
            attention_bias(slopes, num_queries, num_keys, span, dtype),
            skip_future=on_cpu and num_queries == num_keys,
        )


def _chunk_tokens(hidden: Tensor) -> int:
    """Tokens of (T, H) per chunk of the loss: few while that keeps the logits near, more where H is wide,
    since each chunk reads and writes the whole V x H gradient once.
    """
    least, most = LOSS_CHUNK_TOKENS.get(hidden.device.type, (1024, 1024))
    return min(max(hidden.shape[1], least), most)


class _SummedCrossEntropy(torch.autograd.Function):
    """sum_t mask_t * CE(h_t W^T * scale, label_t), a few hundred tokens at a time; gradients are made in the
    same pass.

    h (T, H), W (V, H), labels and mask (T,). So T x V logits never exist, and nothing is computed twice: with
    V = 50,257 the logits of one 8,192-token sequence would be 1.6 GB, and their gradient as much again.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, scale: float) -> Tensor:
        low_precision = torch.is_autocast_enabled(h.device.type)
        dtype = torch.get_autocast_dtype(h.device.type) if low_precision else h.dtype
        vocabulary = weight.shape[0]
        w = F.pad(weight.to(dtype), (0, 0, 0, _missing(vocabulary, h.device)))
        total = torch.zeros((), dtype=torch.float32, device=h.device)
        needs_grad = any(ctx.needs_input_grad[:2])
        grad_h = torch.empty_like(h) if needs_grad else None
        grad_w: Tensor | None = None
        size = min(_chunk_tokens(h), h.shape[0])
        buffer = torch.empty(
            size, len(w), dtype=dtype, device=h.device
        )  # one for all chunks: fresh memory is slow memory
        for start in range(0, h.shape[0], size):
            part = slice(start, start + size)
            chunk, label, keep = (
                (h[part] * scale).to(dtype),
                labels[part].long()[:, None],
                mask[part].float()[:, None],
            )
            logits = torch.mm(chunk, w.T, out=buffer[: len(chunk)]).float()  # (chunk, V)
            logits[:, vocabulary:] = -math.inf  # of the zeros added: no token
            highest = logits.amax(1, keepdim=True)
            loss = highest - logits.gather(1, label)
            logits.sub_(highest).exp_()
            norm = logits.sum(1, keepdim=True)
            total += ((loss + norm.log()) * keep).sum()
            if grad_h is None:
                continue
            logits.mul_(keep / norm)  # probabilities, of the tokens that count
            logits.scatter_add_(1, label, -keep)
            gradient = logits.to(dtype)
            grad_h[part] = torch.mm(gradient, w).to(h.dtype).mul_(scale)
            if grad_w is None:
                grad_w = torch.mm(gradient.T, chunk).to(weight.dtype)
            elif dtype == grad_w.dtype:
                grad_w.addmm_(gradient.T, chunk)
            else:
                grad_w += torch.mm(gradient.T, chunk)
        ctx.gradients = (grad_h, None if grad_w is None else grad_w[:vocabulary])
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The gradients of this loss were handed out already: it can be differentiated once. Compute "
                "it again."
            )
        (grad_h, grad_w), ctx.gradients = (
            ctx.gradients,
            None,
        )  # scaled in place: V x H numbers more would be fresh, slow memory
        (upstream,) = grad_outputs
        return grad_h.mul_(upstream), grad_w.mul_(upstream), None, None, None


def _flex_visibility(slopes: Tensor, length: int, span: Tensor | None) -> Visibility:
    """The same rule as `attention_bias`, as functions of positions that FlexAttention fuses into its
    kernel.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score - slopes[head] * (query - key)

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= span[batch, key])  # type: ignore[index]

    device = str(slopes.device)
    if span is None:
        block_mask = _causal_blocks(length, device)
    else:
        block_mask = create_block_mask(mask_mod, span.shape[0], None, length, length, device=device)
    return Visibility(score_mod=score_mod, block_mask=block_mask)


@functools.lru_cache(maxsize=16)
def _causal_blocks(length: int, device: str) -> Any:
    """FlexAttention's list of blocks to compute where only the future is hidden: the same in every pass."""
    from torch.nn.attention.flex_attention import create_block_mask

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    return create_block_mask(mask_mod, None, None, length, length, device=device)


@functools.cache
def _flex_kernel(compiled: bool) -> Any:
    """FlexAttention, fused once per process and shape where it can be.

    Unfused it is right, but holds every score in memory. PyTorch falls back on that silently after 8 shapes
    (lengths, batches, types); here it may see 512, and an error comes after them.
    """
    from torch.nn.attention.flex_attention import flex_attention

    if not compiled:
        return flex_attention
    allow_shapes()
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def allow_shapes(number: int = 512) -> None:
    """Let the compiler keep so many versions of one function: as many as there are shapes, for each layer."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, number)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * number)


def _flex_attention(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    # inside a compiled block it is part of what is compiled
    kernel = flex_attention if torch.compiler.is_compiling() else _flex_kernel(q.is_cuda)
    y: Tensor = kernel(q, k, v, score_mod=visibility.score_mod, block_mask=visibility.block_mask, scale=scale)
    return y


def count_parameters(config: ModelConfig) -> int:
    """How many numbers are trained, without building the model."""
    h, f, bias = config.hidden_size, config.filter_size, config.use_ffn_bias
    attention = (
        4 * h * h + 3 * h * config.use_projection_bias_in_attention + h * config.use_ffn_bias_in_attention
    )
    ffn = 3 * h * f + (2 * f + h) * bias
    return config.vocab_size * h + config.num_hidden_layers * (attention + ffn + 4 * h) + 2 * h


def flops_per_token(config: ModelConfig, length: int) -> int:
    """Floating-point operations of one forward and backward pass per token (Chowdhery et al. 2022, appendix
    B: 6 N + 12 layers H L).
    """
    return 6 * count_parameters(config) + 12 * config.num_hidden_layers * config.hidden_size * length
