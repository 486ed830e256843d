"""What an engine is, and which there are. Nothing outside engine/ asks which one runs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

import msgspec

from btlm_data.engine.execute import Job
from btlm_data.engine.receipts import Receipt

# name -> module:class, imported only when chosen. An engine is a class of (EngineSettings).
ENGINES = {
    "local": "btlm_data.engine.local:LocalEngine",
    "workers": "btlm_data.engine.free_workers:FreeWorkersEngine",
    "ray": "btlm_data.engine.ray_tasks:RayEngine",
    "parsl": "btlm_data.engine.pilots:PilotEngine",
}
_ON_THIS_MACHINE = frozenset({"local"})


class EngineSettings(msgspec.Struct, frozen=True):
    """What any engine may want to know.

    workers: tasks at once. memory_per_worker: bytes that each may hold. cluster: the site file of `parsl`.
    ray_address: of the cluster that `ray` joins.
    """

    workers: int
    memory_per_worker: int = 10**9
    cluster: str | None = None
    ray_address: str | None = None


class Lost(msgspec.Struct, frozen=True):
    """A job whose worker ended before the job did: killed, crashed, its machine gone.

    reason: how the worker ended. log: what it left to read (a stack trace), or "".
    """

    job: Job
    reason: str
    log: str = ""


class LostError(Exception):
    """The worker of a job ended before the job; reason and log as in `Lost`."""

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.log = log


class Engine(Protocol):
    """Runs jobs, wherever. It alone knows how many workers there are; receipts alone say what is done."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all workers; what they had not published is as if never begun."""

    def start(self) -> None:
        """Start the workers, if that is to be done before this process has threads."""

    def map(self, jobs: Sequence[Job]) -> Iterator[Receipt | Lost | None]:
        """Do the jobs of one step, each once; yields what became of each, in any order, and None now and then
        while waiting.

        A job that is lost does not disturb the others; the caller may give it again. The first exception of a
        job ends the others and is raised here.
        """

    def progress(self) -> int:
        """Units of work reported so far by all workers, for all jobs together."""


def open_engine(name: str, settings: EngineSettings) -> Engine:
    """The engine of this name."""
    module, _, cls = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), cls)(settings)
    return engine


def is_on_this_machine(name: str) -> bool:
    """Whether tasks of this engine run only on this machine, so that its disk and memory are theirs."""
    return name in _ON_THIS_MACHINE
