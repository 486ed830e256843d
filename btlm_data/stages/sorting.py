"""The records of each bucket of a stream put together: the index of that stretch. Before it, where tokens are
moved more than once (runs.py), ranges of keys out of many runs become runs of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.engine.runner import Runner
from btlm_data.stages import runs
from btlm_data.stages.runs import Moves, Records, Run
from btlm_data.stages.stream import ORDER_VERSION, StreamSettings
from btlm_data.storage.digest import checksum
from btlm_data.task import Counts, Step, Task, TaskResult
from btlm_data.task_files import TaskFiles, write_list

SORT_BYTES = 64 * 1024  # of one group's records that a task of `sort` reads, at least, where there are more


def plan_merge(
    number: int, by_stream: Mapping[str, Sequence[Run]], settings: StreamSettings, moves: Moves
) -> Step:
    """Pass `number` over the tokens: a task per range of keys and batch of the runs that have it."""
    tasks = []
    for stream, all_runs in by_stream.items():
        count = 0  # of the stream's runs after this pass: their numbers
        for (first, last), having in _by_range(all_runs):
            num_ranges = min(moves.fanout, last - first)
            edges = [first + (last - first) * i // num_ranges for i in range(num_ranges + 1)]
            batch = max(2, num_ranges)
            for low, high in pairwise(edges):
                for begin in range(0, len(having), batch):
                    chosen = having[begin : begin + batch]
                    tasks.append(_merge_task(number, stream, count, (low, high), chosen))
                    count += 1
    return Step(f"shuffle.merge-{number}", ORDER_VERSION, merge, tasks, settings, settings.digest, "B")


def _merge_task(number: int, stream: str, run: int, buckets: tuple[int, int], chosen: Sequence[Run]) -> Task:
    name = f"{stream}-{run:06d}"
    tokens = [source_run.tokens for source_run in chosen if source_run.tokens is not None]
    return Task(
        id=name,
        args={"stream": stream, "buckets": list(buckets), "run": run},
        reads={"records": [source_run.records for source_run in chosen], "tokens": tokens},
        outputs=[("work", f"shuffle/merge-{number}/{name}.cols")],
        weight=max(1, sum(file.size for file in tokens) * (buckets[1] - buckets[0]) // _span(chosen)),
    )


def _span(chosen: Sequence[Run]) -> int:
    return max(1, chosen[0].last - chosen[0].first) if chosen else 1


def _by_range(all_runs: Sequence[Run]) -> list[tuple[tuple[int, int], list[Run]]]:
    """The runs of each range of buckets, in order."""
    by_range: dict[tuple[int, int], list[Run]] = {}
    for run in all_runs:
        by_range.setdefault((run.first, run.last), []).append(run)
    return sorted(by_range.items())


def merge(task: Task, settings: StreamSettings, files: TaskFiles) -> Counts:
    """One run out of a range of several."""
    stream, (first, last) = task.args["stream"], task.args["buckets"]
    parts: list[Records] = []
    sources: list[npt.NDArray[Any]] = []
    edges = np.zeros(last - first + 1, np.int64)
    for records_file, tokens_file in zip(task.reads["records"], task.reads["tokens"], strict=True):
        opened = files.columns(records_file)
        part = runs.read(opened, stream, first, last).copy()
        bounds = opened.meta["edges"][stream][first - opened.meta["first"] : last - opened.meta["first"] + 1]
        edges += np.array(bounds, np.int64) - bounds[0]
        begin = int(part["start"][0]) if len(part) else 0
        end = int(part["start"][-1]) + int(part["length"][-1]) if len(part) else 0
        sources.append(files.columns(tokens_file).rows("tokens", begin, end))
        part["start"] -= np.uint64(begin)
        parts.append(part)
    in_order, origin = runs.in_order(parts)
    name = task.outputs[0][1]
    runs.move(files, name, stream, task.args["run"], sources, in_order, origin)
    runs.write(files, name, {stream: (in_order, edges)}, first)
    advance(task.weight)
    return Counts()


def plan_sort(
    runner: Runner,
    by_stream: Mapping[str, Sequence[Run]],
    settings: StreamSettings,
    num_buckets: int,
) -> Step:
    """A task per stream and bucket; where their records are in many files, per several buckets, so that it
    reads long pieces.
    """
    tasks = []
    for stream, all_runs in by_stream.items():
        for number, ((first, last), having) in enumerate(_by_range(all_runs)):
            name = f"shuffle/runs-{stream}-{number:06d}.json"
            runner.named.add(name)
            listed = write_list(runner.stores.work, name, [run.records for run in having])
            size = sum(run.records.size for run in having)
            together = max(1, -(-SORT_BYTES * len(having) * (last - first) // max(1, size)))
            for begin in range(first, last, together):
                chosen = list(range(begin, min(begin + together, last)))
                tasks.append(
                    Task(
                        id=f"{stream}-{begin:06d}",
                        args={"stream": stream, "buckets": chosen},
                        reads={"groups": [listed]},
                        outputs=[("work", f"shuffle/sort/{stream}-{bucket:06d}.cols") for bucket in chosen],
                    )
                )
    assert sum(len(task.outputs) for task in tasks) == num_buckets * len(by_stream)
    return Step("shuffle.sort", ORDER_VERSION, sort, tasks, settings, settings.digest, "task")


def sort(task: Task, settings: StreamSettings, files: TaskFiles) -> Counts:
    """Merge some buckets of every group into the index of their stretches of the stream."""
    name, chosen = task.args["stream"], task.args["buckets"]
    first, last = chosen[0], chosen[-1] + 1
    parts: list[Records] = []
    edges = np.zeros(last - first + 1, np.int64)
    for group_file in files.read_list(task.reads["groups"][0]):
        group = files.columns(group_file)
        parts.append(runs.read(group, name, first, last))
        bounds = group.meta["edges"][name][first - group.meta["first"] : last - group.meta["first"] + 1]
        edges += np.array(bounds, np.int64) - bounds[0]
    in_order, _ = runs.in_order(parts)  # ties keep the groups' order, which is the ordinals'
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


def merged_runs(step: Step, results: Sequence[TaskResult], settings: StreamSettings) -> dict[str, list[Run]]:
    """What `merge` made, by stream: ranges in order, batches within them in order."""
    by_stream: dict[str, list[Run]] = {stream.name: [] for stream in settings.streams}
    for task, result in zip(step.tasks, results, strict=True):
        files = {file.name: file for file in result.outputs}
        stream, name = task.args["stream"], task.outputs[0][1]
        run = Run(files[name], files[runs.tokens_name(name, stream)], *task.args["buckets"])
        by_stream[stream].append(run)
    return by_stream
