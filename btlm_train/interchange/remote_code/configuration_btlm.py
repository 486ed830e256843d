"""The configuration of BTLM for Hugging Face transformers (4.57 and 5)."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class BTLMConfig(PretrainedConfig):
    """BTLM: GPT-2 with ALiBi positions, SwiGLU and muP. The keys are those of cerebras/btlm-3b-8k-base.

    n_inner: null means 4 * n_embd. alibi_scaling: null, {"type": "linear", "factor": f} or {"type": "linear",
    "train_seq_len": n}. Keys of the muP left out mean 1.0 and false, which is another model.
    """

    model_type = "btlm"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size: int = 50257,
        n_positions: int = 1024,
        n_embd: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        n_inner: int | None = None,
        activation_function: str = "swiglu",
        position_embedding_type: str = "alibi",
        resid_pdrop: float = 0.0,
        embd_pdrop: float = 0.0,
        attn_pdrop: float = 0.0,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        scale_attn_weights: bool = True,
        mup_width_scale: float = 1.0,
        mup_embeddings_scale: float = 1.0,
        mup_output_alpha: float = 1.0,
        mup_scale_qk_dot_by_d: bool = False,
        alibi_scaling: dict[str, Any] | None = None,
        use_cache: bool = True,
        bos_token_id: int = 50256,
        eos_token_id: int = 50256,
        **kwargs: Any,
    ) -> None:
        if activation_function != "swiglu" or position_embedding_type != "alibi":
            raise ValueError(
                f"activation_function {activation_function!r} and position_embedding_type "
                f"{position_embedding_type!r}: "
                "BTLM has swiglu and alibi."
            )
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_inner = 4 * n_embd if n_inner is None else n_inner
        self.activation_function = activation_function
        self.position_embedding_type = position_embedding_type
        self.resid_pdrop = resid_pdrop
        self.embd_pdrop = embd_pdrop
        self.attn_pdrop = attn_pdrop
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.scale_attn_weights = scale_attn_weights
        self.mup_width_scale = mup_width_scale
        self.mup_embeddings_scale = mup_embeddings_scale
        self.mup_output_alpha = mup_output_alpha
        self.mup_scale_qk_dot_by_d = mup_scale_qk_dot_by_d
        self.alibi_scaling = alibi_scaling
        self.use_cache = use_cache
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)
