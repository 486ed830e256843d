"""What a run is doing, for anybody who can read the work folder: `btlm-data status`.

    status.json   {"driver": who, "engine", "updated": seconds since 1970, "state": "running" | "complete" |
                   "stopped", "message", "steps": [{"name", "unit", "tasks", "done", "before", "weight", "units",
                   "seconds", "state", "slowest": [[title, seconds], ...]}, ...]}

The driver writes it every few seconds; what is running and what failed is in claims and failures beside it.
It is for people: nothing of a run depends on it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import msgspec

from btlm_data.engine import failures, receipts
from btlm_data.engine.failures import Failure
from btlm_data.errors import BtlmError
from btlm_data.storage import Store, lease
from btlm_data.storage.claims import Watch
from btlm_data.task import Step, Task, TaskResult

NAME = "status.json"
_SLOWEST = 5
_LOCAL_SECONDS, _REMOTE_SECONDS = 1.0, 10.0  # between two writes
_SILENT = 60.0  # seconds without a write after which a driver elsewhere counts as gone


class StepStatus(msgspec.Struct):
    """One step. tasks: all; before: of them, done by an earlier run; weight: units of those that were to be
    done, units: done.
    """

    name: str
    unit: str
    tasks: int
    done: int
    before: int
    weight: int
    units: int = 0
    seconds: float = 0.0
    state: str = "running"
    slowest: list[tuple[str, float]] = msgspec.field(default_factory=list)


class RunStatus(msgspec.Struct):
    """The file."""

    driver: dict[str, object]
    engine: str
    updated: float
    state: str = "running"
    message: str = ""
    steps: list[StepStatus] = msgspec.field(default_factory=list)


class StatusFile:
    """Writes the status of this process's run."""

    def __init__(self, store: Store, engine: str) -> None:
        self._store = store
        self._value = RunStatus(lease.own_state(), engine, time.time())
        self._every = _LOCAL_SECONDS if store.is_local else _REMOTE_SECONDS
        self._written = self._begun = 0.0

    def step_started(self, step: Step, todo: Sequence[Task], before: int) -> None:
        """A step begins."""
        weight = sum(task.weight for task in todo)
        self._value.steps.append(StepStatus(step.name, step.unit, len(step.tasks), before, before, weight))
        self._begun = time.monotonic()
        self._write(force=False)

    def step_moved(self, units: int, result: TaskResult | None, title: str) -> None:
        """Units of the step done so far; the task that has just finished, and what it is called."""
        step = self._value.steps[-1]
        step.units, step.seconds = units, time.monotonic() - self._begun
        if result is not None:
            step.done += 1
            if len(step.slowest) < _SLOWEST or result.seconds > step.slowest[-1][1]:
                step.slowest = sorted([*step.slowest, (title, result.seconds)], key=lambda task: -task[1])[
                    :_SLOWEST
                ]
        self._write(force=False)

    def step_finished(self) -> None:
        """All tasks of the step are done."""
        step = self._value.steps[-1]
        step.state, step.units, step.seconds = "done", step.weight, time.monotonic() - self._begun
        self._write(force=False)

    def ended(self, state: str, message: str = "") -> None:
        """The run is over. state: "complete" or "stopped"."""
        self._value.state, self._value.message = state, message
        self._write(force=True)

    def _write(self, *, force: bool) -> None:
        now = time.monotonic()
        if not force and now - self._written < self._every:
            return
        self._written, self._value.updated = now, time.time()
        with contextlib.suppress(BtlmError):  # a full disk ends the run elsewhere, with its own words
            self._store.write(NAME, msgspec.json.encode(self._value), durable=False)


class Status(msgspec.Struct, frozen=True):
    """What is in a work folder. running: (step, task, who) of tasks that workers of other processes do now."""

    run: RunStatus | None
    driver_is_alive: bool
    running: tuple[tuple[str, str, str], ...] = ()
    failed: tuple[Failure, ...] = ()
    done_now: int | None = None  # receipts of the last step, where the driver is gone and workers continue


def read(store: Store) -> Status:
    """Read a work folder. Its run may be in progress, complete or absent."""
    present = store.read_version(NAME)
    if present is None:
        return Status(None, driver_is_alive=False)
    try:
        run = msgspec.json.decode(present[0], type=RunStatus)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Status(None, driver_is_alive=False)
    alive = lease.is_alive(run.driver)
    if alive is None:
        alive = time.time() - run.updated < _SILENT
    watch = Watch(store)
    running = []
    for task, claim in sorted(watch.claims().items()):
        if not watch.is_dead(claim):
            step, _, name = task.partition("/")
            running.append((step, name, str(claim.get("holder"))))
    done_now = None
    if not alive and run.state == "running" and run.steps:
        done_now = len(store.list(f"{receipts.FOLDER}/{run.steps[-1].name}"))
    return Status(run, alive, tuple(running), tuple(failures.read_all(store)), done_now)
