"""Parameter files: the Model Zoo's current form, its older flat form, and `--set KEY=VALUE`, all read into one `Params`.

    current                                     older, flat
    trainer:                                    train_input: {data_dir: ..., batch_size: ...}
      init: {model: ..., optimizer: ..., ...}   eval_input: {...}
      fit: {train_dataloader: ...}              model: {...}
      validate: {val_dataloader: ...}           optimizer: {...}
                                                runconfig: {...}

Every leaf of a file is looked up in one table, `_PLACES`, which says where it lands in `Params`; the same table serves
`--set`, so that `--set train_input.data_dir=shards` works on a file of either form. Keys that only concern Cerebras
hardware match `_UNUSED`: they are accepted and reported. Anything else is an error with file, line and nearest name.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib.resources
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from btlm_data.errors import ConfigError
from btlm_train.data import DataConfig


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Initializer(_Model):
    """A normal distribution, cut at a and b (absolute bounds; two deviations where they are not given)."""

    name: Literal["truncated_normal", "normal"] = "truncated_normal"
    mean: float = 0.0
    std: float = Field(0.02, ge=0)
    a: float | None = None
    b: float | None = None


_Init = Annotated[Initializer | None, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]


class ModelConfig(_Model):
    """The architecture, in the Model Zoo's names. What BTLM does not have (rotary positions, experts) is refused, not ignored."""

    name: str = "btlm"
    vocab_size: int = Field(50257, ge=2, le=512000)
    hidden_size: int = Field(768, ge=1)
    num_hidden_layers: int = Field(12, ge=1)
    num_heads: int = Field(12, ge=1)
    filter_size: int = Field(3072, ge=1)
    max_position_embeddings: int = Field(
        1024, ge=1, description="training sequence length; ALiBi itself has no limit"
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
    dropout_rate: float = Field(0.0, ge=0, lt=1)
    embedding_dropout_rate: float | None = Field(None, ge=0, lt=1)
    attention_dropout_rate: float | None = Field(None, ge=0, lt=1)
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
                "output_logits_scale belongs to the older muP form; with mup_base_hidden_size give output_logits_alpha"
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
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    correct_bias: bool = True
    learning_rate: float | None = Field(None, ge=0, description="a constant rate, where there is no schedule")
    max_gradient_norm: float | None = Field(None, gt=0)
    adjust_learning_rate: dict[str, float] = Field(default_factory=dict)


class Segment(_Model):
    """One piece of the learning-rate schedule; the next piece starts `total_iters` steps later."""

    kind: Literal["linear", "constant", "cosine"]
    initial: float = Field(ge=0)
    end: float = Field(ge=0)
    total_iters: int = Field(ge=1)


class LoopConfig(_Model):
    """How long to train, how often to look, and how the work is cut up."""

    max_steps: int | None = Field(None, ge=0, description="global: counted across stages")
    num_steps: int | None = Field(None, ge=1, description="steps of this run; wins over max_steps")
    eval_frequency: int | float | None = Field(None, ge=0)
    eval_steps: int | None = Field(None, ge=1)
    grad_accum_steps: int = Field(1, ge=1, description="batches of train_input per optimizer step")
    log_steps: int = Field(1, ge=1)
    log_level: str = "INFO"
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
    """Everything a run needs, whichever form it was written in."""

    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: tuple[Segment, ...] = ()
    loop: LoopConfig = LoopConfig()
    train: DataConfig | None = None
    validation: tuple[DataConfig, ...] = ()
    seed: int = 1
    model_dir: str | None = None
    device: str | None = None
    checkpoint_path: str | None = None
    unused: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _micro_batch(self) -> Params:
        size = self.train.micro_batch_size if self.train else None
        if size not in (None, "auto", "explore") and not (isinstance(size, int) and size > 0):
            raise ValueError(f"micro_batch_size is {size!r}, expected a number of samples")
        return self

    @property
    def micro_batch_size(self) -> int | None:
        """Samples per forward and backward pass, all ranks together; None: the whole batch at once."""
        if self.train is None:
            return None
        size = self.train.micro_batch_size
        return (
            size
            if isinstance(size, int)
            else self.train.batch_size
            if self.loop.grad_accum_steps > 1
            else None
        )

    def learning_rate(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0 across stages; the last piece's end holds for ever after."""
        if not self.schedule:
            return self.optimizer.learning_rate or 0.0
        for segment in self.schedule[:-1]:
            if step < segment.total_iters:
                return _rate(segment, step)
            step -= segment.total_iters
        return _rate(self.schedule[-1], step)


def _rate(segment: Segment, step: int) -> float:
    done = min(step / segment.total_iters, 1.0)
    if segment.kind == "constant":
        return segment.initial
    if segment.kind == "cosine":
        return segment.end + (segment.initial - segment.end) * (1 + math.cos(math.pi * done)) / 2
    return segment.initial + (segment.end - segment.initial) * done


# Where each key of a file lands in Params. `*` stands for one name; a final `**` for the whole rest of the path.
_PLACES = {
    # current form
    "trainer.init.seed": "seed",
    "trainer.init.model_dir": "model_dir",
    "trainer.init.device": "device",
    "trainer.init.backend.backend_type": "device",
    "trainer.init.model.**": "model",
    "trainer.init.optimizer.*.adjust_learning_rate.**": "optimizer.adjust_learning_rate",
    "trainer.init.optimizer.*.**": "optimizer",
    "trainer.init.schedulers.**": "schedule",
    "trainer.init.precision.max_gradient_norm": "optimizer.max_gradient_norm",
    "trainer.init.loop.**": "loop",
    "trainer.init.checkpoint.steps": "loop.checkpoint_steps",
    "trainer.init.checkpoint.keep": "loop.keep",
    "trainer.init.checkpoint.**": "loop",
    "trainer.init.logging.log_steps": "loop.log_steps",
    "trainer.init.logging.log_level": "loop.log_level",
    "trainer.init.callbacks.*.KeepNCheckpoints.n": "loop.keep",
    "trainer.init.callbacks.*.LoadCheckpointStates.load_checkpoint_states": "loop.load_checkpoint_states",
    "trainer.fit.train_dataloader.**": "train",
    "trainer.fit.val_dataloader.**": "validation.fit",
    "trainer.fit.ckpt_path": "checkpoint_path",
    "trainer.validate.val_dataloader.**": "validation.eval",
    "trainer.validate.ckpt_path": "checkpoint_path",
    "trainer.validate_all.val_dataloaders.**": "validation.eval_all",
    "trainer.validate_all.ckpt_paths": "checkpoint_path",
    # older, flat form
    "train_input.**": "train",
    "eval_input.**": "validation.all",
    "model.**": "model",
    "optimizer.optimizer_type": "optimizer.name",
    "optimizer.weight_decay_rate": "optimizer.weight_decay",
    "optimizer.learning_rate.**": "schedule",
    "optimizer.grad_accum_steps": "loop.grad_accum_steps",
    "optimizer.**": "optimizer",
    "runconfig.seed": "seed",
    "runconfig.model_dir": "model_dir",
    "runconfig.target_device": "device",
    "runconfig.checkpoint_path": "checkpoint_path",
    "runconfig.max_checkpoints": "loop.keep",
    "runconfig.logging": "loop.log_level",
    "runconfig.**": "loop",
}

# Keys that only concern Cerebras hardware, or ask for what happens here anyway (TensorBoard, gradient norms).
# fmt: off
_UNUSED = (
    "trainer.init.backend.**", "trainer.init.precision.**", "trainer.init.sparsity.**", "trainer.init.autorestart.**",
    "trainer.init.logging.wsc_log_level.**", "trainer.init.logging.enable_act_frequency",
    "trainer.init.checkpoint.checkpoint_name", "trainer.init.checkpoint.disable_strict_checkpoint_loading",
    "trainer.init.callbacks.**", "trainer.init.loggers.**", "trainer.init.loop.num_epochs", "trainer.init.loop.steps_per_epoch",
    "sparsity.**", "wandb.**", "csx.**",
    *(f"{model}.{key}" for model in ("model", "trainer.init.model") for key in (
        "mixed_precision", "fp16_type", "boundary_casting", "tf_summary", "alibi_implementation", "attention_kernel",
        "attention_softmax_fp32", "compute_eval_metrics", "precision_opt_level", "dtype", "use_experimental_flex_api",
        "compression.**", "selective_grad.**", "lora_params.**", "start_token", "loop_dim", "stop_sequences", "max_tokens",
        "temperature", "top_k", "top_p", "fold_rope_consts",
    )),
    *(f"optimizer.{key}" for key in (
        "loss_scaling_factor", "initial_loss_scale", "steps_per_increase", "min_loss_scale", "max_loss_scale",
        "log_summaries", "max_gradient_value",
    )),
    *(f"runconfig.{key}" for key in (
        "mode", "compile_dir", "compile_only", "validate_only", "num_csx", "num_wgt_servers", "mgmt_address", "mgmt_namespace",
        "credentials_path", "mount_dirs.**", "python_paths.**", "num_workers_per_csx", "num_act_servers", "job_labels.**",
        "job_priority", "job_time_sec", "disable_version_check", "enable_distributed", "main_process_id", "dist_backend",
        "dist_addr", "init_method", "sync_batchnorm", "precision_opt_level", "wsc_log_level.**", "enable_act_frequency",
        "transfer_processes", "ini.**", "debug_args.**", "debug_args_path", "retrace_every_iteration", "lazy_initialization",
        "log_initialization", "drop_data", "fabric_type_blacklist.**", "*_memory_gi", "log_input_summaries",
        "check_loss_values", "experimental.**", "op_profiler_config.**", "dump_activations", "hf_cache_dir", "summary_dir",
        "legacy_event_dirs", "disable_strict_checkpoint_loading", "save_losses", "num_epochs", "steps_per_epoch",
    )),
)
# fmt: on

# Model keys of which BTLM implements exactly one value.
_FIXED: dict[str, tuple[object, ...]] = {
    "embedding_layer_norm": (False, None),
    "norm_type": ("layernorm",),
    "norm_first_sandwich": (False, None),
    "attention_module": ("aiayn_attention", None),
    "attention_inner_dim": (None,),
    "attention_sliding_window_length": (None,),
    "attention_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "attention_qk_norm_layer": (None,),
    "fixed_sparse_attention": (None,),
    "scale_qk_dot_by_layer_idx": (False, None),
    "num_extra_input_vocab_tokens": (0, None),
    "position_embedding_offset": (0, None),
    "pos_scaling_type": ("linear", None),
    "rotary_dim": (None,),
    "num_relative_attention_buckets": (None, 32),
    "moe": (None,),
}

_Path = tuple[str, ...]
_SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "loop": LoopConfig,
    "train": DataConfig,
    "validation": DataConfig,
}


class _Leaf:
    """One value of a parameter file or of --set, and where it was written."""

    def __init__(self, path: _Path, value: object, where: str):
        self.path, self.value, self.where = path, value, where

    @property
    def key(self) -> str:
        return ".".join(self.path)


def load_params(
    name: str, overrides: Sequence[str] = (), validation: Literal["fit", "eval", "eval_all"] = "fit"
) -> Params:
    """Read a parameter file and lay `--set KEY=VALUE` over it.

    name: a path, or the name of a file in btlm_train/configs. validation: which of the current form's three validation
    sections to use; a section that is missing falls back on the others. Raises ConfigError naming file, line and the
    nearest known key.
    """
    path = find_params(name)
    leaves = list(_read(path))
    leaves += [_assignment(text) for text in overrides]
    tree: dict[str, Any] = {}
    origin: dict[_Path, str] = {}
    unused: list[str] = []
    for leaf in leaves:
        if any(_matches(pattern, leaf.path) for pattern in _UNUSED) and _place(leaf, exact=True) is None:
            if leaf.key not in unused:
                unused.append(leaf.key)
            continue
        target = _place(leaf)
        if target is None:
            raise ConfigError(_unknown(leaf))
        if target[0] == "model" and target[1] in _FIXED:
            if leaf.value not in _FIXED[target[1]]:
                accepted = (
                    " or ".join(repr(value) for value in _FIXED[target[1]] if value is not None) or "unset"
                )
                raise ConfigError(
                    f"{leaf.where}: {leaf.key} is {leaf.value!r}, which BTLM does not have. Leave it out, or {accepted}."
                )
            continue
        for destination in _spread(target, tree):
            _put(tree, destination, leaf.value)
            origin[destination] = leaf.where
    return _build(tree, origin, path, validation, tuple(unused))


def find_params(name: str) -> Path:
    """A parameter file by path, or by its name in btlm_train/configs (with or without .yaml). Raises ConfigError with the names there are."""
    if Path(name).is_file():
        return Path(name)
    folder = Path(str(importlib.resources.files("btlm_train") / "configs"))
    for candidate in (folder / name, folder / f"{name}.yaml"):
        if candidate.is_file() and candidate.parent == folder:
            return candidate
    names = sorted(path.name for path in folder.glob("*.yaml"))
    near = difflib.get_close_matches(Path(name).name, names, n=1, cutoff=0.5)
    advice = f"Did you mean {near[0]}?" if near else f"Give a path, or one of {', '.join(names)}."
    raise ConfigError(
        f"There is no parameter file {name}. It is neither a path nor a name in btlm_train/configs. {advice}"
    )


def _build(
    tree: dict[str, Any], origin: dict[_Path, str], path: Path, validation: str, unused: tuple[str, ...]
) -> Params:
    sections = tree.pop("validation", {})
    wanted = [sections[key] for key in (validation, "fit", "eval", "eval_all") if key in sections]
    if wanted:
        numbered = all(key.isdigit() for key in wanted[0])
        tree["validation"] = list(wanted[0].values()) if numbered else [wanted[0]]
    if "schedule" in tree:
        tree["schedule"] = list(_segments(tree["schedule"], path))
    if (
        isinstance(tree.get("schedule"), list)
        and len(tree["schedule"]) == 1
        and "rate" in tree["schedule"][0]
    ):
        tree.setdefault("optimizer", {})["learning_rate"] = tree.pop("schedule")[0]["rate"]
    if "device" in tree and tree["device"] is not None:
        tree["device"] = str(tree["device"]).lower()
    if "name" in tree.get("optimizer", {}) and str(tree["optimizer"]["name"]).lower() == "adamw":
        tree["optimizer"]["name"] = "AdamW"
    tree["unused"] = unused
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e, origin, path) for e in error.errors())) from None


def _segments(tree: Any, path: Path) -> Iterator[dict[str, Any]]:
    """Schedules of either form, flattened: SequentialLR's members in order. A bare number is a constant rate."""
    if isinstance(tree, int | float):
        yield {"rate": float(tree)}
        return
    entries = list(tree.values()) if all(str(key).isdigit() for key in tree) else [tree]
    for entry in entries:
        if "scheduler" in entry:  # flat: {scheduler: Linear, ...}
            kind, settings = str(entry["scheduler"]), {k: v for k, v in entry.items() if k != "scheduler"}
        else:  # current: {LinearLR: {...}}
            (kind, settings), *more = entry.items()
            if more or not isinstance(settings, dict):
                raise ConfigError(
                    f"{path}: a scheduler is one name with its settings, found {entry!r}. Write - LinearLR: {{...}}."
                )
        kind = kind.removesuffix("LR").lower()
        if kind == "sequential":
            yield from _segments(settings.get("schedulers", {}), path)
        elif kind in ("linear", "cosinedecay", "constant"):
            rate = settings.get("val", settings.get("learning_rate"))
            known = {"initial_learning_rate", "end_learning_rate", "total_iters", "val", "learning_rate"}
            if unknown := set(settings) - known:
                raise ConfigError(
                    f"{path}: scheduler {kind} has no setting {sorted(unknown)[0]!r}. Known: {', '.join(sorted(known))}."
                )
            initial = settings.get("initial_learning_rate", rate)
            segment = {
                "kind": "cosine" if kind == "cosinedecay" else kind,
                "initial": initial,
                "end": settings.get("end_learning_rate", initial),
            }
            yield segment | {"total_iters": settings.get("total_iters", 1 if kind == "constant" else None)}
        else:
            raise ConfigError(
                f"{path}: there is no scheduler {kind!r} here. Use LinearLR, CosineDecayLR, ConstantLR or SequentialLR."
            )


def _read(path: Path) -> Iterator[_Leaf]:
    """The leaves of a YAML file with their lines; anchors are followed, lists are numbered."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(
            f"The parameter file {path} cannot be read: {error.strerror}. Check the path given to --params."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{place}: not valid YAML ({getattr(error, 'problem', error)}). Mend that line."
        ) from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{path}: expected `trainer:` or `model:` and other sections. See btlm_train/configs for examples."
        )
    loader = yaml.SafeLoader("")

    def walk(node: Any, prefix: _Path, line: int) -> Iterator[_Leaf]:
        if isinstance(node, yaml.MappingNode) and node.value:
            loader.flatten_mapping(node)
            for key, value in node.value:
                yield from walk(value, (*prefix, str(key.value)), key.start_mark.line + 1)
        elif isinstance(node, yaml.SequenceNode) and any(
            not isinstance(item, yaml.ScalarNode) for item in node.value
        ):
            for i, item in enumerate(node.value):
                yield from walk(item, (*prefix, str(i)), item.start_mark.line + 1)
        else:
            yield _Leaf(prefix, loader.construct_object(node, deep=True), f"{path} line {line}")

    yield from walk(node, (), 1)


def _assignment(text: str) -> _Leaf:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {text!r} is not KEY=VALUE. Write for example --set train_input.batch_size=16."
        )
    try:
        return _Leaf(tuple(key.strip().split(".")), yaml.safe_load(value), f"--set {text}")
    except yaml.YAMLError:
        raise ConfigError(
            f"--set {text!r}: the value is not valid YAML. Quote it, for example --set 'model_dir=\"a: b\"'."
        ) from None


def _matches(pattern: str, path: _Path) -> bool:
    parts = pattern.split(".")
    if parts[-1] == "**":
        parts = parts[:-1]
        if len(path) < len(parts):
            return False
        path = path[: len(parts)]
    return len(parts) == len(path) and all(
        fnmatch.fnmatchcase(name, part) for name, part in zip(path, parts, strict=True)
    )


def _place(leaf: _Leaf, *, exact: bool = False) -> _Path | None:
    """Where a leaf lands in the tree of Params, or None. exact: only by a pattern without `**`."""
    for pattern, target in _PLACES.items():
        if not _matches(pattern, leaf.path) or (exact and pattern.endswith("**")):
            continue
        rest = leaf.path[len(pattern.split(".")) - 1 :] if pattern.endswith("**") else ()
        place = (*target.split("."), *rest)
        return place if _known(place) else None
    return None


def _known(place: _Path) -> bool:
    """Whether Params has such a field (checked as far as models go; free dictionaries and schedules accept all)."""
    section, *rest = place
    if section not in _SECTIONS:
        return True
    if section == "validation":
        rest = [name for name in rest[1:] if not name.isdigit()]
    return bool(rest) and (
        rest[0] in _SECTIONS[section].model_fields or (section == "model" and rest[0] in _FIXED)
    )


def _spread(target: _Path, tree: dict[str, Any]) -> list[_Path]:
    """`eval_input` means each validation section; an override of a list of them means each member."""
    if target[0] != "validation":
        return [target]
    places: list[_Path] = []
    for section in ("fit", "eval", "eval_all") if target[1] == "all" else (target[1],):
        present = tree.get("validation", {}).get(section, {})
        members = [key for key in present if key.isdigit()]
        numbered = len(target) > 2 and target[2].isdigit()
        places += [("validation", section, m, *target[2:]) for m in members if not numbered] or [
            ("validation", section, *target[2:])
        ]
    return places


def _put(tree: dict[str, Any], path: _Path, value: object) -> None:
    for name in path[:-1]:
        child = tree.get(name)
        tree[name] = child = child if isinstance(child, dict) else {}
        tree = child
    tree[path[-1]] = value


def _names(prefix: _Path) -> set[str]:
    """The names known to stand right below `prefix`, with wildcards where any name may."""
    names: set[str] = set()
    for pattern in (*_PLACES, *_UNUSED):
        parts = pattern.split(".")
        above = tuple(part for part in prefix if not part.isdigit()) if parts[-1] == "**" else prefix
        if len(parts) <= len(above) or not all(
            fnmatch.fnmatchcase(name, part) for name, part in zip(above, parts, strict=False)
        ):
            continue
        name = parts[len(above)]
        if name != "**":
            names.add(name)
        elif pattern in _PLACES:
            section = _SECTIONS.get(_PLACES[pattern].split(".")[0])
            names |= set(section.model_fields) if section else set()
    return names


def _unknown(leaf: _Leaf) -> str:
    """Names the first part of the path that nothing known has, and what is nearest to it."""
    for depth, part in enumerate(leaf.path):
        names = _names(leaf.path[:depth])
        if any(fnmatch.fnmatchcase(part, name) for name in names) or (
            part.isdigit() and depth + 1 < len(leaf.path)
        ):
            continue
        near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
        known = ", ".join(sorted(names - {"*"}))
        advice = (
            f"Did you mean {'.'.join((*leaf.path[:depth], near[0]))}?"
            if near
            else f"Known here: {known}."
            if known
            else "Remove it."
        )
        return f"{leaf.where}: there is no parameter {'.'.join(leaf.path[: depth + 1])!r}. {advice}"
    return f"{leaf.where}: {leaf.key!r} is a section, not a value. Give the keys below it."


def _explain(error: Any, origin: Mapping[_Path, str], path: Path) -> str:
    location = tuple(str(part) for part in error["loc"])
    if location[:1] == ("validation",):
        location = ("validation", "fit", *location[2:])
    where = next(
        (origin[place] for i in range(len(location), 1, -1) for place in origin if place[:i] == location[:i]),
        str(path),
    )
    message = str(error["msg"]).removeprefix("Value error, ")
    value = error.get("input")
    given = "" if isinstance(value, dict | list | tuple) else f" (given: {value!r})"
    return f"{where}: {'.'.join(location)}: {message[0].lower() + message[1:]}{given}. Mend that value and run again."
