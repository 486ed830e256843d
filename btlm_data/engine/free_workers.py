"""Jobs for `btlm-data worker WORKDIR` processes, which come and go: array jobs, pods, shells on other
machines.

The driver posts a step's jobs on the board of the work folder (published.py) and waits for receipts. Workers
take tasks by claims (storage/claims.py). Nobody is told of anybody: the work folder is all that they share.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from btlm_data.engine import published, receipts
from btlm_data.engine.base import EngineSettings, Lost
from btlm_data.engine.execute import Job
from btlm_data.engine.pace import Pace
from btlm_data.engine.receipts import Receipt
from btlm_data.storage import Store, open_store
from btlm_data.storage.claims import WORKERS, Watch, remove_dead

logger = logging.getLogger(__name__)
_LONGEST_PAUSE = 1.0  # seconds between two looks at the work folder
_WATCH_SECONDS = 2.0  # between two looks at who is alive, at least
_WATCH_COSTS = 9  # and so many times as long as a look takes: each claim is read
LONELY_SECONDS = 60.0  # without a single worker before it is said


class FreeWorkersEngine:
    """Posts jobs, and waits for those who do them."""

    def __init__(self, settings: EngineSettings) -> None:
        self._done = 0  # units of finished tasks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""

    def start(self) -> None:
        """Nothing to start."""

    def progress(self) -> int:
        """Units of the tasks that are finished."""
        return self._done

    def map(self, jobs: Sequence[Job]) -> Iterator[Receipt | Lost | None]:
        """Post the jobs, yield what becomes of them."""
        if not jobs:
            return
        store, step = open_store(jobs[0].locations.work), jobs[0].step
        publication = published.publish(store, jobs)
        self._clear(store, step)
        published.post(store, publication, len(store.list(WORKERS)))
        try:
            yield from self._wait(store, {job.task.id: job for job in jobs})
        finally:
            published.withdraw(store)
            store.delete([publication.name])
            self._clear(store, step)

    def _wait(self, store: Store, waiting: dict[str, Job]) -> Iterator[Receipt | Lost | None]:
        watch, company = Watch(store), _Company(store)
        step = next(iter(waiting.values())).step
        pace, next_watch = Pace(_LONGEST_PAUSE), 0.0
        while waiting:
            begun = time.monotonic()
            for receipt in self._new_receipts(store, step, waiting):
                self._done += waiting.pop(receipt.task).task.weight
                yield receipt
            for entry in store.list(f"{published.ERRORS}/{step}"):
                published.outcome(store.read(entry.name))
            if begun >= next_watch:
                dead = [task for task, claim in watch.claims(step).items() if watch.is_dead(claim)]
                finished = self._new_receipts(store, step, waiting) if dead else []
                for receipt in finished:
                    self._done += waiting.pop(receipt.task).task.weight
                    yield receipt
                for task in dead:
                    if (job := waiting.pop(task, None)) is not None:
                        yield Lost(
                            job,
                            "its worker is gone: it was killed, or its machine or its connection was lost",
                        )
                company.look()
                ended = time.monotonic()
                next_watch = ended + max(_WATCH_SECONDS, _WATCH_COSTS * (ended - begun))
            yield None
            if waiting:
                time.sleep(pace.pause(time.monotonic() - begun))

    def _new_receipts(self, store: Store, step: str, waiting: dict[str, Job]) -> list[Receipt]:
        """Receipts of tasks that are waited for."""
        names = [receipts.name_of(step, task) for task in waiting]
        present = {entry.name for entry in store.list(f"{receipts.FOLDER}/{step}")}
        new = receipts.read(store, [name for name in names if name in present])
        return [
            receipt
            for receipt in new
            if receipt.task in waiting and receipt.digest == waiting[receipt.task].digest
        ]

    def _clear(self, store: Store, step: str) -> None:
        """Remove claims that dead workers left on the step, and errors."""
        watch = Watch(store)
        remove_dead(store, {f"{step}/{task}": claim for task, claim in watch.claims(step).items()}, watch)
        store.delete(entry.name for entry in store.list(f"{published.ERRORS}/{step}"))


class _Company:
    """Says when there is no worker."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._alone_since = time.monotonic()

    def look(self) -> None:
        """Count the workers; warn if there has been none for a while."""
        now = time.monotonic()
        if self._store.list(WORKERS):
            self._alone_since = now
        elif now - self._alone_since > LONELY_SECONDS:
            self._alone_since = now
            logger.warning(
                "No worker has been seen for %.0f s. Start some: btlm-data worker %s",
                LONELY_SECONDS,
                self._store.shown,
            )
