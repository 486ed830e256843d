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
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from btlm_data.engine.execute import Job, execute
from btlm_data.engine.receipts import Receipt
from btlm_data.errors import BtlmError

_POLL_SECONDS = 0.2
_NAME_BYTES = 512  # of the file that a worker reads: its end is what tells files apart


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
        self._reading: Any = self._context.RawArray(ctypes.c_char * _NAME_BYTES, workers)
        self._workers: dict[int, BaseProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start the workers now: before this process has threads, and after it has loaded what they should inherit."""
        if self._pool is None and self.workers > 1:
            shared = (self._progress, self._process_ids, self._next_slot, self._reading, os.getpid())
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=self._context, initializer=_start_worker, initargs=shared
            )
            try:
                self._pool.submit(os.getpid).result()
            except BrokenProcessPool:
                raise BtlmError(
                    "A worker process was killed when it started (often because the system ran out of memory). "
                    "Rerun the same command with fewer --workers; it continues from here."
                ) from None

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
                    if len(self._workers) < self.workers:
                        self._workers |= {
                            child.pid: child for child in multiprocessing.active_children() if child.pid
                        }
                if not running:
                    return
                done, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    receipt = future.result()
                    del running[future]
                    yield receipt
                yield None
        except BrokenProcessPool:
            raise BtlmError(self._obituary(jobs[0].step)) from None
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

    def _obituary(self, step: str) -> str:
        """How a worker died and of which file, in words. The pool has ended (by SIGTERM) those that had not died."""
        assert self._pool is not None
        self._pool.shutdown(wait=True, cancel_futures=True)
        dead = [child for child in self._workers.values() if child.exitcode not in (None, 0, -signal.SIGTERM)]
        names = {
            pid: bytes(name).rstrip(b"\0") for pid, name in zip(self._process_ids, self._reading, strict=True)
        }
        files = sorted({names.get(child.pid or 0, b"").decode("utf-8", "replace") for child in dead} - {""})
        where = f" while it read {' or '.join(files)}" if files else ""
        crashes = [child.exitcode for child in dead if child.exitcode != -signal.SIGKILL]
        if crashes:
            how = f"crashed ({_describe(crashes[0])}){where}"
            advice = (
                "Check that the file is whole, or take it out of the source, and rerun the same command"
                if files
                else "Rerun the same command"
            )
        else:
            how = f"was killed{where} (often because the system ran out of memory)"
            advice = "Rerun the same command with fewer --workers or a smaller --memory"
        return f"A worker process of the stage {step} {how}. {advice}; it continues from here."

    def _count(self, amount: int) -> None:
        self._progress[self.workers] += amount


def _describe(code: int | None) -> str:
    """An exit code of a process in words."""
    if code is None or code >= 0:
        return f"exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"signal {-code}, {names.get(-code, 'unknown')}"


_listeners: Any = (
    None  # of a worker process, set once when it starts: of progress, and of files that are read
)


def _execute(job: Job) -> Receipt:
    advance, reading = _listeners
    reading("")
    return execute(job, advance, reading)


def _start_worker(progress: Any, process_ids: Any, next_slot: Any, names: Any, driver: int) -> None:
    global _listeners
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

    def reading(name: str) -> None:
        names[slot].value = name.encode("utf-8", "replace")[-_NAME_BYTES:]

    _listeners = (advance, reading)
