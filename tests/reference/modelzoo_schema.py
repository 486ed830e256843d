"""What the Model Zoo 2.10 accepts as a BTLM model section: its keys, its defaults, its rules. Written from its documentation of
GPT2LMHeadModelConfig, apart from our own code; unknown keys are refused there, and initialisers are told apart by `name`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TruncatedNormal(Strict):
    name: Literal["truncated_normal"]
    mean: float = 0.0
    std: float = 0.05
    a: float | None = None
    b: float | None = None


class Normal(Strict):
    name: Literal["normal"]
    mean: float = 0.0
    std: float = 0.05


Initializer = Annotated[TruncatedNormal | Normal, Field(discriminator="name")]
Rate = Annotated[float, Field(ge=0, le=1)]


class BtlmModel(Strict):
    name: Literal["btlm"]
    vocab_size: int = Field(50257, ge=1, le=512000)
    max_position_embeddings: int = Field(1024, gt=0)
    embedding_dropout_rate: Rate | None = None
    position_embedding_type: Literal["learned", "fixed", "relative", "rotary", "alibi"] | None = "learned"
    hidden_size: int = Field(768, ge=0)
    share_embedding_weights: bool = True
    num_hidden_layers: int = 12
    dropout_rate: Rate = 0.1
    layer_norm_epsilon: float = 1e-5
    num_heads: int = Field(12, gt=0)
    attention_type: Literal["dot_product", "scaled_dot_product"] = "scaled_dot_product"
    use_projection_bias_in_attention: bool = True
    use_ffn_bias_in_attention: bool = True
    attention_dropout_rate: Rate | None = 0.1
    filter_size: int = Field(3072, gt=0)
    nonlinearity: str = "gelu"
    use_ffn_bias: bool = True
    use_bias_in_output: bool = False
    initializer_range: float = 0.02
    embedding_initializer: Initializer | None = None
    initializer: Initializer | None = None
    output_layer_initializer: Initializer | None = None
    ffn_initializer: Initializer | None = None
    ffn_output_layer_initializer: Initializer | None = None
    mup_base_hidden_size: float | None = None
    mup_base_filter_size: float | None = None
    embeddings_scale: float | None = 1.0
    scale_qk_dot_by_d: bool | None = None
    attention_logits_alpha: float | None = 1.0
    scale_output_logits_by_d: bool | None = True
    output_logits_alpha: float | None = None
    output_logits_scale: float | None = None
    alibi_trainable_slopes: bool = False
    pos_scaling_factor: float = 1.0
    loss_scaling: Literal["batch_size", "num_tokens"] = "num_tokens"
    loss_weight: float = 1.0

    @model_validator(mode="after")
    def _mup(self) -> BtlmModel:
        if (self.mup_base_hidden_size is None) != (self.mup_base_filter_size is None):
            raise ValueError("one of the muP base sizes alone")
        if self.mup_base_hidden_size and self.output_logits_scale:
            raise ValueError("output_logits_scale with muP base sizes")
        return self


class AdamW(Strict):
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    correct_bias: bool = True


class Linear(Strict):
    initial_learning_rate: float
    end_learning_rate: float
    total_iters: int


class Constant(Strict):
    learning_rate: float
    total_iters: int | None = None


class Init(Strict):
    backend: dict[str, Any]
    model: BtlmModel
    seed: int = 0
    optimizer: dict[Literal["AdamW"], AdamW] | None = None
    schedulers: list[dict[str, Any]] | None = None
    precision: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _schedulers(self) -> Init:
        for entry in self.schedulers or []:
            ((name, settings),) = entry.items()
            members = settings["schedulers"] if name == "SequentialLR" else [entry]
            for member in members:
                ((kind, values),) = member.items()
                {"LinearLR": Linear, "CosineDecayLR": Linear, "ConstantLR": Constant}[kind](**values)
        return self


class Trainer(Strict):
    init: Init


class Params(Strict):
    trainer: Trainer
