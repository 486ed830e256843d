"""What each command does, from plain arguments: find the checkpoint, build the model, call, return what is to
be shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from btlm_data.errors import ConfigError
from btlm_train import checkpoint, interchange
from btlm_train import evaluate as evaluation
from btlm_train import generate as generation
from btlm_train.checkpoint import Checkpoint, State
from btlm_train.data.description import describe_data
from btlm_train.data.manifests import split_folder
from btlm_train.files import write_bytes, write_json
from btlm_train.interchange.exporting import Target
from btlm_train.interchange.gguf_file import Precision
from btlm_train.model import BTLM
from btlm_train.parameters import ModelConfig, Params
from btlm_train.training import Trainer, joined, run_evaluation, starting_point, train
from btlm_train.training.checks import check_data, with_splits
from btlm_train.training.run_folder import locked, new_run

Mode = Literal["train", "eval", "train_and_eval", "eval_all"]


def run(
    params: Params,
    folder: Path,
    mode: Mode,
    *,
    device: str | None = None,
    parallel: Literal["ddp", "fsdp"] = "ddp",
    checkpoint_from: str | None = None,
) -> dict[str, Any] | list[dict[str, Any]] | None:
    """`btlm-train run`. Returns the figures to print (None on ranks other than 0)."""
    with joined(device, parallel) as world:
        if mode in ("train", "train_and_eval"):
            trainer = train(
                params, folder, world, checkpoint_from=checkpoint_from, evaluating=mode == "train_and_eval"
            )
            return {"step": trainer.step, **trainer.final} if world.rank == 0 else None
        params = with_splits(params)
        if not params.validation:
            raise ConfigError(
                "The parameters have no validation data. Add an eval_input section, or "
                "validate.val_dataloader."
            )
        for data in params.validation:
            check_data(data, params.model, "eval_input")
        chosen: list[Any] = [starting_point(params, folder, checkpoint_from)[0]]
        if mode == "eval_all":
            chosen = [
                c
                for path in checkpoint.list_steps(folder / "checkpoints")
                if isinstance(c := checkpoint.inspect(path), Checkpoint)
            ] or chosen
        if chosen == [None]:
            raise ConfigError(
                f"There is no checkpoint in {folder}. Train first, or name one with --checkpoint."
            )
        trainer = Trainer.build(params, world, folder)
        reports = []
        for saved in chosen:
            if isinstance(saved, Checkpoint):
                trainer.load(saved, weights_only=True)
            else:
                trainer.load_weights(saved)
            for number, data in enumerate(params.validation):
                sums = run_evaluation(trainer, data)
                step = saved.step if isinstance(saved, Checkpoint) else 0
                reports.append(
                    {"step": step, "validation": number, **sums.report(), "by_position": sums.curve()}
                )
        if world.rank != 0:
            return None
        write_json(folder / "evaluation.json", reports)
        return [
            {name: value for name, value in report.items() if name != "by_position"} for report in reports
        ]


def open_model(path: Path, device: str, trained_length: int | None = None) -> BTLM:
    """The model of a run (its newest checkpoint), of one checkpoint, or of an exported folder, ready to be
    used.

    trained_length: scale ALiBi dynamically beyond it. Raises ConfigError if nothing is there or its
    configuration is missing, DataError if the weights are not of the configuration.
    """
    checkpoint_found = checkpoint.find(path)
    if checkpoint_found is not None:
        weights, config = checkpoint_found.weights(), checkpoint_found.model_config()
        interchange.check_weights(weights, config, str(checkpoint_found.path))
    else:
        weights, config = _with_config(path)
    if trained_length is not None:
        config = config.model_copy(update={"alibi_train_seq_len": trained_length})
    with torch.device("meta"):
        model = BTLM(config)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    model.reset_buffers()
    return model.to(device).eval()


def export(
    source: Path, to: Target, out: Path, precision: Precision, tokenizer: Path | None = None
) -> list[Path]:
    """`btlm-train export`. Returns the files."""
    saved = checkpoint.find(source)
    if saved is None:
        raise ConfigError(
            f"There is no checkpoint in {source}. Give the folder of a run, or one of its checkpoints."
        )
    weights, config = saved.weights(), saved.model_config()
    interchange.check_weights(weights, config, str(saved.path))
    return interchange.export(weights, config, out, to, precision, state=saved.state, tokenizer=tokenizer)


def import_(source: Path, folder: Path) -> Path:
    """`btlm-train import`: a checkpoint of step 0, without optimizer state. Nothing is written unless all
    fits.
    """
    weights, config = _with_config(source)
    floats = {name: tensor.float() for name, tensor in weights.items()}
    if checkpoint.list_steps(folder / "checkpoints"):
        raise ConfigError(f"{folder} already holds checkpoints. Give a new --model-dir.")
    with locked(folder):
        model = config.model_dump(mode="json")
        state = State(run=new_run(folder), step=0, updates=0, tokens=0, seed=0, data=None, model=model)
        return checkpoint.save(folder / "checkpoints", state, floats, None, None)


def _with_config(path: Path) -> tuple[dict[str, Tensor], ModelConfig]:
    weights, config = interchange.read_weights(path)
    if config is None:
        raise ConfigError(
            f"The weights at {path} come without config.json or params.yaml, so the model is not known. "
            "Add one of them beside the weights."
        )
    return weights, config


def generate(
    path: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    tokenizer_name: str,
    device: str,
) -> str:
    """`btlm-train generate`: the prompt and what the model adds to it."""
    with joined(device) as world:
        model = open_model(path, str(world.device))
        tokenizer = generation.load_tokenizer(tokenizer_name, model.config.vocab_size)
        end = tokenizer.token_to_id("<|endoftext|>")
        ids = tokenizer.encode(prompt).ids if prompt else []
        begin = ids or ([end] if end is not None else [0])
        new = generation.generate(
            model, begin, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop_id=end
        )
        return str(tokenizer.decode(ids + new))


def evaluate_lengths(
    path: Path,
    data: Path,
    lengths: list[int],
    out: Path,
    samples: int | None,
    trained_length: int | None,
    device: str,
) -> list[dict[str, Any]]:
    """`btlm-train eval-lengths`: a row per length; files in `out`."""
    with joined(device) as world:
        model = open_model(path, str(world.device), trained_length)
        context = torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=world.device.type == "cuda")
        folder = split_folder(str(data), ("validation", "test"))
        config: dict[str, Any] = {"data_dir": folder, "batch_size": 1, "drop_last": False}
        if describe_data(folder).format == "corpus":
            config["max_sequence_length"] = max(lengths)
        sums = evaluation.evaluate_lengths(model, config, lengths, world.device, context, samples)
        evaluation.write_lengths(
            sums, model.config.alibi_train_seq_len or model.config.max_position_embeddings, out
        )
        rows = [{"length": length, **total.report()} for length, total in sums.items()]
        write_bytes(out / "lengths.json", (json.dumps(rows) + "\n").encode())
        return rows
