"""Jobs as Ray Core tasks, on a cluster that is there (--ray-address, RAY_ADDRESS) or one that is started on
this machine.

A task gets a `Pointer` and returns a receipt: nothing large goes through Ray's object store. Ray's own
retries are off, so that tasks are tried again by the one rule that all engines share (failures.py).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from btlm_data.engine import published
from btlm_data.engine.base import EngineSettings, Lost, LostError
from btlm_data.engine.execute import Job
from btlm_data.engine.futures import Futures
from btlm_data.engine.published import Pointer
from btlm_data.engine.receipts import Receipt
from btlm_data.errors import ConfigError, install_command

_AUTOSCALER = "autoscaler/_private/monitor.py"  # the program, on Linux and macOS
_KNOCK_SECONDS = 20
_SHOWN = 300  # characters of what Ray says


class RayEngine:
    """Ray tasks of one core each. Use as a context manager: it leaves the cluster, or ends the one it
    started.
    """

    def __init__(self, settings: EngineSettings) -> None:
        try:
            import psutil  # noqa: F401
            import ray
        except ImportError:
            raise ConfigError(
                f"--engine ray needs the packages ray and psutil. Install them: {install_command('ray')}."
            ) from None
        self._ray: Any = ray
        self._settings = settings
        self._is_ours = False
        self._futures: Futures[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ours:
            self._is_ours, self._futures = False, None
            _end(self._ray)
            if error is not None:  # no task may go on behind the run's end
                _wait_for_end()

    def start(self) -> None:
        """Join the cluster, or start one. Raises ConfigError if there is none at the address."""
        if self._futures is not None:
            return
        _wait_for_end()
        if not self._ray.is_initialized():
            self._join()
        self._futures = Futures(_RayPool(self._ray, self._settings))

    def _join(self) -> None:
        address = self._settings.ray_address or os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address:
            _knock(address)
            options["address"] = address
        else:
            options |= {"num_cpus": self._settings.workers, "include_dashboard": False}
            options["_node_ip_address"] = "127.0.0.1"
        try:
            self._ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, error) from error
        except OSError as error:  # a socket's path may have 107 bytes, of which Ray's own names take 70
            raise ConfigError(
                f"Ray cannot start on this machine: {str(error)[:_SHOWN]}. If a path is too long, set TMPDIR (or RAY_TMPDIR) to a "
                "shorter one."
            ) from error
        self._is_ours = True
        if not address:
            _end_autoscaler()

    def progress(self) -> int:
        """Units of the tasks that are finished."""
        return self._futures.done if self._futures is not None else 0

    def map(self, jobs: Sequence[Job]) -> Iterator[Receipt | Lost | None]:
        """Do the jobs."""
        self.start()
        assert self._futures is not None
        return self._futures.map(jobs)


def _knock(address: str) -> None:
    """Raise ConfigError where nobody listens at HOST:PORT: Ray itself would try for many minutes. Other addresses ("auto") are
    Ray's to look up.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> ConfigError:
    return ConfigError(
        f"There is no Ray cluster at {address}: {str(error)[:_SHOWN]}. Start one (ray start --head), correct "
        "--ray-address, or leave it out to use this machine."
    )


def _end_autoscaler() -> None:
    """End the autoscaler of a cluster that this process has started: it has no nodes to start or end, and `ray.shutdown`, which
    ends it after the head, would wait for a second while it tries to tell the head. (`ray start` has --no-monitor for this.)
    """
    import psutil

    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(part.endswith(_AUTOSCALER) for part in process.cmdline()):
                process.kill()


_ending: threading.Thread | None = None


def _end(ray: Any) -> None:
    """Leave the cluster, or end it, beside what the process does next: Ray waits for more than a second for the end of its
    processes. A process that ends waits for it.
    """
    global _ending
    _wait_for_end()
    _ending = threading.Thread(target=ray.shutdown, name="ray-shutdown")
    _ending.start()
    atexit.register(_wait_for_end)  # before Ray's own, which was registered earlier


def _wait_for_end() -> None:
    """Wait until a cluster that is being left is left."""
    global _ending
    if _ending is not None:
        _ending.join()
        _ending = None
    atexit.unregister(_wait_for_end)


class _RayPool:
    """Ray, as `Futures` wants it."""

    def __init__(self, ray: Any, settings: EngineSettings) -> None:
        self._ray = ray
        self._memory = settings.memory_per_worker
        self._do = ray.remote(num_cpus=1, memory=self._memory, max_retries=0)(published.do)
        cores = int(ray.cluster_resources().get("CPU", 1))
        self.window = 2 * max(1, cores) + 2

    def submit(self, pointer: Pointer) -> Any:
        """Start a Ray task."""
        return self._do.remote(pointer)

    def wait(self, pending: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those that have ended."""
        done, _ = self._ray.wait(list(pending), num_returns=1, timeout=seconds)
        more, _ = self._ray.wait(list(pending), num_returns=len(pending), timeout=0) if done else ([], [])
        ended: list[Any] = more or done
        return ended

    def result(self, future: Any) -> bytes:
        """What the task returned."""
        try:
            data: bytes = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:_SHOWN]
            raise LostError(f"its worker is gone ({type(error).__name__}: {reason})") from error
        return data

    def cancel(self, pending: Sequence[Any]) -> None:
        """Kill what runs."""
        for future in pending:
            self._ray.cancel(future, force=True)

    def explain(self) -> str:
        """What the cluster has, against what a task needs."""
        total = self._ray.cluster_resources()
        return (
            f"Each task needs 1 core and {self._memory / 1e6:,.0f} MB; the cluster has {total.get('CPU', 0):.0f} cores "
            f"and {total.get('memory', 0) / 1e6:,.0f} MB for tasks. Add nodes, or set a smaller --memory."
        )
