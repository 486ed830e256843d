"""Training, readable top to bottom: what is checked first, how the work is spread, the loop, what is written.

One optimizer step: all micro-batches forward and backward, clip, AdamW at the schedule's rate for this step, zero. The
loss is divided by counts over the *global* batch before the backward pass, so micro-batches and ranks change nothing but
rounding. A run's folder:

    params.json   the resolved parameters        metrics.jsonl   a line per logged step; of a killed run only up to its checkpoint
    checkpoints/  see checkpoint.py              events/         TensorBoard
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from btlm_data.errors import BtlmError, ConfigError, DataError, Interrupted, OutputError, SafetyStop
from btlm_data.formats import atomic
from btlm_train import checkpoint, evaluate, interchange, mup
from btlm_train.checkpoint import Checkpoint
from btlm_train.data import DataConfig, DataDescription, GptHDF5MapDataProcessor, describe_data
from btlm_train.model import BTLM, count_parameters, flops_per_token
from btlm_train.optim import AdamW, clip_gradients, local
from btlm_train.parameters import ModelConfig, Params

logger = logging.getLogger(__name__)
Batch = Mapping[str, Tensor]
Mode = Literal["train", "eval", "train_and_eval", "eval_all"]

# Dense bfloat16 operations a second without sparsity, from the makers' data sheets; by a part of torch's device name.
PEAK_FLOPS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "RTX 4090": 165e12,
    "MI300X": 1307e12, "MI250X": 383e12, "B200": 2250e12,
}  # fmt: skip
UNIGRAM_TOKENS = 1_000_000  # labels looked at for the unigram entropy
# Model settings that a later stage or an evaluation may change: they decide no parameter's shape or meaning.
_MAY_CHANGE = {
    "name",
    "max_position_embeddings",
    "loss_weight",
    "loss_scaling",
    "pos_scaling_factor",
    "alibi_train_seq_len",
    "dropout_rate",
}
_MAY_CHANGE |= {
    "embedding_dropout_rate",
    "attention_dropout_rate",
    "initializer",
    "initializer_range",
    "embedding_initializer",
}
_MAY_CHANGE |= {"output_layer_initializer", "ffn_initializer", "ffn_output_layer_initializer"}


# Where the work runs ----------------------------------------------------------------------------------------------------------


@dataclass
class World:
    """One process among all: its rank, their number, its device, and how parameters are spread."""

    rank: int
    size: int
    device: torch.device
    parallel: Literal["none", "ddp", "fsdp"]

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def joined(device: str | None, parallel: Literal["ddp", "fsdp"] = "ddp") -> Iterator[World]:
    """Pick the device and, under torchrun (WORLD_SIZE > 1), join the other ranks. Raises ConfigError for a device that is not there."""
    name = {"csx": "auto", None: "auto", "gpu": "cuda"}.get(device, device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device gpu was asked for, and torch sees no GPU here. Use --device cpu, or install a torch built for your GPU."
        )
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = (
        torch.device(name, int(os.environ.get("LOCAL_RANK", "0")))
        if name == "cuda"
        else torch.device(str(name))
    )
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        torch.set_flush_denormal(
            True
        )  # far keys get weights below 1e-38 by ALiBi; a CPU computes with those 3 times slower
    if size == 1:
        yield World(0, 1, chosen, "none")
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size, chosen, parallel)
    finally:
        dist.destroy_process_group()


def autocast(params: Params, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 for matrix products where asked for, or on a GPU unless float32 is asked for. Parameters stay float32."""
    low = params.loop.precision == "bfloat16" or (params.loop.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=low, cache_enabled=False)


def wrap(model: BTLM, world: World) -> nn.Module:
    """Spread the model over the ranks: whole copies (DDP), or each parameter cut in pieces (FSDP2)."""
    if world.parallel == "ddp":
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # the option has another name since torch 2.13, and no other before
            return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    if world.parallel == "fsdp":
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    return model


def whole(tensor: Tensor) -> Tensor:
    """A parameter or its state as one CPU tensor; every rank of a sharded one must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().to("cpu")


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter or its state, wherever its pieces lie."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    local(target).copy_(local(value))


# Before anything is built -----------------------------------------------------------------------------------------------------


def check_data(data: DataConfig | None, model: ModelConfig, section: str) -> DataDescription:
    """Stop where the data is missing or was prepared for another model. Raises ConfigError; InputError and DataError from the reader."""
    if data is None:
        raise ConfigError(
            f"The parameters have no {section} section. Add it, with data_dir: the folder of prepared shards."
        )
    if (data.data_dir is None) == (data.mixture is None):
        raise ConfigError(
            f"{section}.data_dir is not set. Prepare shards (btlm-data prepare --out shards) and give their split's folder: "
            f"--set {section}.data_dir=shards/train."
        )
    folders = (
        data.data_dir
        if data.mixture is None
        else [f for entry in data.mixture for f in _listed(entry.data_dir)]
    )
    assert folders is not None
    for folder in _listed(folders):
        if not Path(folder).is_dir():
            raise ConfigError(
                f"{section}.data_dir is {folder}, and there is no such folder. Prepare it with btlm-data prepare, or correct it: --set {section}.data_dir=FOLDER."
            )
    found = describe_data(folders, data.max_sequence_length)
    shown = ", ".join(_listed(folders))
    if found.sequence_length is not None and found.sequence_length != model.max_position_embeddings:
        raise ConfigError(
            f"{section}.data_dir {shown} holds samples of {found.sequence_length} tokens, the model has max_position_embeddings "
            f"{model.max_position_embeddings}. Prepare the data with --seq-len {model.max_position_embeddings}, or change the model."
        )
    if found.vocab_size is not None and found.vocab_size > model.vocab_size:
        raise ConfigError(
            f"{section}.data_dir {shown} was tokenized with {found.tokenizer_name} ({found.vocab_size} tokens), the model has vocab_size "
            f"{model.vocab_size}: some tokens would have no embedding. Set model.vocab_size to at least {found.vocab_size}."
        )
    if found.tokenizer_name not in (None, "gpt2") and model.vocab_size == 50257 and found.vocab_size != 50257:
        raise ConfigError(
            f"{section}.data_dir {shown} was tokenized with {found.tokenizer_name} ({found.vocab_size} tokens), the model has GPT-2's vocabulary of 50257. "
            f"Set model.vocab_size to {found.vocab_size}, or prepare the data with --tokenizer gpt2."
        )
    return found


def _listed(folders: str | list[str]) -> list[str]:
    return [folders] if isinstance(folders, str) else list(folders)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One run at a time in a folder. Raises OutputError if another process trains in it, or it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / ".lock").open("w")
    except OSError as error:
        raise atomic.as_output_error(error, folder) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(
                f"Another run is working in {folder}. Wait for it or stop it, or give another --model-dir."
            ) from None
        yield


# State in and out -------------------------------------------------------------------------------------------------------------


@dataclass
class Trainer:
    """What one run holds: the model as built and as wrapped, the optimizer, and where it is."""

    params: Params
    world: World
    folder: Path
    core: BTLM
    model: nn.Module
    optimizer: AdamW
    step: int = 0
    tokens: int = 0
    data_state: dict[str, Any] | None = None
    interrupted: bool = False  # this process was asked to stop
    stop_requested: bool = False  # and all ranks have heard of it
    final: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def build(cls, params: Params, world: World, folder: Path) -> Trainer:
        """Initialise, spread and (if asked for) compile the model."""
        flex = world.device.type == "cuda" and not params.model.attention_dropout
        with torch.device("meta"):
            core = BTLM(
                params.model,
                activation_checkpointing=params.loop.activation_checkpointing,
                attention="flex" if flex else "sdpa",
            )
        core.to_empty(device=world.device)
        core.reset_buffers()
        mup.initialize(core, params.model, params.seed)
        if params.loop.compile:
            for block in core.blocks:
                block.compile()
        model = wrap(core, world)
        return cls(
            params, world, folder, core, model, AdamW(core.named_parameters(), params.model, params.optimizer)
        )

    def load(self, saved: Checkpoint, *, weights_only: bool = False) -> None:
        """Take over a checkpoint of this or an earlier stage. Raises ConfigError naming what differs in the architecture."""
        check_architecture(saved, self.params.model)
        self.load_weights(saved.weights())
        if weights_only:
            return
        moments = saved.optimizer()
        if moments is not None:
            for kind, target in (("m", self.optimizer.m), ("v", self.optimizer.v)):
                for name, tensor in target.items():
                    fill(tensor, moments[f"{kind}.{name}"])
        self.optimizer.updates, self.step, self.tokens = (
            int(saved.state["updates"]),
            saved.step,
            int(saved.state["tokens"]),
        )
        self.data_state = saved.state["data"]

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights in. Raises DataError if a parameter is missing, or has another shape."""
        for name, parameter in self.core.named_parameters():
            value = weights.get(name)
            if value is None or value.shape != parameter.shape:
                found = "missing" if value is None else f"of shape {tuple(value.shape)}"
                raise DataError(
                    f"The parameter {name} is {found} in the checkpoint, the model has {tuple(parameter.shape)}. Use the parameters it was trained with."
                )
            fill(parameter, value.float())

    def save(self, data: Mapping[str, Any] | None) -> None:
        """Write a checkpoint. All ranks take part in gathering; rank 0 writes."""
        weights = {name: whole(p) for name, p in self.core.named_parameters()}
        moments = {
            f"{kind}.{name}": whole(t)
            for kind, held in (("m", self.optimizer.m), ("v", self.optimizer.v))
            for name, t in held.items()
        }
        if self.world.rank == 0:
            state = {
                "updates": self.optimizer.updates,
                "tokens": self.tokens,
                "seed": self.params.seed,
                "data": data,
                "model": self.params.model.model_dump(mode="json"),
            }
            path = checkpoint.save(
                self.folder / "checkpoints", self.step, weights, moments, state, self.params.loop.keep
            )
            logger.info("Checkpoint of step %d written to %s.", self.step, path)
        self.world.barrier()


def check_architecture(saved: Checkpoint, model: ModelConfig) -> None:
    """Raises ConfigError if the checkpoint is of another model, naming the settings that differ."""
    then, now = saved.state["model"], model.model_dump(mode="json")
    differences = [
        f"{key}: {then.get(key)!r} then, {now[key]!r} now"
        for key in now
        if key not in _MAY_CHANGE and then.get(key) != now[key]
    ]
    if differences:
        raise ConfigError(
            f"The checkpoint {saved.path} is of another model: {'; '.join(differences)}. Use the parameters it was trained with, or another --model-dir."
        )


def starting_point(
    params: Params, folder: Path, given: str | None
) -> tuple[Checkpoint | dict[str, Tensor] | None, bool]:
    """What to begin from, and whether it is this run's own checkpoint (to be continued to the letter).

    The newest whole checkpoint in the run's folder; else --checkpoint or the parameters' checkpoint_path: another run's
    folder or checkpoint, or Hugging Face or Model Zoo weights in safetensors (weights alone, from step 0).
    """
    own = checkpoint.newest(folder / "checkpoints") if params.loop.autoload_last_checkpoint else None
    if own is not None:
        return own, True
    source = given or params.checkpoint_path
    if source is None:
        return None, False
    found = checkpoint.find(Path(source)) if Path(source).exists() else None
    if found is not None:
        return found, False
    if not Path(source).exists():
        raise ConfigError(
            f"There is no checkpoint {source}. Give the folder of a run, one of its checkpoints, or a safetensors file."
        )
    return interchange.read_weights(Path(source))[0], False


# The loop ---------------------------------------------------------------------------------------------------------------------


def train(
    params: Params,
    folder: Path,
    world: World,
    *,
    checkpoint_from: str | None = None,
    evaluating: bool = False,
) -> Trainer:
    """Train to the parameters' last step, from the newest checkpoint there is. Returns the trainer; its `final` holds the last figures."""
    description = check_data(params.train, params.model, "train_input")
    if evaluating:
        for data in params.validation:
            check_data(data, params.model, "eval_input")
    assert params.train is not None
    batch_size = params.train.batch_size * params.loop.grad_accum_steps
    if batch_size % world.size:
        raise ConfigError(
            f"train_input.batch_size {batch_size} is not a multiple of the {world.size} ranks. Choose one that is."
        )
    lock: contextlib.AbstractContextManager[None] = (
        locked(folder) if world.rank == 0 else contextlib.nullcontext()
    )
    with lock:
        if world.rank == 0:
            checkpoint.sweep(folder / "checkpoints")
        begin, own = starting_point(params, folder, checkpoint_from)
        trainer = Trainer.build(params, world, folder)
        if isinstance(begin, Checkpoint):
            only = params.loop.load_checkpoint_states
            trainer.load(begin, weights_only=not own and only != "all" and set(_split(only)) == {"model"})
            logger.info("Continuing from step %d of %s.", trainer.step, begin.path)
        elif begin is not None:
            trainer.load_weights(begin)
            logger.info(
                "Starting at step 0 with the weights of %s.", checkpoint_from or params.checkpoint_path
            )
        loader = GptHDF5MapDataProcessor(
            params.train.model_copy(update={"batch_size": batch_size})
        ).create_dataloader(pin_memory=world.device.type == "cuda")
        if trainer.data_state is not None:
            _seek(loader, trainer.data_state, own)
        last = _last_step(params, trainer.step, len(loader))
        if world.rank == 0:
            atomic.write_json(folder / "params.json", params.model_dump(mode="json"))
            logger.info(
                "%s parameters, steps %d to %d, %d x %d tokens a step on %d x %s.",
                f"{count_parameters(params.model):,}", trainer.step, last, batch_size, description.sequence_length or 0, world.size, world.device.type,
            )  # fmt: skip
        with Metrics(folder, trainer, last) as metrics:
            if params.loop.save_initial_checkpoint and trainer.step == 0:
                trainer.save(loader.state_dict())
            with _stopping_politely(trainer):
                _steps(trainer, loader, last, metrics, evaluating)
            if trainer.stop_requested:
                trainer.save(loader.state_dict())
                raise Interrupted(
                    f"Stopped at step {trainer.step}, with a checkpoint. Run the same command again to go on from there."
                )
            if params.loop.checkpoint_steps != 0:
                trainer.save(loader.state_dict())
            unigram = unigram_entropy(params.train, world) if world.rank == 0 else 0.0
            trainer.final |= {"unigram_entropy": unigram}
            metrics.finish(trainer.final)
    return trainer


def _split(states: str | tuple[str, ...]) -> list[str]:
    return states.split(",") if isinstance(states, str) else list(states)


def _seek(loader: Any, state: Mapping[str, Any], own: bool) -> None:
    """Go on in the data where the checkpoint was; another stage's data starts at its first sample."""
    try:
        loader.load_state_dict(state)
    except BtlmError as difference:
        if own:
            raise
        logger.info(
            "The data is not what the checkpoint was trained on: starting at its first sample. (%s)",
            str(difference).splitlines()[0],
        )


def _last_step(params: Params, step: int, steps_per_epoch: int) -> int:
    if params.loop.num_steps is not None:
        return step + params.loop.num_steps
    return params.loop.max_steps if params.loop.max_steps is not None else step + steps_per_epoch


def _endless(loader: Any) -> Iterator[Batch]:
    """Epoch after epoch. Raises ConfigError if a whole epoch gives no batch."""
    while True:
        count = 0
        for batch in loader:
            yield batch
            count += 1
        if not count:
            raise ConfigError(
                "The training data holds fewer samples than a batch, even twice over. Lower train_input.batch_size or prepare more data."
            )


def _steps(trainer: Trainer, loader: Any, last: int, metrics: Metrics, evaluating: bool) -> None:
    params = trainer.params
    evaluate_every = _evaluation_interval(params, trainer.step, last) if evaluating else 0
    trainer.model.train()
    batches = _endless(loader)
    recent: deque[dict[str, float]] = deque(maxlen=max(1, min(100, (last - trainer.step) // 5)))
    for _ in range(trainer.step, last):
        figures = optimizer_step(trainer, next(batches))
        due = (trainer.step % params.loop.log_steps == 0) or trainer.step == last
        metrics.step(figures, due)
        recent.append(figures)
        if evaluate_every and (trainer.step % evaluate_every == 0 or trainer.step == last):
            for number, data in enumerate(params.validation):
                metrics.evaluation(run_evaluation(trainer, data).report(), number)
        if trainer.stop_requested:
            break
        if params.loop.checkpoint_steps and trainer.step % params.loop.checkpoint_steps == 0:
            trainer.save(loader.state_dict())
    # One batch is a few documents: the last fifth of the steps (at most 100) tells more than the last step.
    trainer.final = {
        name: sum(one[name] for one in recent) / max(len(recent), 1) for name in ("loss", "cross_entropy")
    }


@contextlib.contextmanager
def _stopping_politely(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the step in hand finish; a second Ctrl-C stops at once. Only where signals can be caught: the main thread."""

    def ask(*_: object) -> None:
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.interrupted = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _evaluation_interval(params: Params, first: int, last: int) -> int:
    frequency = params.loop.eval_frequency
    if not frequency:
        return last - first
    return (
        max(1, round(frequency * (last - first)))
        if isinstance(frequency, float) and frequency <= 1
        else int(frequency)
    )


def optimizer_step(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """One update from this rank's part of a global batch. Returns loss (the objective), cross_entropy (nats per token), rate, norm, counts.

    Raises SafetyStop, before the weights change, if the gradient is not finite.
    """
    params, world, model = trainer.params, trainer.world, trainer.model
    length = batch["input_ids"].shape[1] if len(batch["input_ids"]) else params.model.max_position_embeddings
    rows, tokens, stop = world.sum(
        len(batch["input_ids"]), int(batch["attention_mask"].sum()), float(trainer.interrupted)
    )
    trainer.stop_requested = bool(stop)
    by_tokens = params.model.loss_scaling == "num_tokens"
    weight = 1.0 / max(tokens, 1.0) if by_tokens else params.model.loss_weight / rows
    if params.model.dropout_rate or params.model.attention_dropout or params.model.embedding_dropout:
        torch.manual_seed(
            (params.seed * 1_000_003 + trainer.step) * 65_537 + world.rank
        )  # no state to keep: see checkpoint.py
    most_rows = math.ceil(
        rows / world.size
    )  # on any rank: all take the same number of passes, or they would wait for each other for ever
    micro = max(1, (params.micro_batch_size or most_rows * world.size) // world.size)
    total = torch.zeros((), device=world.device)
    for start in range(0, most_rows, micro):
        part = {name: tensor[start : start + micro] for name, tensor in batch.items()}
        part = {
            name: tensor.to(world.device, non_blocking=True)
            for name, tensor in evaluate.at_least_one_row(part, length).items()
        }
        with _synchronised(model, start + micro >= most_rows), autocast(params, world.device):
            summed = model(
                part["input_ids"], part["labels"], part["attention_mask"], part.get("attention_span")
            )
            # Ranks average their gradients; the global sum is the average times their number.
            (summed * (weight * world.size)).backward()
        total += summed.detach()
    norm = clip_gradients(trainer.core.parameters(), params.optimizer.max_gradient_norm)
    (cross_entropy,) = world.sum(float(total))
    if not math.isfinite(norm) or not math.isfinite(cross_entropy):
        raise SafetyStop(
            f"The loss or its gradient is not finite at step {trainer.step} (gradient norm {norm}). The weights were not changed and no checkpoint was "
            "written since the last one. Lower the learning rate, or clip (max_gradient_norm), and run again."
        )
    rate = params.learning_rate(trainer.step)
    trainer.optimizer.step(rate)
    trainer.optimizer.zero_grad()
    trainer.step += 1
    trainer.tokens += int(rows) * length
    return {
        "loss": cross_entropy * weight,
        "cross_entropy": cross_entropy / max(tokens, 1.0),
        "learning_rate": rate,
        "gradient_norm": norm,
        "step_tokens": int(rows) * length,
        "length": length,
    }


@contextlib.contextmanager
def _synchronised(model: nn.Module, last: bool) -> Iterator[None]:
    """Exchange gradients between ranks with the last micro-batch only."""
    if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    yield


def run_evaluation(trainer: Trainer, data: DataConfig) -> evaluate.Sums:
    """Evaluate on one section of validation data, from its first sample."""
    length = trainer.params.model.max_position_embeddings
    loader = GptHDF5MapDataProcessor(data).create_dataloader()
    device, context = trainer.world.device, autocast(trainer.params, trainer.world.device)
    return evaluate.evaluate(trainer.model, loader, length, device, context, trainer.params.loop.eval_steps)


def unigram_entropy(data: DataConfig, world: World) -> float:
    """Nats per token of the best model that knows only how often each token occurs, from the first million training labels."""
    counts = np.zeros(0, dtype=np.int64)
    one = data.model_copy(update={"num_workers": 0, "drop_last": False, "batch_size": 8, "pad_last": False})
    for batch in islice(GptHDF5MapDataProcessor(one).create_dataloader(rank=0, world_size=1), 10_000):
        labels = batch["labels"][batch["attention_mask"] > 0].numpy()
        found = np.bincount(labels, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
        if counts.sum() >= UNIGRAM_TOKENS:
            break
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


# What is written --------------------------------------------------------------------------------------------------------------


class Metrics:
    """The console line, metrics.jsonl and TensorBoard; on rank 0 only.

    On a rerun, lines of metrics.jsonl beyond the checkpoint are dropped: they are about to be computed again.
    """

    def __init__(self, folder: Path, trainer: Trainer, last: int):
        self.folder, self.trainer, self.last = folder, trainer, last
        self.active = trainer.world.rank == 0
        self.since = time.perf_counter()
        self.since_step = trainer.step
        self.since_tokens = trainer.tokens
        self.writer: Any = None

    def __enter__(self) -> Metrics:
        if self.active:
            path = self.folder / "metrics.jsonl"
            kept = [
                line
                for line in _json_lines(path)
                if line.get("step", 0) <= self.trainer.step and "event" not in line
            ]
            atomic.write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
            self.file = path.open("a", encoding="utf-8")
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(self.folder / "events"), purge_step=self.trainer.step + 1)
            except ImportError:
                logger.warning(
                    "TensorBoard is not installed, so no events are written. Install btlm-data[train] to have them; metrics.jsonl has all figures."
                )
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.file.close()
            if self.writer is not None:
                self.writer.close()

    def step(self, figures: Mapping[str, float], due: bool) -> None:
        """A step is done; write its line if it is due."""
        if not self.active or not due:
            return
        trainer = self.trainer
        elapsed = time.perf_counter() - self.since
        steps, tokens = trainer.step - self.since_step, trainer.tokens - self.since_tokens
        self.since, self.since_step, self.since_tokens = time.perf_counter(), trainer.step, trainer.tokens
        speed = tokens / elapsed
        peak = _peak_flops(trainer.world.device)
        used = (
            speed
            * flops_per_token(trainer.params.model, int(figures["length"]))
            / (peak * trainer.world.size)
            if peak
            else None
        )
        left = (self.last - trainer.step) * elapsed / max(steps, 1)
        logger.info(
            "step %d/%d  loss %.4f  lr %.3g  grad norm %.3f  %s tokens/s%s  %s left",
            trainer.step, self.last, figures["loss"], figures["learning_rate"], figures["gradient_norm"], f"{speed:,.0f}",
            f"  MFU {used:.1%}" if used is not None else "", _duration(left),
        )  # fmt: skip
        line = {name: figures[name] for name in ("loss", "cross_entropy", "learning_rate", "gradient_norm")}
        self._write(
            line | {"tokens": trainer.tokens},
            "train",
            {"tokens_per_second": round(speed, 1)} | ({"mfu": used} if used is not None else {}),
        )

    def evaluation(self, report: Mapping[str, Any], number: int) -> None:
        """Write an evaluation's figures."""
        if self.active:
            logger.info(
                "step %d  validation%s loss %.4f  perplexity %.2f  accuracy %.2f%%",
                self.trainer.step,
                f" {number}" if number else "",
                report["loss"],
                report["perplexity"],
                100 * report["accuracy"],
            )
            self._write(report, "validation" + (f"_{number}" if number else ""))

    def finish(self, figures: Mapping[str, Any]) -> None:
        """The last line: loss over the last steps, and the unigram entropy it must beat to have learnt anything of order."""
        if self.active:
            self._write({"event": "end", **figures}, None)
            logger.info(
                "Done at step %d: cross-entropy %.4f nats per token over the last steps; knowing only token frequencies gives %.4f.",
                self.trainer.step,
                figures.get("cross_entropy", math.nan),
                figures["unigram_entropy"],
            )

    def _write(
        self, figures: Mapping[str, Any], kind: str | None, timing: Mapping[str, Any] | None = None
    ) -> None:
        head = {"step": self.trainer.step} | ({"kind": kind} if kind else {})
        self.file.write(json.dumps({**head, **figures, **(timing or {})}) + "\n")
        self.file.flush()
        if self.writer is not None and kind:
            for name, value in {**figures, **(timing or {})}.items():
                self.writer.add_scalar(f"{kind}/{name}", value, self.trainer.step)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line cut short by a kill is left out."""
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(text)
                if isinstance(value, dict):
                    yield value


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}:{minutes:02}" if days else f"{hours}:{minutes:02}:{seconds:02}"
