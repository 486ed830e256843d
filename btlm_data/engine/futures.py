"""What engines share that hand jobs to somebody else's pool and wait for futures: a bounded number at a time."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from btlm_data.engine import published
from btlm_data.engine.base import Lost, LostError
from btlm_data.engine.execute import Job
from btlm_data.engine.published import Pointer
from btlm_data.engine.receipts import Receipt
from btlm_data.storage import open_store

F = TypeVar("F")
_POLL_SECONDS = 0.2
PATIENCE = 60.0  # seconds without the first result before it is said why
logger = logging.getLogger(__name__)


class Pool(Protocol[F]):
    """Somebody else's pool of workers."""

    window: int

    def submit(self, pointer: Pointer) -> F:
        """Have `published.do(pointer)` done."""

    def wait(self, pending: Sequence[F], seconds: float) -> Sequence[F]:
        """Those of the pending ones that have ended, after `seconds` at most."""

    def result(self, future: F) -> bytes:
        """What `published.do` returned. Raises LostError."""

    def cancel(self, pending: Sequence[F]) -> None:
        """Give up what is pending."""

    def explain(self) -> str:
        """Why there is no result yet, as far as the pool knows."""


class Futures(Generic[F]):
    """Does jobs through a pool."""

    def __init__(self, pool: Pool[F]) -> None:
        self._pool = pool
        self.done = 0  # units of the tasks that are finished
        self._has_answered = False

    def map(self, jobs: Sequence[Job]) -> Iterator[Receipt | Lost | None]:
        """As `Engine.map`."""
        if not jobs:
            return
        store = open_store(jobs[0].locations.work)
        publication = published.publish(store, jobs)
        waiting, pending = deque(jobs), dict[Any, Job]()
        asked = time.monotonic()
        try:
            while waiting or pending:
                while waiting and len(pending) < self._pool.window:
                    job = waiting.popleft()
                    pending[self._pool.submit(publication.pointer(job.task.id))] = job
                for future in self._pool.wait(list(pending), _POLL_SECONDS):
                    self._has_answered = True
                    yield self._ended(future, pending.pop(future))
                if not self._has_answered and time.monotonic() - asked > PATIENCE:
                    asked = time.monotonic()
                    logger.warning("No task has been done for %.0f s. %s", PATIENCE, self._pool.explain())
                yield None
        finally:
            if pending:
                self._pool.cancel(list(pending))
            store.delete([publication.name])

    def _ended(self, future: F, job: Job) -> Receipt | Lost:
        try:
            receipt = published.outcome(self._pool.result(future))
        except LostError as error:
            return Lost(job, str(error), error.log)
        self.done += job.task.weight
        return receipt
