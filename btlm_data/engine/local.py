"""Tasks on this machine: in this process (one worker), or in a pool of forked processes.

Workers die with the driver (a SIGKILLed driver leaves nobody writing to the work folder), ignore Ctrl-C (the driver
ends them), and report progress through a shared counter each.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from btlm_data.advance import listen
from btlm_data.errors import BtlmError
from btlm_data.task import Counts, Step, Task

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class TaskResult:
    """A finished task, in whatever order tasks finish."""

    task: Task
    counts: Counts
    seconds: float


class LocalEngine:
    """A pool of `workers` processes for the whole run. Use as a context manager; results come in any order."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._progress: Any = self._context.RawArray(ctypes.c_uint64, workers + 1)
        self._next_slot: Any = self._context.Value(ctypes.c_int, 0)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Fork the workers now: before this process has threads, and after it has loaded what they should inherit."""
        if self._pool is None and self.workers > 1:
            self._pool = ProcessPoolExecutor(
                self.workers,
                mp_context=self._context,
                initializer=_start_worker,
                initargs=(self._progress, self._next_slot, os.getpid()),
            )
            self._pool.submit(os.getpid).result()

    def progress(self) -> int:
        """Units reported by all workers since the engine was made."""
        return int(sum(self._progress))

    def map(self, step: Step, tasks: Sequence[Task], work_dir: str) -> Iterator[TaskResult | None]:
        """Run `tasks`; yields each result as it comes, and None about five times a second so that a bar can move.

        The first exception of a task ends the others and is raised here.
        """
        if self.workers == 1 or len(tasks) == 1:
            yield from self._inline(step, tasks, work_dir)
            return
        self.start()
        assert self._pool is not None
        waiting = iter(tasks)
        running: dict[Future[tuple[Counts, float]], Task] = {}
        try:
            while True:
                while len(running) < 2 * self.workers and (task := next(waiting, None)) is not None:
                    running[self._pool.submit(_run, step.work, task, step.settings, work_dir)] = task
                if not running:
                    return
                done, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    counts, seconds = future.result()
                    yield TaskResult(running.pop(future), counts, seconds)
                yield None
        except BrokenProcessPool:
            raise BtlmError(
                f"A worker process of step {step.name} died (often the system's memory killer). {len(running)} tasks were running. "
                "Run the same command again with fewer --workers or a smaller --memory: it goes on from here."
            ) from None
        finally:
            if running:
                self.kill()

    def kill(self) -> None:
        """End all workers at once; whatever they had not renamed into place is as if never begun."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process in list(getattr(pool, "_processes", {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)

    def _inline(self, step: Step, tasks: Sequence[Task], work_dir: str) -> Iterator[TaskResult | None]:
        slot = self.workers

        def count(amount: int) -> None:
            self._progress[slot] += amount

        listen(count)
        try:
            for task in tasks:
                counts, seconds = _run(step.work, task, step.settings, work_dir)
                yield TaskResult(task, counts, seconds)
        finally:
            listen(None)


def _run(work: Any, task: Task, settings: Any, work_dir: str) -> tuple[Counts, float]:
    start = perf_counter()
    counts = work(task, settings, work_dir)
    return counts, perf_counter() - start


def _start_worker(progress: Any, next_slot: Any, driver: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the driver
        if os.getppid() != driver:  # it died before we asked
            os._exit(1)
    with next_slot.get_lock():
        slot = next_slot.value
        next_slot.value += 1

    def count(amount: int) -> None:
        progress[slot % len(progress)] += amount

    listen(count)
