"""The records of each bucket of a stream put together: the index of that stretch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from btlm_data.advance import advance
from btlm_data.engine.runner import Runner
from btlm_data.stages import order_records
from btlm_data.stages.order_records import RECORD, Records
from btlm_data.stages.stream import ORDER_VERSION, StreamSettings
from btlm_data.storage.digest import checksum
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles, write_list

SORT_BYTES = 64 * 1024  # of one group's records that a task of `sort` reads, at least, where there are more


def plan_sort(
    runner: Runner, records: Sequence[Artifact], settings: StreamSettings, num_buckets: int
) -> Step:
    """A task per stream and bucket; where their records are in many files, per several buckets, so that it
    reads long pieces.
    """
    runner.named.add(name := "shuffle/records.json")
    listed = write_list(runner.stores.work, name, records)
    size = sum(file.size for file in records)
    together = max(1, -(-SORT_BYTES * len(records) * num_buckets // max(1, size)))
    tasks = []
    for stream in settings.streams:
        for begin in range(0, num_buckets, together):
            chosen = list(range(begin, min(begin + together, num_buckets)))
            tasks.append(
                Task(
                    id=f"{stream.name}-{begin:06d}",
                    args={"stream": stream.name, "buckets": chosen},
                    reads={"groups": [listed]},
                    outputs=[("work", f"shuffle/sort/{stream.name}-{bucket:06d}.cols") for bucket in chosen],
                )
            )
    return Step("shuffle.sort", ORDER_VERSION, sort, tasks, settings, settings.digest, "task")


def sort(task: Task, settings: StreamSettings, files: TaskFiles) -> Counts:
    """Merge some buckets of every group into the index of their stretches of the stream."""
    name, chosen = task.args["stream"], task.args["buckets"]
    first, last = chosen[0], chosen[-1] + 1
    parts: list[Records] = []
    edges = np.zeros(last - first + 1, np.int64)
    for group_file in files.read_list(task.reads["groups"][0]):
        group = files.columns(group_file)
        parts.append(order_records.read(group, name, first, last))
        bounds = group.meta["edges"][name][first - group.meta["first"] : last - group.meta["first"] + 1]
        edges += np.array(bounds, np.int64) - bounds[0]
    in_order, _ = order_records.ordered(parts, RECORD)  # ties keep the groups' order, which is the ordinals'
    written = []
    for number, (_, output) in enumerate(task.outputs):
        written.append(_write_bucket(files, output, in_order[edges[number] : edges[number + 1]]))
    advance(1)
    return Counts(extra={"buckets": written})


def _write_bucket(files: TaskFiles, name: str, records: Records) -> dict[str, Any]:
    """Write the index of one bucket; returns what the driver is to know of it.

    content: of what it says of the stream, wherever the tokens are.
    """
    length = np.ascontiguousarray(records["length"])
    ordinal = np.ascontiguousarray(records["ordinal"])
    ends = np.cumsum(length.astype(np.uint64) + np.uint64(1))
    offset = ends - length - np.uint64(1)
    arrays = {
        "block": np.ascontiguousarray(records["block"]),
        "start": np.ascontiguousarray(records["start"]),
        "length": length,
        "ordinal": ordinal,
        "offset": offset,
    }
    files.write_columns(name, arrays)
    return {
        "num_tokens": int(ends[-1]) if len(ends) else 0,
        "num_documents": len(length),
        "content": checksum(ordinal.tobytes() + length.tobytes()),
    }
