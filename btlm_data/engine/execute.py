"""Do one task, in whatever process: open the stores, run the work function, publish its outputs, write its
receipt.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import msgspec

from btlm_data import witness
from btlm_data.advance import listening
from btlm_data.engine import receipts
from btlm_data.engine.receipts import Receipt
from btlm_data.locations import Locations
from btlm_data.task import Step, Task
from btlm_data.task_files import TaskFiles


class Job(msgspec.Struct, frozen=True):
    """A task with all that a process needs to do it. Picklable; nothing is inherited."""

    step: str
    version: int
    work: Callable[[Task, Any, TaskFiles], Any]
    settings: Any
    task: Task
    digest: str
    locations: Locations

    @staticmethod
    def of(step: Step, task: Task, digest: str, locations: Locations) -> Job:
        """A task of a step as a job."""
        return Job(step.name, step.version, step.work, step.settings, task, digest, locations)


def execute(
    job: Job, advance: Callable[[int], None] = lambda _: None, reading: Callable[[str], None] = witness.note
) -> Receipt:
    """Do the job and prove it. advance: called with units of work as they are done. reading: called with the
    name of each file from outside that is opened. Raises what the work function raises.
    """
    get_ready = getattr(job.settings, "get_ready", None)
    if get_ready is not None:  # the process's own start, not the task's time
        get_ready()
    start = perf_counter()
    stores = job.locations.open()
    files = TaskFiles(stores, job.task)
    with listening(advance, reading):
        counts = job.work(job.task, job.settings, files)
    missing = set(job.task.outputs) - {(artifact.store, artifact.name) for artifact in files.written}
    assert not missing, f"task {job.task.id} of {job.step} did not write {sorted(missing)}"
    receipt = Receipt(
        digest=job.digest,
        step=job.step,
        version=job.version,
        task=job.task.id,
        outputs=tuple((a.name, a.size, a.checksum, a.store) for a in sorted(files.written)),
        counts=counts.to_json(),
        seconds=round(perf_counter() - start, 3),
    )
    receipts.write(stores.work, receipt)
    return receipt
