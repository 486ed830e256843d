"""A run from its first check to its last figure. A run's folder:

params.json   the resolved parameters        metrics.jsonl   a line for each logged step
run.json      which run this is              checkpoints/    see checkpoint.py
data.json     what it read, step by step (data/history.py)
earlier/      see run_folder.py              events/         TensorBoard
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from btlm_data.errors import BtlmError, ConfigError, DataError, Interrupted
from btlm_data.storage.local import LocalStore
from btlm_train import checkpoint, evaluate, interchange
from btlm_train.checkpoint import Checkpoint
from btlm_train.data.history import add_part, describe_part
from btlm_train.data.loader import GptHDF5MapDataProcessor
from btlm_train.data.settings import DataConfig
from btlm_train.files import write_json
from btlm_train.model import count_parameters
from btlm_train.parameters import Params
from btlm_train.training.checks import check_data, with_splits
from btlm_train.training.metrics import Metrics
from btlm_train.training.run_folder import begin_run, locked, moved_path, own_checkpoint, read_run
from btlm_train.training.step import Batch, optimizer_step
from btlm_train.training.trainer import Trainer, changed_settings, check_same_function
from btlm_train.training.world import World, autocast

logger = logging.getLogger(__name__)
UNIGRAM_TOKENS = 1_000_000  # labels looked at for the unigram entropy


def starting_point(
    params: Params, folder: Path, given: str | None
) -> tuple[Checkpoint | dict[str, Tensor] | None, bool]:
    """What to begin from, and whether it is this run's own checkpoint (to be continued to the letter).

    The newest whole checkpoint of the run in `folder`; else --checkpoint or the parameters' checkpoint_path:
    another run's folder or checkpoint, or Hugging Face or Model Zoo weights (weights alone, from step 0).
    Raises ConfigError if nothing is there, DataError if it cannot be used.
    """
    own = own_checkpoint(folder) if params.loop.autoload_last_checkpoint else None
    if own is not None:
        return own, True
    source = given or params.checkpoint_path
    if source is None:
        return None, False
    path = moved_path(folder, Path(source))
    if not os.path.lexists(path):
        raise ConfigError(
            f"There is no checkpoint {source}. Give the folder of a run, one of its checkpoints, or a "
            "safetensors file."
        )
    present = checkpoint.find(path)
    if present is not None:
        return present, False
    weights, config = interchange.read_weights(path)
    if config is not None:
        check_same_function(config, params.model, source)
    return weights, False


def train(
    params: Params,
    folder: Path,
    world: World,
    *,
    checkpoint_from: str | None = None,
    evaluating: bool = False,
) -> Trainer:
    """Train to the parameters' last step, from the newest checkpoint there is.

    Returns the trainer; its `final` holds the last figures, and is empty if the run had been finished before.
    """
    params = with_splits(params)
    description = check_data(params.train, params.model, "train_input")
    if evaluating:
        for data in params.validation:
            check_data(data, params.model, "eval_input")
    assert params.train is not None
    batch_size = params.train.batch_size * params.loop.grad_accum_steps
    if batch_size % world.size:
        raise ConfigError(
            f"train_input.batch_size {batch_size} is not a multiple of the {world.size} ranks. Choose one "
            "that is."
        )
    with locked(folder) if world.rank == 0 else contextlib.nullcontext() as lease:
        if world.rank == 0:
            checkpoint.sweep(folder / "checkpoints")
            LocalStore(folder).sweep()
            begin_run(folder, continuing=params.loop.autoload_last_checkpoint)
        world.barrier()
        begin, own = starting_point(params, folder, checkpoint_from)
        trainer = _started(params, folder, world, begin, own, checkpoint_from or params.checkpoint_path)
        trainer.lease = lease
        loader = GptHDF5MapDataProcessor(
            params.train.model_copy(update={"batch_size": batch_size})
        ).create_dataloader(pin_memory=world.device.type == "cuda")
        if trainer.data_state is not None:
            _seek(loader, trainer.data_state, own)
        last = _last_step(params, trainer.step, len(loader))
        if own and trainer.step >= last:
            if world.rank == 0:  # killed after its last checkpoint, before older ones were removed
                checkpoint.keep_newest(folder / "checkpoints", trainer.run, params.loop.keep)
            logger.info(
                "This run is finished: its checkpoint is of step %d, and max_steps is %d. Nothing was "
                "changed. "
                "Raise max_steps to train further, or give another --model-dir.",
                trainer.step, last,
            )  # fmt: skip
            return trainer
        if world.rank == 0:
            write_json(folder / "params.json", params.model_dump(mode="json"))
            logger.info(
                "%s parameters, steps %d to %d, %d x %d tokens a step on %d x %s.",
                f"{count_parameters(params.model):,}", trainer.step, last, batch_size,
                description.sequence_length or 0, world.size, world.device.type,
            )  # fmt: skip
            add_part(folder, trainer.run, describe_part(loader, trainer.step, last))
        _run(trainer, loader, last, evaluating)
    return trainer


def _started(
    params: Params,
    folder: Path,
    world: World,
    begin: Checkpoint | Mapping[str, Tensor] | None,
    own: bool,
    source: str | None,
) -> Trainer:
    """The trainer with what it begins from loaded, and what that is said."""
    trainer = Trainer.build(params, world, folder)
    present = read_run(folder)
    if present is None:
        raise DataError(
            f"{folder / 'run.json'} is not there on this rank. --model-dir must be a folder all ranks share."
        )
    trainer.run = present.run
    if isinstance(begin, Checkpoint):
        states = params.loop.load_checkpoint_states
        names = set(states.split(",") if isinstance(states, str) else states)
        weights_only = not own and names == {"model"}
        trainer.load(begin, weights_only=weights_only)
        if weights_only:
            logger.info("Starting at step 0 with the weights of %s.", begin.path)
        else:
            logger.info("Continuing from step %d of %s.", trainer.step, begin.path)
            if changes := changed_settings(begin, params):
                logger.info("Changed since that checkpoint: %s.", "; ".join(changes))
    elif begin is not None:
        trainer.load_weights(begin, str(source))
        logger.info("Starting at step 0 with the weights of %s.", source)
    return trainer


def _run(trainer: Trainer, loader: Any, last: int, evaluating: bool) -> None:
    """The steps, and what is written around them."""
    params, world = trainer.params, trainer.world
    assert params.train is not None
    with Metrics(trainer.folder, trainer, last) as metrics:
        if params.loop.save_initial_checkpoint and trainer.step == 0:
            trainer.save(loader.state_dict())
        with _stopping_after_the_step(trainer):
            _steps(trainer, loader, last, metrics, evaluating)
        if trainer.stop_requested:
            trainer.save(loader.state_dict())
            raise Interrupted(
                f"Stopped at step {trainer.step}, with a checkpoint. Run the same command again to continue "
                "from there."
            )
        if params.loop.checkpoint_steps != 0:
            trainer.save(loader.state_dict())
        unigram = unigram_entropy(params.train, params.model.vocab_size) if world.rank == 0 else 0.0
        trainer.final |= {"unigram_entropy": unigram}
        metrics.finish(trainer.final)


def _seek(loader: Any, state: Mapping[str, Any], own: bool) -> None:
    """Continue in the data where the checkpoint was; another stage's data starts at its first sample."""
    try:
        loader.load_state_dict(state)
    except BtlmError:
        if own:
            raise
        logger.info(
            "This is other data than the checkpoint was trained on (a second stage): starting at its first "
            "sample."
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
                "The training data holds fewer samples than a batch, even when repeated once. "
                "Lower train_input.batch_size or prepare more data."
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
        name: sum(values[name] for values in recent) / max(len(recent), 1)
        for name in ("loss", "cross_entropy")
    }


@contextlib.contextmanager
def _stopping_after_the_step(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the present step finish; a second one stops at once.

    Only in the main thread, the only one where signals can be caught.
    """

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
    if isinstance(frequency, float) and frequency <= 1:
        return max(1, round(frequency * (last - first)))
    return int(frequency)


def run_evaluation(trainer: Trainer, data: DataConfig) -> evaluate.Sums:
    """Evaluate on one section of validation data, from its first sample."""
    params, device = trainer.params, trainer.world.device
    loader = GptHDF5MapDataProcessor(data).create_dataloader()
    return evaluate.evaluate(
        trainer.model, loader, params.model.max_position_embeddings, params.model.vocab_size, device,
        autocast(params, device), params.loop.eval_steps,
    )  # fmt: skip


def unigram_entropy(data: DataConfig, vocab_size: int) -> float:
    """Nats per token of the best model that knows only how often each token occurs, from the first million
    labels.
    """
    counts = np.zeros(0, dtype=np.int64)
    in_process = data.model_copy(
        update={"num_workers": 0, "drop_last": False, "batch_size": 8, "pad_last": False}
    )
    for batch in islice(GptHDF5MapDataProcessor(in_process).create_dataloader(rank=0, world_size=1), 10_000):
        evaluate.check_tokens(batch, vocab_size)
        labels = batch["labels"][batch["attention_mask"] > 0].numpy()
        of_batch = np.bincount(labels, minlength=len(counts))
        of_batch[: len(counts)] += counts
        counts = of_batch
        if counts.sum() >= UNIGRAM_TOKENS:
            break
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())
