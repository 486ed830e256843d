"""Run a step: skip what a receipt proves done, map the rest, write receipts. Resuming lives here and nowhere else."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import Protocol

from btlm_data.engine.local import TaskResult
from btlm_data.errors import OutputError
from btlm_data.formats import atomic, receipts
from btlm_data.task import Counts, Step, Task


class Engine(Protocol):
    """Whatever can run tasks. It alone knows how many workers there are."""

    def map(self, step: Step, tasks: Sequence[Task], work_dir: str) -> Iterator[TaskResult | None]:
        """Yield results in any order; None now and then while waiting."""

    def progress(self) -> int:
        """Units of work reported so far, all steps together."""


class Events(Protocol):
    """Whoever wants to know how it goes (a bar, a log, nobody)."""

    def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None:
        """Tasks in `done` were proved done by their receipts."""

    def step_moved(self, step: Step, units: int, documents: int) -> None:
        """`units` of the step's work done in this run so far, and documents of finished tasks, where the step counts them."""

    def step_finished(self, step: Step, seconds: float, skipped: int) -> None:
        """All tasks of the step have receipts."""


def task_digest(step: Step, task: Task) -> str:
    """Hex SHA-256 over everything that decides a task's outputs (its lineage, as strax calls it)."""
    value = [step.name, step.version, step.settings_digest, task.id, dict(task.args), list(task.inputs)]
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_done(step: Step, task: Task, work_dir: Path) -> bool:
    """True if a receipt proves that the task's outputs are there as its inputs and settings would make them."""
    return receipts.proves(
        receipts.read(work_dir, step.name, task.id), task_digest(step, task), work_dir, task.outputs
    )


def run_step(step: Step, work_dir: Path, engine: Engine, events: Events) -> list[Counts]:
    """Make sure every task of `step` is done; returns their counts in task order, whatever order they ran in."""
    start = perf_counter()
    digests = {task.id: task_digest(step, task) for task in step.tasks}
    assert len(digests) == len(step.tasks), f"step {step.name} has two tasks of one id"
    found: dict[str, Counts] = {}
    todo: list[Task] = []
    for task in step.tasks:
        receipt = receipts.read(work_dir, step.name, task.id)
        if receipts.proves(receipt, digests[task.id], work_dir, task.outputs):
            assert receipt is not None
            found[task.id] = Counts.from_json(receipt.counts)
        else:
            if receipt is not None:
                receipts.forget(work_dir, step.name, task.id)
            todo.append(task)
    events.step_started(step, todo, [task for task in step.tasks if task.id in found])
    before, documents = engine.progress(), 0
    for result in engine.map(step, todo, str(work_dir)):
        if result is not None:
            outputs = [*result.task.outputs, *result.counts.extra.get("outputs", [])]
            digest = digests[result.task.id]
            receipts.write(
                work_dir,
                step.name,
                step.version,
                result.task.id,
                digest,
                outputs,
                result.counts.to_json(),
                result.seconds,
            )
            found[result.task.id] = result.counts
            documents += result.counts.extra.get("documents", 0)
        events.step_moved(step, engine.progress() - before, documents)
    events.step_finished(step, perf_counter() - start, len(step.tasks) - len(todo))
    return [found[task.id] for task in step.tasks]


@contextmanager
def exclusive_folder(out: Path) -> Iterator[None]:
    """Hold a folder that is written to, so that two runs with two work folders do not both write into it. Leaves no file there.

    Raises OutputError if another run holds it. A file system that cannot lock folders (some network ones) is taken as it is.
    """
    import fcntl

    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise atomic.as_output_error(error, out) from error
    try:
        for attempt in range(20):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt == 19:
                    raise OutputError(
                        f"Another run, with another --work-dir, is writing into {out}. Wait for it to end, or choose another --out or --emit-text."
                    ) from None
                sleep(0.1)
                continue
            except OSError:
                pass
            break
        yield
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(work_dir: Path) -> Iterator[None]:
    """Hold the work folder: a second run on it says so and stops. The lock ends with the process, however it ends.

    Raises OutputError naming the holder, or saying why the folder cannot be used.
    """
    import fcntl

    path = work_dir / "lock"
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise atomic.as_output_error(error, path) from error
    with file:
        for _ in range(20):  # a killed run's workers hold the lock until the kernel has ended them too
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                sleep(0.1)
        else:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise OutputError(
                f"The work folder {work_dir} is in use by {holder}. Two runs would overwrite each other's files. "
                "Wait for it to end, or choose another --work-dir."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        atomic.sweep(work_dir)
        yield
