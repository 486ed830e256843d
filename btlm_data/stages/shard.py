"""Write the shards, and beside them the tables and lists of the dataset: the only step whose outputs are in its folder.

reads   packed files (stages/pack.py), pieces (stages/pieces.py), or a stretch of a stream where there are neither
writes  OUT/SPLIT/data-NNNNN.h5 (formats/shard_formats), each under its name only when whole; what documents.py and beside.py
        put together, a file each: one process copies and hashes such a file, meanwhile the others write shards
unit    a shard, a table, a list
balance label positions of all shards = label positions that `pack` kept
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from btlm_data.advance import advance
from btlm_data.engine.runner import Runner
from btlm_data.estimate import Estimate, Workload
from btlm_data.fingerprint import digest
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats.base import Packing, RowPlan, Shard, StreamSize, row_tokens
from btlm_data.formats.shard_formats.writer import ShardInfo
from btlm_data.stages import beside, documents, dropped, pack, pieces
from btlm_data.stages.pack import FormatSettings, PackedSet, SampleSet, StreamSource, TaskStream
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 4


def estimate(workload: Workload) -> list[Estimate]:
    """What writing the shards and the tables of documents takes; packed files are removed after it."""
    rates, stream, shard_format = workload.rates, workload.stream, get_format(workload.settings.format)
    sending = pieces.estimate(workload)
    packing = [*pack.estimate(workload), *sending]
    tasks = tokens = largest = documents_held = 0
    for size, how in pack.prepared_streams(workload):
        rows = [-(-size.tokens // how.seq_len)] if shard_format.plans_by_packing else []
        plan = shard_format.plan(size, how, rows)
        tasks += plan.num_files + workload.splits - 1
        tokens += size.tokens
        per_row = how.seq_len * 4 * max(1, len(shard_format.planes)) if shard_format.planes else 4
        if not packing and size.tokens:  # the index of as much of the stream as a shard needs is held
            start, stop = shard_format.tokens_needed(plan.rows_of(0), size, how)
            documents_held = max(documents_held, round(size.documents * (stop - start) / size.tokens))
        largest = max(largest, min(plan.rows, plan.rows_per_file) * per_row)
    packed_bytes = sum(step.work_bytes for step in packing)
    last_bytes = packing[-1].work_bytes if packing else 0
    write = Estimate(
        "shard.write",
        tasks=tasks,
        documents=stream.documents,
        read_bytes=max(last_bytes, tokens * workload.token_bytes) + (0 if packing else 32 * stream.documents),
        reads=tasks * pieces.reads_of_shard(workload)
        if sending
        else pack.reads_of_stretches(workload, tasks),
        out_bytes=round(tokens * rates.shard_token_bytes),
        memory_bytes=rates.process_bytes + 32 * documents_held + largest,
        cpu_seconds=tasks * rates.task + tokens * rates.shard_token,
    )
    *parts, tables = documents.estimate(workload)
    return [
        *parts,
        *dropped.estimate(workload),
        write,
        tables,
        *(replace(copied, freed_bytes=packed_bytes) for copied in beside.estimate(workload)),
    ]


class Planned(NamedTuple):
    """The step that writes all shards. packed_rows: how many rows each packed stretch of a split fills, by its folder."""

    step: Step
    packed_rows: dict[str, tuple[int, ...]]


def plan(
    runner: Runner, sample_sets: Sequence[SampleSet], source: StreamSource, settings: FormatSettings
) -> Planned:
    """How all shards are written. What has to be packed on disk before (stages/pack.py) is packed, and what has to be sent is."""
    packed = pack.run(runner, sample_sets, source, settings)
    writing = _step(sample_sets, packed, source, settings)
    # Nothing is sent for shards that are proved done: pieces are deleted at the end of a run.
    if pieces.are_needed(source) and not runner.is_done(writing):
        packed = pieces.sent(runner, sample_sets, packed, settings, source)
        writing = _step(sample_sets, packed, source, settings)
    return Planned(writing, {folder: packed_set.rows for folder, packed_set in packed.items()})


def _step(
    sample_sets: Sequence[SampleSet],
    packed: Mapping[str, PackedSet],
    source: StreamSource,
    settings: FormatSettings,
) -> Step:
    tasks = [
        task
        for sample_set in sample_sets
        for task in _plan_set(sample_set, packed.get(sample_set.folder, PackedSet()), source, settings)
    ]
    return Step("shard.write", VERSION, work, tasks, settings, settings.digest, "token")


def _plan_set(
    sample_set: SampleSet, packed: PackedSet, source: StreamSource, settings: FormatSettings
) -> list[Task]:
    """A task per shard.

    How its rows come to it decides no byte, and is no part of the digest.
    """
    shard_format, packing, size = settings.shard_format, sample_set.packing, sample_set.size
    rows = shard_format.plan(size, packing, packed.rows)
    rows_digest = digest(*packed.rows)
    tasks = []
    for number in range(rows.num_files):
        first, last = rows.rows_of(number)
        if packed.sent is not None:
            reads = source.reads(sample_set.index, [], (), packed.sent)
            hints: dict[str, Any] = {"group": packed.first_group + number}
        else:
            start, stop = shard_format.tokens_needed((first, last), size, packing)
            buckets = sample_set.index.overlapping(start, stop) if start < stop else []
            reads = source.reads(sample_set.index, buckets, packed.files)
            hints = {"packed_rows": packed.rows}
        tasks.append(
            Task(
                id=f"{sample_set.folder.replace('/', '-')}-{number:06d}",
                args={
                    "packing": packing.to_json(),
                    "size": list(size),
                    "plan": list(rows),
                    "number": number,
                    "packed": rows_digest,
                },
                outputs=[("out", f"{sample_set.folder}/{rows.file_name(number)}")],
                weight=(last - first) * row_tokens(shard_format, packing.seq_len),
                **reads | {"hints": reads["hints"] | hints},
            )
        )
    return tasks


def with_others(step: Step, tables: Mapping[str, Sequence[Artifact]], lists: Mapping[str, Artifact]) -> Step:
    """The step that writes the shards, with the other files of the dataset, which take longest one by one and so come first.
    tables: name -> parts, in order. lists: name -> what is copied.
    """
    others = [*documents.table_tasks(tables), *beside.tasks_of(lists)]
    return replace(step, tasks=[*others, *step.tasks])


def work(task: Task, settings: FormatSettings, files: TaskFiles) -> Counts:
    """Write one file of the dataset."""
    if "parts" in task.reads:
        return documents.write_table(task, files)
    if "file" in task.reads:
        return beside.copy(task, files)
    return _write_shard(task, settings, files)


def _write_shard(task: Task, settings: FormatSettings, files: TaskFiles) -> Counts:
    args = task.args
    packing = Packing.from_json(args["packing"])
    plan, size = RowPlan(*args["plan"]), StreamSize(*args["size"])
    shard = Shard(args["number"], plan, size, packing, tuple(task.hints.get("packed_rows", ())))
    stream = TaskStream.of(task, packing, files)
    packed = [files.columns(artifact) for artifact in task.through["packed"]]
    sent = [pieces.of_shard(files, listed, task.hints["group"]) for listed in task.through["sent"]]
    store, name = task.outputs[0]
    with files.create_measured(name, store) as creating:
        info = settings.shard_format.write(creating.file, shard, stream, packed, *sent)
        creating.size, creating.checksum = info.num_bytes, info.xxh3
    advance(task.weight)
    return _file_counts(name, info)


def _file_counts(name: str, info: ShardInfo) -> Counts:
    """What dataset.json says of a written shard."""
    file = {"name": name.rpartition("/")[2], "n_examples": info.n_examples, "tokens": info.num_tokens}
    file |= {"sha256": info.sha256, "xxh3": info.xxh3, "bytes": info.num_bytes}
    return Counts(extra={"file": file})
