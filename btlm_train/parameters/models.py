"""The settings of a run: architecture, optimizer, schedule, loop and data, in the Model Zoo's names and
checked.

Upper bounds are far above what anybody trains; they keep a mistyped number from asking for more memory or
time than there is.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from btlm_train.data.settings import DataConfig, check_path


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Initializer(_Model):
    """A normal distribution, cut at a and b (absolute bounds; two deviations from 0 where they are not
    given).
    """

    name: Literal["truncated_normal", "normal"] = "truncated_normal"
    mean: float = 0.0
    std: float = Field(0.05, ge=0)
    a: float | None = None
    b: float | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Where the distribution is cut."""
        return (
            self.mean - 2 * self.std if self.a is None else self.a,
            self.mean + 2 * self.std if self.b is None else self.b,
        )

    @model_validator(mode="after")
    def _ordered(self) -> Initializer:
        low, high = self.bounds
        if self.name == "truncated_normal" and self.std > 0 and not low < high:
            raise ValueError(f"a ({low}) is not below b ({high})")
        return self


_Init = Annotated[Initializer | None, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]
_Dropout = Annotated[float, Field(ge=0, lt=1)]
_Path = Annotated[str, Field(min_length=1, max_length=4096), BeforeValidator(check_path)]
_Beta = Annotated[float, Field(ge=0, lt=1)]


class ModelConfig(_Model):
    """The architecture, in the Model Zoo's names. What BTLM does not have (rotary positions, experts) is
    refused.
    """

    name: Annotated[str, Field(max_length=100)] = "btlm"
    vocab_size: int = Field(50257, ge=2, le=512_000)
    hidden_size: int = Field(768, ge=1, le=2**17)
    num_hidden_layers: int = Field(12, ge=1, le=1024)
    num_heads: int = Field(12, ge=1, le=2**12)
    filter_size: int = Field(3072, ge=1, le=2**20)
    max_position_embeddings: int = Field(
        1024, ge=1, le=2**24, description="training sequence length; ALiBi itself has no limit"
    )
    position_embedding_type: Literal["alibi"] = "alibi"
    share_embedding_weights: Literal[True] = True
    nonlinearity: Literal["swiglu"] = "swiglu"
    attention_type: Literal["scaled_dot_product", "dot_product"] = "scaled_dot_product"
    layer_norm_epsilon: float = Field(1e-5, gt=0)
    use_projection_bias_in_attention: bool = True
    use_ffn_bias_in_attention: bool = True
    use_ffn_bias: bool = True
    use_bias_in_output: Literal[False] = False
    dropout_rate: _Dropout = 0.0
    embedding_dropout_rate: _Dropout | None = None
    attention_dropout_rate: _Dropout | None = None
    alibi_trainable_slopes: Literal[False] = False
    pos_scaling_factor: float = Field(1.0, gt=0, description="ALiBi distances are divided by it")
    alibi_train_seq_len: int | None = Field(
        None, ge=1, description="dynamic scaling: inputs longer than this divide distances by length / this"
    )
    # loss
    loss_scaling: Literal["batch_size", "num_tokens"] = "num_tokens"
    loss_weight: float = Field(1.0, gt=0)
    # initialisation
    initializer: _Init = None
    initializer_range: float = Field(0.02, gt=0)
    embedding_initializer: _Init = None
    output_layer_initializer: _Init = None
    ffn_initializer: _Init = None
    ffn_output_layer_initializer: _Init = None
    # muP
    mup_base_hidden_size: float | None = Field(None, gt=0)
    mup_base_filter_size: float | None = Field(None, gt=0)
    embeddings_scale: float = 1.0
    output_logits_alpha: float | None = None
    output_logits_scale: float | None = Field(
        None, description="the older spelling: the factor itself, alpha / m"
    )
    scale_qk_dot_by_d: bool | None = None
    scale_output_logits_by_d: bool = True
    attention_logits_alpha: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        """The Model Zoo takes null for these as the default."""
        optional = ("embeddings_scale", "scale_output_logits_by_d", "attention_logits_alpha")
        if isinstance(values, dict):
            return {k: v for k, v in values.items() if v is not None or k not in optional}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if (self.mup_base_hidden_size is None) != (self.mup_base_filter_size is None):
            raise ValueError("muP needs both mup_base_hidden_size and mup_base_filter_size, or neither")
        if self.mup and self.output_logits_scale is not None:
            raise ValueError(
                "output_logits_scale belongs to the older muP form; "
                "with mup_base_hidden_size give output_logits_alpha"
            )
        return self

    @property
    def mup(self) -> bool:
        """Whether the maximal update parametrisation is on."""
        return self.mup_base_hidden_size is not None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def embedding_dropout(self) -> float:
        """Dropout after the embedding; `dropout_rate` unless given."""
        return self.dropout_rate if self.embedding_dropout_rate is None else self.embedding_dropout_rate

    @property
    def attention_dropout(self) -> float:
        """Dropout of attention weights; `dropout_rate` unless given."""
        return self.dropout_rate if self.attention_dropout_rate is None else self.attention_dropout_rate


class OptimizerConfig(_Model):
    """AdamW, gradient clipping, and (older form) explicit learning-rate multipliers."""

    name: Literal["AdamW"] = "AdamW"
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    correct_bias: bool = True
    learning_rate: float | None = Field(None, ge=0, description="a constant rate, where there is no schedule")
    max_gradient_norm: float | None = Field(None, gt=0)
    adjust_learning_rate: dict[str, float] = Field(default_factory=dict, max_length=1000)


class ScheduleSegment(_Model):
    """One piece of the learning-rate schedule; the next piece starts `total_iters` steps later."""

    kind: Literal["linear", "constant", "cosine"]
    initial: float = Field(ge=0)
    end: float = Field(ge=0)
    total_iters: int = Field(ge=1)


class LoopConfig(_Model):
    """How long to train, how often to evaluate and save, and how the work is divided."""

    max_steps: int | None = Field(None, ge=0, le=2**53, description="global: counted across stages")
    num_steps: int | None = Field(None, ge=1, le=2**53, description="steps of this run; wins over max_steps")
    eval_frequency: int | float | None = Field(None, ge=0)
    eval_steps: int | None = Field(None, ge=1, le=2**53)
    grad_accum_steps: int = Field(1, ge=1, le=2**20, description="batches of train_input per optimizer step")
    log_steps: int = Field(1, ge=1)
    log_level: Annotated[str, Field(max_length=100)] = "INFO"
    checkpoint_steps: int | None = Field(None, ge=0)
    save_initial_checkpoint: bool = False
    autoload_last_checkpoint: bool = True
    keep: int | None = Field(None, ge=1, description="newest checkpoints kept; all when unset")
    load_checkpoint_states: str | tuple[str, ...] = "all"
    activation_checkpointing: bool = False
    compile: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast on a GPU, float32 on a CPU"
    )


class Params(_Model):
    """Everything a run needs, whichever form it was written in.

    unused: keys of the file that have no effect here. assumed: settings left out for which the Model Zoo has
    another default.
    """

    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: tuple[ScheduleSegment, ...] = Field((), max_length=10_000)
    loop: LoopConfig = LoopConfig()
    train: DataConfig | None = None
    validation: tuple[DataConfig, ...] = Field((), max_length=1000)
    seed: int = Field(1, ge=-(2**32), le=2**32)
    model_dir: _Path | None = None
    device: Annotated[str, Field(max_length=100)] | None = None
    checkpoint_path: _Path | None = None
    unused: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _micro_batch(self) -> Params:
        size = self.train.micro_batch_size if self.train else None
        whole = isinstance(size, int) and not isinstance(size, bool) and size > 0
        if size not in (None, "auto", "explore") and not whole:
            raise ValueError(f"micro_batch_size is {str(size)[:80]!r}, expected a number of samples")
        return self

    @property
    def micro_batch_size(self) -> int | None:
        """Samples per forward and backward pass, all ranks together; None: the whole batch at once."""
        if self.train is None:
            return None
        size = self.train.micro_batch_size
        if isinstance(size, int):
            return size
        return self.train.batch_size if self.loop.grad_accum_steps > 1 else None

    def learning_rate(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0 across stages; after the last piece its end
        holds.
        """
        if not self.schedule:
            return self.optimizer.learning_rate or 0.0
        for segment in self.schedule[:-1]:
            if step < segment.total_iters:
                return _rate(segment, step)
            step -= segment.total_iters
        return _rate(self.schedule[-1], step)


def _rate(segment: ScheduleSegment, step: int) -> float:
    done = min(step / segment.total_iters, 1.0)
    if segment.kind == "constant":
        return segment.initial
    if segment.kind == "cosine":
        return segment.end + (segment.initial - segment.end) * (1 + math.cos(math.pi * done)) / 2
    return segment.initial + (segment.end - segment.initial) * done
