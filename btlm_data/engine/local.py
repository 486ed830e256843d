"""Jobs on this machine: in this process (one worker), or in a pool of processes.

Workers die with the driver (a SIGKILLed driver leaves nobody writing to the work folder), ignore Ctrl-C (the driver
ends them), and report progress through a shared counter each. They are forked where this process has no other thread
yet (they then have the compiled kernels at once), and started afresh where it has: both do the same jobs.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self

from btlm_data.engine.execute import Job, execute
from btlm_data.engine.receipts import Receipt
from btlm_data.errors import BtlmError

_POLL_SECONDS = 0.2


class LocalEngine:
    """A pool of `workers` processes for the whole run. Use as a context manager."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        forks = sys.platform == "linux" and threading.active_count() == 1
        self._context = multiprocessing.get_context("fork" if forks else "spawn")
        self._progress: Any = self._context.RawArray(ctypes.c_uint64, workers + 1)
        self._process_ids: Any = self._context.RawArray(ctypes.c_int64, workers)
        self._next_slot: Any = self._context.Value(ctypes.c_int, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start the workers now: before this process has threads, and after it has loaded what they should inherit."""
        if self._pool is None and self.workers > 1:
            shared = (self._progress, self._process_ids, self._next_slot, os.getpid())
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=self._context, initializer=_start_worker, initargs=shared
            )
            self._pool.submit(os.getpid).result()

    def progress(self) -> int:
        """Units reported by all workers since the engine was made."""
        return int(sum(self._progress))

    def map(self, jobs: Sequence[Job]) -> Iterator[Receipt | None]:
        """Do the jobs; None is yielded about five times a second so that a bar can move."""
        if self.workers == 1 or len(jobs) == 1:
            for job in jobs:
                yield execute(job, self._count)
            return
        self.start()
        assert self._pool is not None
        waiting = iter(jobs)
        running: dict[Future[Receipt], Job] = {}
        try:
            while True:
                while len(running) < 2 * self.workers and (following := next(waiting, None)) is not None:
                    running[self._pool.submit(_execute, following)] = following
                if not running:
                    return
                done, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    receipt = future.result()
                    del running[future]
                    yield receipt
                yield None
        except BrokenProcessPool:
            step = next(iter(running.values())).step
            raise BtlmError(
                f"A worker process of the stage {step} was killed (often because the system ran out of memory). "
                f"{len(running)} tasks were running. Rerun the same command with fewer --workers or a smaller --memory; "
                "it continues from here."
            ) from None
        finally:
            if running:
                self.kill()

    def kill(self) -> None:
        """End all workers at once; what they had not published is as if never begun."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process_id in list(self._process_ids):
            if process_id:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
        pool.shutdown(wait=True, cancel_futures=True)

    def _count(self, amount: int) -> None:
        self._progress[self.workers] += amount


_advance: Any = None  # of a worker process: set once when it starts


def _execute(job: Job) -> Receipt:
    return execute(job, _advance)


def _start_worker(progress: Any, process_ids: Any, next_slot: Any, driver: int) -> None:
    global _advance
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the driver
        if os.getppid() != driver:  # it died before we asked
            os._exit(1)
    with next_slot.get_lock():
        slot = next_slot.value % len(process_ids)
        next_slot.value += 1
    process_ids[slot] = os.getpid()

    def advance(amount: int) -> None:
        progress[slot] += amount

    _advance = advance
