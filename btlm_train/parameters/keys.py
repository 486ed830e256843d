"""Every key of a parameter file, of each release of the Model Zoo, and what becomes of it.

Four tables: `TARGETS` (where a key lands in `Params`), `UNUSED` (accepted, reported, without effect), `FIXED`
(model settings of which BTLM has exactly one value) and `MODEL_ZOO_DEFAULTS` (where the Model Zoo's default
is not ours). In patterns `*` stands for one name, and a final `**` for the rest of the path.
"""

from __future__ import annotations

import difflib
import fnmatch
from typing import Any

from pydantic import BaseModel

from btlm_train.data.settings import DataConfig
from btlm_train.parameters.models import LoopConfig, ModelConfig, OptimizerConfig

KeyPath = tuple[str, ...]

TARGETS = {
    # current form
    "trainer.init.seed": "seed",
    "trainer.init.model_dir": "model_dir",
    "trainer.init.device": "device",
    "trainer.init.backend.backend_type": "device",
    "trainer.init.model.embd_pdrop": "model.embedding_dropout_rate",
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
    "model.embd_pdrop": "model.embedding_dropout_rate",
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
UNUSED = (
    "trainer.init.backend.**", "trainer.init.precision.**", "trainer.init.sparsity.**",
    "trainer.init.autorestart.**", "trainer.init.logging.wsc_log_level.**",
    "trainer.init.logging.enable_act_frequency", "trainer.init.checkpoint.checkpoint_name",
    "trainer.init.checkpoint.disable_strict_checkpoint_loading", "trainer.init.callbacks.**",
    "trainer.init.loggers.**", "trainer.init.loop.num_epochs", "trainer.init.loop.steps_per_epoch",
    "sparsity.**", "wandb.**", "csx.**",
    *(f"{model}.{key}" for model in ("model", "trainer.init.model") for key in (
        "mixed_precision", "fp16_type", "use_bfloat16", "boundary_casting", "tf_summary",
        "alibi_implementation", "attention_kernel", "attention_softmax_fp32", "attention_qk_norm_eps",
        "compute_eval_metrics",
        "precision_opt_level", "dtype", "use_experimental_flex_api", "compression.**", "selective_grad.**",
        "lora_params.**", "start_token", "loop_dim", "stop_sequences", "max_tokens", "temperature", "top_k",
        "top_p", "fold_rope_consts", "rope_theta", "pad_rope",
    )),
    *(f"optimizer.{key}" for key in (
        "loss_scaling_factor", "initial_loss_scale", "steps_per_increase", "min_loss_scale", "max_loss_scale",
        "log_summaries", "max_gradient_value",
    )),
    *(f"runconfig.{key}" for key in (
        "mode", "compile_dir", "compile_only", "validate_only", "num_csx", "num_wgt_servers", "mgmt_address",
        "mgmt_namespace", "credentials_path", "mount_dirs.**", "python_paths.**", "num_workers_per_csx",
        "num_act_servers", "job_labels.**", "job_priority", "job_time_sec", "disable_version_check",
        "enable_distributed", "main_process_id", "dist_backend", "dist_addr", "init_method", "sync_batchnorm",
        "precision_opt_level", "wsc_log_level.**", "enable_act_frequency", "transfer_processes", "ini.**",
        "debug_args.**", "debug_args_path", "retrace_every_iteration", "lazy_initialization",
        "log_initialization", "drop_data", "fabric_type_blacklist.**", "*_memory_gi", "log_input_summaries",
        "check_loss_values",
        "experimental.**", "op_profiler_config.**", "dump_activations", "hf_cache_dir", "summary_dir",
        "legacy_event_dirs", "disable_strict_checkpoint_loading", "save_losses", "num_epochs",
        "steps_per_epoch",
        "use_appliance_data", "use_cs_grad_accum", "use_cstorch_optimizer_step",
    )),
)
# fmt: on

# Model settings of which BTLM has exactly one value: the values that mean it.
FIXED: dict[str, tuple[object, ...]] = {
    "use_position_embedding": (True, None),
    "constant_pos_embedding": (None,),
    "embedding_layer_norm": (False, None),
    "norm_type": ("layernorm",),
    "norm_first_sandwich": (False, None),
    "attention_module": ("aiayn_attention", None),
    "extra_attention_params": ({}, None),
    "extra_ffn_params": ({}, None),
    "attention_inner_dim": (None,),
    "attention_sliding_window_length": (None,),
    "sliding_window_every_other_decoder_layer": (False, None),
    "attention_sink_tokens": (None,),
    "attention_vertical_column_spacing": (None,),
    "attention_vertical_column_width": (None,),
    "attention_chunk_size": (None,),
    "attention_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "attention_qk_norm_layer": (None,),
    "fixed_sparse_attention": (None,),
    "memory_tokens": ({}, None),
    "scale_qk_dot_by_layer_idx": (False, None),
    "num_extra_input_vocab_tokens": (0, None),
    "position_embedding_offset": (0, None),
    "pos_scaling_type": ("linear", None),
    "pos_scaling_extra_args": ({}, None),
    "rotary_dim": (None,),
    "num_relative_attention_buckets": (None, 32),
    "cross_attention_layers": ([], None),
    "rel_distance_mode": ("default", None),
    "rel_distance_extra_args": ({}, None),
    "lr_adjustment_groups": ({}, None),
    "moe": ({}, None),
    "moe.num_experts": (1, None),
    "moe_params": ({}, None),
    "moe_params.num_experts": (1, None),
}

# What the Model Zoo takes for a model setting that a file leaves out, where BTLM's value here is another.
# From GPT2LMHeadModelConfig of release 2.10.
MODEL_ZOO_DEFAULTS: dict[str, object] = {
    "position_embedding_type": "learned",
    "nonlinearity": "gelu",
    "dropout_rate": 0.1,
    "attention_dropout_rate": 0.1,
}

SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "loop": LoopConfig,
    "train": DataConfig,
    "validation": DataConfig,
}


def is_unused(path: KeyPath) -> bool:
    """Whether a key has no effect here. A key that `TARGETS` names in full has one, whatever `UNUSED`
    says.
    """
    return any(_matches(pattern, path) for pattern in UNUSED) and not any(
        _matches(pattern, path) for pattern in TARGETS if not pattern.endswith("**")
    )


def target_of(path: KeyPath) -> KeyPath | None:
    """Where a key lands in the tree of Params; None if there is no such key."""
    for pattern, target in TARGETS.items():
        if not _matches(pattern, path):
            continue
        rest = path[len(pattern.split(".")) - 1 :] if pattern.endswith("**") else ()
        known_path = (*target.split("."), *rest)
        return known_path if _is_known(known_path) else None
    return None


def is_section(path: KeyPath) -> bool:
    """Whether keys may be below this one."""
    return bool(names_below(path))


def names_below(prefix: KeyPath) -> set[str]:
    """The names known to be right below `prefix`, with wildcards where any name may."""
    names: set[str] = set()
    for pattern in (*TARGETS, *UNUSED):
        parts = pattern.split(".")
        above = tuple(part for part in prefix if not part.isdigit()) if parts[-1] == "**" else prefix
        if len(parts) <= len(above) or not all(
            fnmatch.fnmatchcase(name, part) for name, part in zip(above, parts, strict=False)
        ):
            continue
        name = parts[len(above)]
        if name != "**":
            names.add(name)
        elif pattern in TARGETS:
            section = SECTIONS.get(TARGETS[pattern].split(".")[0])
            names |= set(section.model_fields) if section else set()
    return names


def advice_for_unknown(path: KeyPath) -> str:
    """Names the first part of a path that is not known, and what is nearest to it."""
    for depth, part in enumerate(path):
        names = names_below(path[:depth])
        if any(fnmatch.fnmatchcase(part, name) for name in names) or (
            part.isdigit() and depth + 1 < len(path)
        ):
            continue
        near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
        known = ", ".join(sorted(names - {"*"}))
        if near:
            advice = f"Did you mean {'.'.join((*path[:depth], near[0]))}?"
        else:
            advice = f"Known here: {known}." if known else "Remove it."
        return f"there is no parameter {shown('.'.join(path[: depth + 1]))}. {advice}"
    return f"{shown('.'.join(path))} is a section, not a value. Give the keys below it."


def takes_flag(target: KeyPath) -> bool:
    """Whether true and false are values of this setting. Pydantic would take them for 1 and 0 where a number
    is meant.
    """
    section = SECTIONS.get(target[0])
    names = [
        name for name in target[1:] if not name.isdigit() and name not in ("fit", "eval", "eval_all", "all")
    ]
    field = section.model_fields.get(names[0]) if section and names else None
    return (
        field is None
        or "bool" in str(field.annotation)
        or "True" in str(field.annotation)
        or ("False" in str(field.annotation) or field.annotation is Any)
    )


def shown(value: object) -> str:
    """A value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _matches(pattern: str, path: KeyPath) -> bool:
    parts = pattern.split(".")
    if parts[-1] == "**":
        parts = parts[:-1]
        if len(path) < len(parts):
            return False
        path = path[: len(parts)]
    return len(parts) == len(path) and all(
        fnmatch.fnmatchcase(name, part) for name, part in zip(path, parts, strict=True)
    )


def _is_known(target: KeyPath) -> bool:
    """Whether Params has such a field (as far as models go; free dictionaries and schedules accept all)."""
    section, *rest = target
    if section not in SECTIONS:
        return True
    if section == "validation":
        rest = [name for name in rest[1:] if not name.isdigit()]
    return bool(rest) and (
        rest[0] in SECTIONS[section].model_fields or (section == "model" and rest[0] in FIXED)
    )
