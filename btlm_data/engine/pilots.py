"""Jobs in pilot jobs of a batch system, through Parsl's HighThroughputExecutor and its providers.

The site file (--cluster, engine/site.py) says which batch system, how many nodes and for how long. Parsl
starts pilot jobs there, in which processes wait for tasks; a task gets a `Pointer` and returns a receipt.
Parsl's retries are off, so that tasks are tried again by the one rule that all engines share (failures.py).
A task runs in a process of its own below Parsl's, and a keeper ends a pilot job that is broken or left alone
(pilot_node.py); Parsl then starts another, as long as there is work and pilot jobs do not end in vain.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from btlm_data.engine import published
from btlm_data.engine.base import EngineSettings, Lost, LostError
from btlm_data.engine.execute import Job
from btlm_data.engine.futures import Futures
from btlm_data.engine.published import Pointer
from btlm_data.engine.receipts import Receipt
from btlm_data.engine.site import Site, read_site
from btlm_data.errors import ConfigError, install_command

Future = concurrent.futures.Future[Any]
_SHOWN_OUTPUT = 500  # characters of what a pilot job printed last
_HEARTBEAT, _HEARTBEAT_LIMIT = 5, 60  # seconds: after the limit without one a node counts as lost
_MOST_IN_VAIN = 3  # pilot jobs for each node that may end, one after the other, without a task done
_LOCAL_LIMIT = 5  # seconds without the run after which a pilot job on its own machine ends


class PilotEngine:
    """Parsl pilot jobs. Use as a context manager: it ends them."""

    def __init__(self, settings: EngineSettings) -> None:
        try:
            import parsl  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"--engine parsl needs the package parsl. Install it: {install_command('cluster')}."
            ) from None
        self._settings = settings
        self._site = (
            read_site(settings.cluster) if settings.cluster else Site(workers_per_node=settings.workers)
        )
        self._kernel: Any = None
        self._futures: Futures[Future] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kernel is not None:
            self._kernel.cleanup()
            self._kernel = None
        if self._folder is not None:
            self._folder.cleanup()

    def start(self) -> None:
        """Nothing to start before there are jobs: pilot jobs would wait for them."""

    def progress(self) -> int:
        """Units of the tasks that are finished."""
        return self._futures.done if self._futures is not None else 0

    def map(self, jobs: Sequence[Job]) -> Iterator[Receipt | Lost | None]:
        """Do the jobs."""
        if self._futures is None:
            self._open()
        assert self._futures is not None
        return self._futures.map(jobs)

    def _open(self) -> None:
        import parsl
        from parsl.config import Config

        logging.getLogger("parsl").propagate = False  # its log is a file in the run folder
        self._folder = tempfile.TemporaryDirectory(prefix="btlm-pilots-", dir=self._site.run_folder)
        executor = make_executor(self._site, self._settings)
        config = Config(
            executors=[executor],
            run_dir=self._folder.name,
            retries=0,
            strategy="simple",  # pilot jobs that end are followed by others
            usage_tracking=0,
            initialize_logging=True,
        )
        # The programs of Parsl are looked for on the path; those beside this interpreter are meant.
        os.environ["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        )
        self._kernel = parsl.DataFlowKernel(config)
        window = 2 * self._site.nodes * self._site.workers_per_node + 2
        self._futures = Futures(_ParslPool(self._kernel, executor, window, self._site))


def make_executor(site: Site, settings: EngineSettings) -> Any:
    """Parsl's executor for a site."""
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

    from btlm_data.engine import pilot_node

    limit = _LOCAL_LIMIT if site.provider == "local" else _HEARTBEAT_LIMIT
    return HighThroughputExecutor(
        label="btlm",
        launch_cmd=pilot_node.launch_command(DEFAULT_LAUNCH_CMD, Path(sys.executable).name, limit),
        interchange_launch_cmd=pilot_node.interchange_command(),
        address="127.0.0.1" if site.provider == "local" else site.address,
        provider=site.make_provider(),
        max_workers_per_node=site.workers_per_node,
        cores_per_worker=1e-6,  # workers_per_node alone decides
        encrypted=True,
        prefetch_capacity=0,
        heartbeat_period=_HEARTBEAT,
        heartbeat_threshold=_HEARTBEAT_LIMIT,
        worker_logdir_root=site.run_folder,
    )


class _ParslPool:
    """Parsl, as `Futures` wants it."""

    def __init__(self, kernel: Any, executor: Any, window: int, site: Site) -> None:
        from parsl import python_app

        self._executor, self._site, self.window = executor, site, window
        self._ended_before: set[str] = set()  # pilot jobs that ended before the last task was done
        self._do = python_app(published.do_apart, data_flow_kernel=kernel, executors=["btlm"], cache=False)

    def submit(self, pointer: Pointer) -> Future:
        """Start an app."""
        future: Future = self._do(pointer)
        return future

    def wait(self, pending: Sequence[Future], seconds: float) -> Sequence[Future]:
        """Those that have ended. Raises ConfigError where pilot jobs end without doing anything."""
        self._check_pilots()
        done, _ = concurrent.futures.wait(
            pending, timeout=seconds, return_when=concurrent.futures.FIRST_COMPLETED
        )
        return list(done)

    def result(self, future: Future) -> bytes:
        """What the app returned."""
        from parsl.executors.errors import BadStateException
        from parsl.jobs.errors import TooManyJobFailuresError

        try:
            data: bytes = future.result()
        except (BadStateException, TooManyJobFailuresError) as error:  # not the task's fault
            raise self._in_vain(len(self._ended()), str(error)) from error
        except Exception as error:  # Parsl's own: worker lost, node lost, job ended
            reason = " ".join(str(error).split())[:300]
            raise LostError(f"its worker is gone ({type(error).__name__}: {reason})") from error
        self._ended_before = set(self._ended())
        return data

    def _ended(self) -> dict[str, Any]:
        """States of the pilot jobs that have ended by themselves."""
        from parsl.jobs.states import JobState

        taken_back = (JobState.CANCELLED, JobState.SCALED_IN)
        states = self._executor.status_facade
        return {
            block: status
            for block, status in states.items()
            if status.terminal and status.state not in taken_back
        }

    def _check_pilots(self) -> None:
        ended = self._ended()
        in_vain = [block for block in ended if block not in self._ended_before]
        if len(in_vain) < _MOST_IN_VAIN * self._site.nodes:
            return
        last = ended[in_vain[-1]]
        raise self._in_vain(
            len(in_vain), f"{last.state.name}: {last.stderr_summary or last.stdout_summary or ''}"
        )

    def _in_vain(self, count: int, output: str) -> ConfigError:
        words = " ".join(output.split())[-_SHOWN_OUTPUT:]
        return ConfigError(
            f"{count} pilot jobs of {self._site.provider} have ended, one after the other, without one task done. Of the last one is "
            f"known: {words}. Look at what the site file (--cluster) has them do: worker_init, walltime, memory and address. "
            "What is done stays done: rerun the same command to continue."
        )

    def cancel(self, pending: Sequence[Future]) -> None:
        """Nothing: Parsl cannot take a task back. All of them end with the pilot jobs."""

    def explain(self) -> str:
        """States of the pilot jobs."""
        states = {block: str(status) for block, status in self._executor.status().items()}
        listed = (
            "; ".join(f"pilot job {block}: {state}" for block, state in states.items())
            or "no pilot job was started"
        )
        return (
            f"{listed}. A pending job waits in the queue of {self._site.provider}; a running one whose tasks do not come "
            f"back cannot reach this machine at {self._executor.address or 'any of its addresses'} (site file: address)."
        )
