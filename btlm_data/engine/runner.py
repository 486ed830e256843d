"""Run a step: skip what a receipt proves done, map the rest, tidy up. Resuming lives here and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from btlm_data.engine import receipts
from btlm_data.engine.base import Engine
from btlm_data.engine.execute import Job
from btlm_data.engine.receipts import Receipt
from btlm_data.fingerprint import digest
from btlm_data.formats.columns import DamagedError
from btlm_data.places import Places, Stores
from btlm_data.storage.lease import Lease
from btlm_data.task import Step, StoreName, Task, TaskResult


class Events(Protocol):
    """Receives progress events (a live bar, a log, a test)."""

    def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None:
        """Tasks in `done` were proved done by their receipts."""

    def step_moved(self, step: Step, units: int, documents: int) -> None:
        """`units` of the step's work done in this run so far, and documents of finished tasks, where the step counts them."""

    def step_finished(self, step: Step, seconds: float, skipped: int) -> None:
        """All tasks of the step have receipts."""


def task_digest(step: Step, task: Task) -> str:
    """Hex SHA-256 over everything that decides a task's outputs (its lineage, as strax calls it)."""
    reads = {role: [artifact.checksum for artifact in files] for role, files in task.reads.items()}
    return digest(
        step.name, step.version, step.settings_digest, task.id, dict(task.args), list(task.inputs), reads
    )


@dataclass
class Runner:
    """Runs steps over one work folder. The listing of each step's folder is read once per step, not a file at a time."""

    places: Places
    stores: Stores
    engine: Engine
    events: Events
    lease: Lease | None = None
    # Names in the work folder that a step of this run, or the pipeline, has named; see `tidy`.
    named: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    num_tasks: dict[str, int] = field(default_factory=dict)

    def proved(self, step: Step) -> dict[str, TaskResult]:
        """Results of the tasks whose receipts are of the right digest and whose outputs are there with their sizes."""
        there = self._listing(step)
        done: dict[str, TaskResult] = {}
        by_task = receipts.read_all(self.stores.work, step.name)
        for task in step.tasks:
            receipt = by_task.get(task.id)
            if receipt is not None and self._is_proof(receipt, step, task, there):
                done[task.id] = receipt.result()
        return done

    def is_done(self, step: Step) -> bool:
        """Whether every task of a step is proved done."""
        return len(self.proved(step)) == len(step.tasks)

    def run(self, step: Step) -> list[TaskResult]:
        """Make sure that every task of `step` is done; returns their results in task order, whatever order they ran in.

        Files in the step's folder that no task names are removed before and after: what another run left is never
        there to be read.
        """
        start = perf_counter()
        digests = {task.id: task_digest(step, task) for task in step.tasks}
        assert len(digests) == len(step.tasks), f"step {step.name} has two tasks of one id"
        done = self.proved(step)
        todo = [task for task in step.tasks if task.id not in done]
        self._forget(step, todo, done)
        self.events.step_started(step, todo, [task for task in step.tasks if task.id in done])
        before, documents = self.engine.progress(), 0
        jobs = [Job.of(step, task, digests[task.id], self.places) for task in todo]
        with self.removing_damaged():
            for receipt in self.engine.map(jobs):
                if self.lease is not None:
                    self.lease.check()
                if receipt is not None:
                    result = receipt.result()
                    done[result.task_id] = result
                    documents += result.counts.extra.get("documents", 0)
                self.events.step_moved(step, self.engine.progress() - before, documents)
        results = [done[task.id] for task in step.tasks]
        self._keep_only(step, results)
        self.seconds[step.name] = self.seconds.get(step.name, 0.0) + perf_counter() - start
        self.num_tasks[step.name] = len(step.tasks)
        self.events.step_finished(step, perf_counter() - start, len(step.tasks) - len(todo))
        return results

    @contextlib.contextmanager
    def removing_damaged(self) -> Iterator[None]:
        """Remove a damaged work file that is met in the block, so that the next run makes it again."""
        try:
            yield
        except DamagedError as error:
            self.stores[error.artifact.store].delete([error.artifact.name])
            raise

    def discard(self, *steps: Step) -> None:
        """Remove the outputs of steps that only intermediate steps needed; their receipts go too."""
        for step in steps:
            self.discard_files(step.folder)
            self.discard_files(f"{receipts.FOLDER}/{step.name}")

    def discard_files(self, folder: str) -> None:
        """Remove all files below a folder of the work store."""
        self.stores.work.delete(entry.name for entry in self.stores.work.list(folder))

    def tidy(self, folders: Collection[str]) -> None:
        """Remove every file below `folders` of the work store that this run has not named: other settings' leftovers."""
        for folder in folders:
            self.stores.work.delete(
                entry.name for entry in self.stores.work.list(folder) if entry.name not in self.named
            )

    def _listing(self, step: Step) -> dict[tuple[StoreName, str], int]:
        """Sizes of the files that the step's tasks may have written."""
        there: dict[tuple[StoreName, str], int] = {
            ("work", entry.name): entry.size for entry in self.stores.work.list(step.folder)
        }
        folders = {
            (store, name.rpartition("/")[0])
            for task in step.tasks
            for store, name in task.outputs
            if store != "work"
        }
        for store, folder in sorted(folders):
            there |= {(store, entry.name): entry.size for entry in self.stores[store].list(folder)}
        return there

    def _is_proof(
        self, receipt: Receipt, step: Step, task: Task, there: dict[tuple[StoreName, str], int]
    ) -> bool:
        """Whether the receipt proves that the task is done."""
        if receipt.digest != task_digest(step, task):
            return False
        outputs = {(artifact.store, artifact.name): artifact.size for artifact in receipt.artifacts}
        is_whole = all(there.get(place) == size for place, size in outputs.items())
        return is_whole and outputs.keys() >= set(task.outputs)

    def _forget(self, step: Step, todo: Sequence[Task], done: dict[str, TaskResult]) -> None:
        """Remove receipts that no longer describe what will stand there, and files that no planned task names."""
        kept_receipts = {receipts.name_of(step.name, task_id) for task_id in done}
        self.stores.work.delete(
            entry.name
            for entry in self.stores.work.list(f"{receipts.FOLDER}/{step.name}")
            if entry.name not in kept_receipts
        )
        named = {
            artifact.name
            for result in done.values()
            for artifact in result.outputs
            if artifact.store == "work"
        }
        resumed = tuple(task.resumes for task in todo if task.resumes is not None)
        self.stores.work.delete(
            entry.name
            for entry in self.stores.work.list(step.folder)
            if entry.name not in named and not entry.name.startswith(resumed)
        )

    def _keep_only(self, step: Step, results: Sequence[TaskResult]) -> None:
        named = {
            artifact.name for result in results for artifact in result.outputs if artifact.store == "work"
        }
        self.stores.work.delete(
            entry.name for entry in self.stores.work.list(step.folder) if entry.name not in named
        )
        self.named |= named | {receipts.name_of(step.name, result.task_id) for result in results}
