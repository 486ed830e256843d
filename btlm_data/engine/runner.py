"""Run a step: skip what a receipt proves done, map the rest, tidy up. Resuming lives here and nowhere else."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from time import perf_counter
from typing import Protocol

import msgspec
from msgspec.structs import replace

from btlm_data.engine import failures, receipts
from btlm_data.engine.base import Engine, Lost
from btlm_data.engine.execute import Job, execute
from btlm_data.engine.failures import Failure
from btlm_data.engine.receipts import Receipt
from btlm_data.engine.status import StatusFile
from btlm_data.fingerprint import digest
from btlm_data.formats.columns import DamagedError
from btlm_data.locations import Locations, Stores
from btlm_data.storage.lease import Lease
from btlm_data.task import Step, StoreName, Task, TaskResult

logger = logging.getLogger(__name__)


class Events(Protocol):
    """Receives progress events (a live bar, a log, a test)."""

    def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None:
        """Tasks in `done` were proved done by their receipts."""

    def step_moved(self, step: Step, units: int, documents: int) -> None:
        """`units` of the step's work done in this run so far, and documents of finished tasks, where the step
        counts them.
        """

    def step_finished(self, step: Step, seconds: float, skipped: int) -> None:
        """All tasks of the step have receipts."""


def task_digest(step: Step, task: Task) -> str:
    """Hex SHA-256 over everything that decides a task's outputs (its lineage, as strax calls it)."""
    reads = {role: [artifact.checksum for artifact in files] for role, files in task.reads.items()}
    return digest(
        step.name, step.version, step.settings_digest, task.id, dict(task.args), list(task.inputs), reads
    )


def skipping(task: Task) -> Task:
    """The task that replaces one whose worker always dies: its input is counted, not read."""
    return replace(task, args={**task.args, "skipped": True})


class Runner(msgspec.Struct):
    """Runs steps over one work folder. The listing of each step's folder is read once per step, not a file at
    a time.

    skip_failed: tasks that were put aside (failures.py) are skipped where their step can count what is not
    read.
    """

    locations: Locations
    stores: Stores
    engine: Engine
    events: Events
    lease: Lease | None = None
    skip_failed: bool = False
    status: StatusFile | None = None
    # Names in the work folder that a step of this run, or the pipeline, has named; see `tidy`.
    named: set[str] = msgspec.field(default_factory=set)
    seconds: dict[str, float] = msgspec.field(default_factory=dict)
    num_tasks: dict[str, int] = msgspec.field(default_factory=dict)
    task_seconds: dict[str, float] = msgspec.field(default_factory=dict)  # of all tasks of a step together
    written: dict[str, int] = msgspec.field(default_factory=dict)  # bytes

    def proved(self, step: Step) -> dict[str, TaskResult]:
        """Results of the tasks whose receipts are of the right digest and whose outputs exist with their
        sizes.
        """
        sizes = self._listing(step)
        done: dict[str, TaskResult] = {}
        by_task = receipts.read_all(self.stores.work, step.name)
        for task in step.tasks:
            receipt = by_task.get(task.id)
            if receipt is not None and self._is_proof(receipt, step, task, sizes):
                done[task.id] = receipt.result()
        return done

    def is_done(self, step: Step) -> bool:
        """Whether every task of a step is proved done."""
        return len(self.proved(step)) == len(step.tasks)

    def run(self, step: Step) -> list[TaskResult]:
        """Make sure that every task of `step` is done; returns their results in task order, whatever order
        they ran in.

        Files in the step's folder that no task names are removed before and after: what another run left is
        never there to be read.
        """
        start = perf_counter()
        assert len({task.id for task in step.tasks}) == len(step.tasks), (
            f"{step.name} has two tasks of one id"
        )
        done = self.proved(step)
        todo = [task for task in step.tasks if task.id not in done]
        self._forget(step, todo, done)
        self.events.step_started(step, todo, [task for task in step.tasks if task.id in done])
        if self.status is not None:
            self.status.step_started(step, todo, len(done))
        with self.removing_damaged():
            failed = self._do(step, todo, done)
        if failed:
            raise failures.stop(failed, self.stores.work, can_skip=step.skip is not None)
        results = [done[task.id] for task in step.tasks]
        self._keep_only(step, results)
        self.seconds[step.name] = self.seconds.get(step.name, 0.0) + perf_counter() - start
        self.num_tasks[step.name] = len(step.tasks)
        self.task_seconds[step.name] = sum(result.seconds for result in results)
        self.written[step.name] = sum(file.size for result in results for file in result.outputs)
        self.events.step_finished(step, perf_counter() - start, len(step.tasks) - len(todo))
        if self.status is not None:
            self.status.step_finished()
        return results

    def _do(self, step: Step, todo: Sequence[Task], done: dict[str, TaskResult]) -> list[Failure]:
        """Do the tasks; `done` gains their results. Returns those that were lost every time and could not be
        skipped.
        """
        jobs = [Job.of(step, task, task_digest(step, task), self.locations) for task in todo]
        failed = self._failed_before(step, jobs)
        known = {failure.task for failure in failed}
        titles = {job.task.id: failures.title_of(job) for job in jobs}
        before, documents = self.engine.progress(), 0
        waiting = [job for job in jobs if job.task.id not in known]
        for ended in failures.do_all(self.engine, waiting, failed):
            if self.lease is not None:
                self.lease.check()
            if isinstance(ended, Lost):
                logger.warning("%s: %s is lost: %s", step.name, failures.title_of(ended.job), ended.reason)
            result = ended.result() if isinstance(ended, Receipt) else None
            if result is not None:
                done[result.task_id] = result
                documents += result.counts.extra.get("documents", 0)
            units = self.engine.progress() - before
            self.events.step_moved(step, units, documents)
            if self.status is not None:
                self.status.step_moved(units, result, titles[result.task_id] if result is not None else "")
        for failure in failed:
            failures.write(self.stores.work, failure)
        if not self.skip_failed or step.skip is None:
            return failed
        by_id = {task.id: task for task in todo}
        for failure in failed:
            logger.warning("%s: %s is skipped (--skip-failed)", step.name, failure.title)
            task = skipping(by_id[failure.task])
            job = Job.of(replace(step, work=step.skip), task, task_digest(step, task), self.locations)
            done[task.id] = execute(job).result()
        return []

    def _failed_before(self, step: Step, jobs: Sequence[Job]) -> list[Failure]:
        """With --skip-failed: what an earlier run has put aside, which is not tried again. Without: nothing."""
        if not self.skip_failed or step.skip is None:
            failures.forget(self.stores.work, step.name)
            return []
        digests = {job.task.id: job.digest for job in jobs}
        before = failures.read_all(self.stores.work, step.name)
        return [failure for failure in before if digests.get(failure.task) == failure.digest]

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
        """Remove every file below `folders` of the work store that this run has not named: other settings'
        leftovers.
        """
        for folder in folders:
            self.stores.work.delete(
                entry.name for entry in self.stores.work.list(folder) if entry.name not in self.named
            )

    def _listing(self, step: Step) -> dict[tuple[StoreName, str], int]:
        """Sizes of the files that the step's tasks may have written."""
        sizes: dict[tuple[StoreName, str], int] = {
            ("work", entry.name): entry.size for entry in self.stores.work.list(step.folder)
        }
        folders = {
            (store, name.rpartition("/")[0])
            for task in step.tasks
            for store, name in task.outputs
            if store != "work"
        }
        for store, folder in sorted(folders):
            sizes |= {(store, entry.name): entry.size for entry in self.stores[store].list(folder)}
        return sizes

    def _is_proof(
        self, receipt: Receipt, step: Step, task: Task, sizes: dict[tuple[StoreName, str], int]
    ) -> bool:
        """Whether the receipt proves that the task is done."""
        digests = {task_digest(step, task)}
        if self.skip_failed and step.skip is not None:
            digests.add(task_digest(step, skipping(task)))
        if receipt.digest not in digests:
            return False
        outputs = {(artifact.store, artifact.name): artifact.size for artifact in receipt.artifacts}
        is_whole = all(sizes.get(output) == size for output, size in outputs.items())
        return is_whole and outputs.keys() >= set(task.outputs)

    def _forget(self, step: Step, todo: Sequence[Task], done: dict[str, TaskResult]) -> None:
        """Remove receipts that no longer describe what will be there, and files that no planned task names."""
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
