"""VSL shards: documents bin-packed into samples, none attending across its borders.

    plan   a window of the stream -> which piece of which document stands where: pack/vsl-NAME-WINDOW.cols, pieces sorted by
           row: `block` uint32, `source` uint64 (token in the block), `length` uint32, `ends` bool (the document's last piece),
           `column` uint32, `edges` (rows + 1,) uint64: the pieces of each row
    shard  OUT/SPLIT/data-NNNNN.h5

A window holds the documents that begin in WINDOW_TOKENS of stream, so packing needs no memory for the corpus and is the same on every
machine; only lengths are looked at. Prefix sums over the windows' rows number the samples, `shuffle: samples` permutes those numbers.
A document of m tokens has m label positions (kernels.packing.Pieces); nothing is cropped.

balance tokens in = label positions + one a document (its first token is nobody's label)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import blocks as block_table
from btlm_data.advance import advance
from btlm_data.engine.runner import Runner
from btlm_data.errors import DataError
from btlm_data.formats.shard_formats import order as sample_order
from btlm_data.formats.shard_formats import writer as shard_files
from btlm_data.kernels.packing import fill_vsl, pack_documents
from btlm_data.stages.pack import PackSettings, SampleSet, StreamSource
from btlm_data.stages.shard import WriteSettings, file_counts
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 2
WINDOW_TOKENS = 16_777_216


@dataclass(frozen=True)
class Window:
    """One planned window: its file and how many samples it fills."""

    file: Artifact
    num_rows: int


def plan_windows(sample_set: SampleSet, source: StreamSource) -> list[Task]:
    """A task per window of the stream."""
    total = sample_set.index.num_tokens
    tasks = []
    for number, start in enumerate(range(0, total, WINDOW_TOKENS)):
        stop = min(start + WINDOW_TOKENS, total)
        name = f"vsl-{sample_set.name}-{number:06d}"
        tasks.append(
            Task(
                id=name,
                args={"seq_len": sample_set.seq_len, "window": [start, stop]},
                outputs=[("work", f"pack/{name}.cols")],
                weight=stop - start,
                **source.reads(sample_set.index.overlapping(start, stop)),
            )
        )
    return tasks


def plan_all(
    runner: Runner, sample_sets: Sequence[SampleSet], source: StreamSource, settings: WriteSettings
) -> Step:
    """Pack the windows of all sets; returns the step that writes their shards."""
    planned = {s.folder: plan_windows(s, source) for s in sample_sets}
    windows = [task for tasks in planned.values() for task in tasks]
    step = Step("pack", VERSION, plan, windows, settings.pack, settings.pack.digest, "token")
    results = iter(runner.run(step))
    tasks: list[Task] = []
    for s in sample_sets:
        packed = [next(results) for _ in planned[s.folder]]
        filled = [Window(result.outputs[0], result.counts.extra["rows"]) for result in packed]
        tasks += plan_shards(s, filled, source, settings)
    return Step("shard.write", VERSION, write_shard, tasks, settings, settings.digest, "token")


def plan(task: Task, settings: PackSettings, files: TaskFiles) -> Counts:
    """Pack the documents that begin in one window."""
    start, stop = task.args["window"]
    fields = ("block", "start", "length")
    parts: list[list[npt.NDArray[Any]]] = [[np.empty(0, np.int64)] * len(fields)]
    for bucket in task.hints["buckets"]:
        index = files.columns(bucket.file)
        first, last = np.searchsorted(
            index["offset"], [max(0, start - bucket.start), max(0, stop - bucket.start)]
        ).tolist()
        parts.append([index.rows(name, first, last).astype(np.int64) for name in fields])
    block, begin, length = (np.concatenate([part[i] for part in parts]) for i in range(len(fields)))
    pieces = pack_documents(length, task.args["seq_len"], settings.settings.max_documents_per_sample or 0)
    order = np.argsort(pieces.row, kind="stable")
    document = pieces.document[order]
    arrays = {
        "block": block[document].astype(np.uint32),
        "source": (begin[document] + pieces.start[order]).astype(np.uint64),
        "length": pieces.length[order].astype(np.uint32),
        "ends": (pieces.start + pieces.length == length[pieces.document])[order],
        "column": pieces.column[order].astype(np.uint32),
        "edges": np.searchsorted(pieces.row[order], np.arange(pieces.num_rows + 1)).astype(np.uint64),
    }
    files.write_columns(task.outputs[0][1], arrays)
    advance(stop - start)
    return Counts(extra={"rows": pieces.num_rows, "positions": int(pieces.length.sum())})


def plan_shards(
    sample_set: SampleSet, windows: Sequence[Window], source: StreamSource, settings: WriteSettings
) -> list[Task]:
    """A task per shard."""
    total = sum(window.num_rows for window in windows)
    count = -(-total // sample_set.samples_per_file)
    tasks = []
    for number, first in enumerate(range(0, total, sample_set.samples_per_file)):
        last = min(first + sample_set.samples_per_file, total)
        name = f"data-{number:0{max(5, len(str(count - 1)))}d}.h5"
        reads = source.reads([])
        tasks.append(
            Task(
                id=f"{sample_set.folder.replace('/', '-')}-{number:06d}",
                args={
                    "seq_len": sample_set.seq_len,
                    "range": [first, last],
                    "samples": total,
                    "purpose": sample_set.purpose,
                    "rows": [window.num_rows for window in windows],
                },
                outputs=[("out", f"{sample_set.folder}/{name}")],
                weight=(last - first) * sample_set.seq_len,
                **reads | {"through": reads["through"] | {"windows": [window.file for window in windows]}},
            )
        )
    return tasks


def write_shard(task: Task, settings: WriteSettings, files: TaskFiles) -> Counts:
    """Write one shard of packed samples."""
    args = task.args
    first, last = args["range"]
    rows = np.arange(first, last, dtype=np.int64)
    if settings.pack.settings.shuffle == "samples":
        rows = sample_order.origins(
            first, last, args["samples"], settings.pack.settings.seed, args["purpose"]
        ).astype(np.int64)
    pieces = _pieces(files, task.through["windows"], args["rows"], rows)
    planes = np.zeros((last - first, 5, args["seq_len"]), np.int32)
    blocks = block_table.read_table(files, task.through["blocks"][0])
    order = np.argsort(pieces["block"], kind="stable")
    numbers = pieces["block"][order]
    if len(numbers) and int(numbers[-1]) >= len(blocks):
        raise DataError(f"A packed window names block {int(numbers[-1])}, and there are {len(blocks)}.")
    for chosen in np.split(order, np.flatnonzero(np.diff(numbers)) + 1) if len(order) else []:
        source, length, ends, row, column = (
            pieces[name][chosen] for name in ("source", "length", "ends", "row", "column")
        )
        opened = files.columns(blocks[int(pieces["block"][chosen[0]])].tokens)
        tokens = opened.scattered("tokens", source, length)
        fill_vsl(tokens, source, length, ends, row, column, settings.pack.eos_id, planes)
    store, name = task.outputs[0]
    with files.create(name, store) as creating:
        info = shard_files.write_vsl(creating.file, planes, settings.options(corpus=False))
    advance((last - first) * args["seq_len"])
    return file_counts(name, info)


def _pieces(
    files: TaskFiles, windows: Sequence[Artifact], num_rows: Sequence[int], rows: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """The pieces of samples `rows` (numbered over all windows), with `row` their place in `rows`."""
    edges = np.cumsum([0, *num_rows])
    window = np.searchsorted(edges, rows, side="right") - 1
    names = ("block", "source", "length", "ends", "column")
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in (*names, "row")}
    for number in np.flatnonzero(np.bincount(window, minlength=len(windows))).tolist():
        packed = files.columns(windows[number])
        bounds = packed["edges"]
        places = np.flatnonzero(window == number)
        first = bounds[rows[places] - edges[number]].astype(np.int64)
        counts = bounds[rows[places] - edges[number] + 1].astype(np.int64) - first
        chosen = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
        parts["row"].append(np.repeat(places, counts))
        for name in names:
            column = packed[name][chosen]
            parts[name].append(column if name == "ends" else column.astype(np.int64))
    return {name: np.concatenate(values) for name, values in parts.items()}
