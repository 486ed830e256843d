"""Jobs on this machine: in this process (one worker), or in a pool of processes.

With several workers a process of its own, the nursery, starts them and starts others for those that die. It
is made while this process has no other thread, where that is possible: it then has the compiled kernels, and
so has every worker, at once. Workers die with the driver (a SIGKILLed driver leaves nobody writing to the
work folder), ignore Ctrl-C (the driver ends them), and report progress through a shared counter each. A
worker that dies takes nothing with it but its own task.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from btlm_data.engine.base import EngineSettings, Lost
from btlm_data.engine.execute import Job, execute
from btlm_data.engine.receipts import Receipt
from btlm_data.errors import BtlmError

_POLL_SECONDS = 0.2
_LOG_BYTES = 20_000  # of what a worker left to read, from the end
_NAME_BYTES = 512  # of the file that a worker reads: its end is what tells files apart


class LocalEngine:
    """A pool of `workers` processes for the whole run. Use as a context manager.

    apart: also one worker is a process of its own, so that its death leaves this process.
    """

    def __init__(self, settings: EngineSettings, *, apart: bool = False) -> None:
        self.workers = settings.workers
        self._has_processes = apart or settings.workers > 1
        self._nursery: _Nursery | None = None
        self._pool: list[_Worker] = []
        self._selector = selectors.DefaultSelector()  # of the pool's connections
        self._next_watch = 0.0
        forks = sys.platform == "linux" and threading.active_count() == 1
        self._context: Any = multiprocessing.get_context("fork" if forks else "spawn")
        self._progress: Any = self._context.RawArray(ctypes.c_uint64, self.workers + 1)
        self._reading: Any = self._context.RawArray(ctypes.c_char, self.workers * _NAME_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._selector.close()

    def start(self) -> None:
        """Make the nursery now: before this process has threads, and after it has loaded what workers should
        have.
        """
        if self._nursery is None and self._has_processes:
            self._nursery = _Nursery(self._context, self._progress, self._reading)

    def progress(self) -> int:
        """Units reported by all workers since the engine was made."""
        return int(sum(self._progress))

    def map(self, jobs: Sequence[Job]) -> Iterator[Receipt | Lost | None]:
        """Do the jobs; None is yielded about five times a second so that a bar can move."""
        if not self._has_processes:
            for job in jobs:
                yield execute(job, self._count)
            return
        self.start()
        waiting = deque(jobs)
        try:
            while True:
                self._hand_out(waiting)
                if all(worker.job is None for worker in self._pool):
                    return
                for key, _ in self._selector.select(_POLL_SECONDS):
                    if key.data.job is None:  # it died while it had nothing to do
                        self._bury(key.data)
                    else:
                        yield self._ended(key.data)
                self._watch()
                yield None
        finally:
            if any(worker.job is not None for worker in self._pool):
                self.kill()

    def kill(self) -> None:
        """End all workers at once; what they had not published is as if never begun."""
        pool, self._pool = self._pool, []
        for worker in pool:
            self._selector.unregister(worker.connection)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process_id, signal.SIGKILL)
            worker.close()
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            nursery.close()

    def _hand_out(self, waiting: deque[Job]) -> None:
        """Give each idle worker a job, and start workers as long as there are jobs for them."""
        assert self._nursery is not None
        while waiting:
            idle = next((worker for worker in self._pool if worker.job is None), None)
            if idle is None:
                if len(self._pool) == self.workers:
                    return
                used = {worker.slot for worker in self._pool}
                slot = next(slot for slot in range(self.workers) if slot not in used)
                self._pool.append(idle := self._nursery.make(slot))
                self._selector.register(idle.connection, selectors.EVENT_READ, idle)
            if idle.give(waiting[0]):
                waiting.popleft()
            else:  # it died while it had nothing to do
                self._bury(idle)

    def _ended(self, worker: _Worker) -> Receipt | Lost:
        """What became of the worker's job. Raises the job's own exception."""
        job = worker.job
        assert job is not None
        try:
            ended, traceback_text = worker.connection.recv()
        except (EOFError, OSError):
            return Lost(job, *self._bury(worker))
        worker.job = None
        if isinstance(ended, BaseException):
            raise ended from _InWorkerError(traceback_text)
        assert isinstance(ended, Receipt)
        return ended

    def _bury(self, worker: _Worker) -> tuple[str, str]:
        """Take a dead worker out of the pool; returns how it died, and what it left to read."""
        assert self._nursery is not None
        self._pool.remove(worker)
        self._selector.unregister(worker.connection)
        try:
            status = self._nursery.reap(worker.process_id)
            name = _slot(self._reading, worker.slot).value.decode("utf-8", "replace")
            return worker.death(status, name), worker.log()
        finally:  # the nursery may be gone, too
            worker.close()

    def _watch(self) -> None:
        """Look at the memory of busy workers, now and then: for each task that ends it would be tasks times workers."""
        if monotonic() < self._next_watch:
            return
        self._next_watch = monotonic() + _POLL_SECONDS
        for worker in self._pool:
            if worker.job is not None:
                worker.watch()

    def _count(self, amount: int) -> None:
        self._progress[self.workers] += amount


class NurseryError(BtlmError):
    """The process that starts workers is gone."""


class _InWorkerError(Exception):
    """Shows where in a worker an exception was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Worker(msgspec.Struct):
    """A worker as the driver knows it. job: what it works on. most_resident: bytes of memory seen at most in
    that job.
    """

    slot: int
    process_id: int
    connection: Connection
    trace: BinaryIO
    job: Job | None = None
    most_resident: int = 0

    def give(self, job: Job) -> bool:
        """Send a job; False if the worker is dead."""
        try:
            self.connection.send(job)
        except OSError:
            return False
        self.job, self.most_resident = job, 0
        return True

    def watch(self) -> None:
        """Look at its memory."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{self.process_id}/statm").read_bytes().split()[1])
            self.most_resident = max(self.most_resident, pages * os.sysconf("SC_PAGE_SIZE"))

    def death(self, status: int, name: str) -> str:
        """How it died. status: its exit code, negative for a signal. name: of the file it read, or
        "".
        """
        doing = [f"read {name}"] if name else []
        doing += [f"held {self.most_resident / 1e6:,.0f} MB"] if self.most_resident else []
        details = f" while it {' and '.join(doing)}" if doing else ""
        if status == -signal.SIGKILL:
            return f"its worker was killed{details} (often because the system ran out of memory)"
        if status < 0:
            names = {number.value: number.name for number in signal.Signals}
            return f"its worker crashed{details} (signal {-status}, {names.get(-status, 'unknown')})"
        return f"its worker ended{details} with exit code {status}"

    def log(self) -> str:
        """The stack trace that a crash left."""
        size = self.trace.seek(0, os.SEEK_END)
        self.trace.seek(max(0, size - _LOG_BYTES))
        return self.trace.read().decode(errors="replace")

    def close(self) -> None:
        """Close the driver's ends."""
        self.connection.close()
        self.trace.close()


class _Nursery:
    """The process that makes workers, as the driver knows it: it handles one request at a time."""

    def __init__(self, context: Any, progress: Any, reading: Any) -> None:
        parent_end, child_end = socket.socketpair()
        self._socket = parent_end
        inherited = parent_end.fileno() if context.get_start_method() == "fork" else None
        self._process = context.Process(
            target=_nurse, args=(child_end, inherited, progress, reading, os.getpid()), name="btlm nursery"
        )
        self._process.start()
        child_end.close()

    def make(self, slot: int) -> _Worker:
        """A new worker. Raises NurseryError if the nursery is gone."""
        parent_end, child_end = multiprocessing.Pipe()
        trace = tempfile.TemporaryFile()  # noqa: SIM115 - the worker has it as long as it lives
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(parent_end.close)
            on_failure.callback(trace.close)
            with child_end:
                child = self._ask(f"make {slot}", [child_end.fileno(), trace.fileno()])
            on_failure.pop_all()
        return _Worker(slot, child, parent_end, trace)

    def reap(self, process_id: int) -> int:
        """Exit code of a worker that has ended (negative: the signal)."""
        return self._ask(f"reap {process_id}")

    def close(self) -> None:
        """End it, and with it the workers that are left."""
        self._socket.close()
        self._process.join(timeout=2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def _ask(self, request: str, descriptors: Sequence[int] = ()) -> int:
        try:
            socket.send_fds(self._socket, [request.encode()], descriptors)
            answer = self._socket.recv(64)
        except OSError:
            answer = b""
        if answer:
            return int(answer)
        raise NurseryError(
            "The process that starts worker processes was killed (often because the system ran out of memory). "
            "Rerun the same command with fewer --workers or a smaller --memory; it continues from here."
        )


def _nurse(requests: socket.socket, drivers_end: int | None, progress: Any, names: Any, driver: int) -> None:
    """Body of the nursery: make workers and tell how they ended, until the driver closes its end.

    drivers_end: the driver's descriptor, where this process has inherited it: the socket would never end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if drivers_end is not None:
        os.close(drivers_end)
    _die_with(driver)
    children: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 64, 2)
        if not message:
            break
        request, _, number = message.decode().partition(" ")
        if request == "make":
            nursery = os.getpid()
            child = os.fork()
            if child == 0:
                requests.close()
                _work(Connection(descriptors[0]), descriptors[1], int(number), (progress, names), nursery)
            for descriptor in descriptors:
                os.close(descriptor)
            children.add(child)
            requests.send(str(child).encode())
        else:
            child = int(number)
            children.discard(child)
            requests.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _work(connection: Connection, trace: int, slot: int, shared: tuple[Any, Any], nursery: int) -> None:
    """Body of a worker: do jobs until the driver closes its end. Never returns. shared: units done, names of
    files read.
    """
    code = 1
    progress, names = shared
    own = _slot(names, slot)
    try:
        _die_with(nursery)
        faulthandler.enable(trace)

        def advance(amount: int) -> None:
            progress[slot] += amount

        def reading(name: str) -> None:
            own.value = name.encode("utf-8", "replace")[-_NAME_BYTES:]

        while True:
            try:
                job: Job = connection.recv()
            except EOFError:
                code = 0
                break
            ended: tuple[Receipt | BaseException, str]
            reading("")
            try:
                ended = execute(job, advance, reading), ""
            except BaseException as error:
                ended = error, traceback.format_exc()
            try:
                connection.send(ended)
            except (TypeError, AttributeError, ValueError):  # an exception that cannot travel
                connection.send((RuntimeError(str(ended[0])), ended[1]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _slot(names: Any, slot: int) -> Any:
    """A worker's part of the shared names. They are one array, since only such a one reaches a spawned
    process.
    """
    return (ctypes.c_char * _NAME_BYTES).from_buffer(names, slot * _NAME_BYTES)


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)
