"""What people look at beside the shards (lists of rejects, evidence of deduplication), copied out of the work folder.

reads   one file of the work folder
writes  the same into the dataset, with the SHA-256 that dataset.json names
unit    a file
"""

from __future__ import annotations

from collections.abc import Mapping

from btlm_data.advance import advance
from btlm_data.estimate import Estimate, Workload
from btlm_data.task import Artifact, Counts, Task
from btlm_data.task_files import TaskFiles


def estimate(workload: Workload) -> list[Estimate]:
    """What copying takes, besides what is listed of rejects and duplicates, of which nobody knows how many there are."""
    settings, rates = workload.settings, workload.rates
    files = 2 + 2 * (settings.dedupe.method != "none") + (workload.evaluation_bytes > 0)
    tasks = files * len(settings.seq_len)
    return [
        Estimate(
            "shard.beside",
            tasks,
            memory_bytes=rates.process_bytes,
            cpu_seconds=tasks * rates.task,
            is_beside=True,
        )
    ]


def tasks_of(sources: Mapping[str, Artifact]) -> list[Task]:
    """A task per file, for `copy`. sources: its name in the dataset -> the file that is copied."""
    return [
        Task(
            id=name.replace("/", "-"),
            reads={"file": [source]},
            outputs=[("out", name)],
        )
        for name, source in sorted(sources.items())
    ]


def copy(task: Task, files: TaskFiles) -> Counts:
    """Copy one file. Raises DamagedError if it is not the one named, and leaves nothing."""
    store, name = task.outputs[0]
    with files.create_in_order(name, store) as writer:
        for piece in files.pieces(task.reads["file"][0]):
            writer.write(piece)
    advance(1)
    file = {"name": name.rpartition("/")[2], "bytes": writer.size, "sha256": writer.sha256}
    return Counts(extra={"file": file})
