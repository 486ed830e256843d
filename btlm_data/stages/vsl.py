"""VSL shards: documents bin-packed into samples, none attending across its borders.

    plan   a window of the stream -> which piece of which document stands where: work/pack/vsl-NAME-WINDOW.cols, pieces sorted by
           row: `block` uint32, `source` uint64 (token in the block), `length` uint32, `ends` bool (the document's last piece),
           `column` uint32, `edges` (rows + 1,) uint64: the pieces of each row
    shard  OUT/SPLIT/data-NNNNN.h5

A window holds the documents that begin in WINDOW_TOKENS of stream, so packing needs no memory for the corpus and is the same on every
machine; only lengths are looked at. Prefix sums over the windows' rows number the samples, `shuffle: samples` permutes those numbers.
A document of m tokens has m label positions (kernels.packing.Pieces); nothing is cropped.

balance tokens in = label positions + one a document (its first token is nobody's label)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.formats import columns
from btlm_data.formats.shard_formats import order as sample_order
from btlm_data.formats.shard_formats import writer as shard_files
from btlm_data.kernels.packing import fill_vsl, pack_documents
from btlm_data.stages.pack import PackSettings, SampleSet
from btlm_data.stages.shard import WriteSettings, file_counts
from btlm_data.stages.streams import stems
from btlm_data.task import Counts, Task

VERSION = 1
WINDOW_TOKENS = 16_777_216


@dataclass(frozen=True)
class Window:
    """One planned window: its file and how many samples it fills."""

    path: str
    num_rows: int


def plan_windows(sample_set: SampleSet, lineage: str) -> list[Task]:
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
                hints={"buckets": sample_set.index.overlapping(start, stop)},
                inputs=[lineage],
                outputs=[f"pack/{name}.cols"],
                weight=stop - start,
            )
        )
    return tasks


def plan(task: Task, settings: PackSettings, work_dir: str) -> Counts:
    """Pack the documents that begin in one window."""
    root = Path(work_dir)
    start, stop = task.args["window"]
    fields = ("block", "start", "length")
    parts: list[list[npt.NDArray[Any]]] = [[np.empty(0, np.int64)] * len(fields)]
    for path, bucket_offset in task.hints["buckets"]:
        index = columns.read(root / path)
        first, last = np.searchsorted(
            index["offset"], [max(0, start - bucket_offset), max(0, stop - bucket_offset)]
        )
        parts.append([index[name][first:last].astype(np.int64) for name in fields])
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
    columns.write(root / task.outputs[0], arrays)
    advance(stop - start)
    return Counts(extra={"rows": pieces.num_rows, "positions": int(pieces.length.sum())})


def plan_shards(
    sample_set: SampleSet, windows: Sequence[Window], lineage: str, settings: WriteSettings
) -> list[Task]:
    """A task per shard."""
    total = sum(window.num_rows for window in windows)
    count = -(-total // sample_set.samples_per_file)
    tasks = []
    for number, first in enumerate(range(0, total, sample_set.samples_per_file)):
        last = min(first + sample_set.samples_per_file, total)
        name = f"data-{number:0{max(5, len(str(count - 1)))}d}.h5"
        tasks.append(
            Task(
                id=f"{sample_set.folder.replace('/', '-')}-{number:06d}",
                args={
                    "seq_len": sample_set.seq_len,
                    "range": [first, last],
                    "samples": total,
                    "purpose": sample_set.purpose,
                },
                hints={"windows": [[window.path, window.num_rows] for window in windows]},
                inputs=[lineage],
                outputs=[os.path.join(settings.out, sample_set.folder, name)],
                weight=(last - first) * sample_set.seq_len,
            )
        )
    return tasks


def write_shard(task: Task, settings: WriteSettings, work_dir: str) -> Counts:
    """Write one shard of packed samples."""
    root, args = Path(work_dir), task.args
    first, last = args["range"]
    rows = np.arange(first, last, dtype=np.int64)
    if settings.pack.settings.shuffle == "samples":
        rows = sample_order.origins(
            first, last, args["samples"], settings.pack.settings.seed, args["purpose"]
        ).astype(np.int64)
    pieces = _pieces(root, task.hints["windows"], rows)
    planes = np.zeros((last - first, 5, args["seq_len"]), np.int32)
    names = stems(str(root))
    order = np.argsort(pieces["block"], kind="stable")
    for chosen in np.split(order, np.flatnonzero(np.diff(pieces["block"][order])) + 1) if len(order) else []:
        number = int(pieces["block"][chosen[0]])
        tokens = columns.read(root / f"{names[number]}.tokens", ["tokens"])["tokens"]
        source, length, ends, row, column = (
            pieces[name][chosen] for name in ("source", "length", "ends", "row", "column")
        )
        fill_vsl(tokens, source, length, ends, row, column, settings.pack.eos_id, planes)
    info = shard_files.write_vsl(root / task.outputs[0], planes, settings.options(corpus=False))
    advance((last - first) * args["seq_len"])
    return file_counts(task, info)


def _pieces(
    root: Path, windows: Sequence[tuple[str, int]], rows: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """The pieces of samples `rows` (numbered over all windows), with `row` their place in `rows`."""
    edges = np.cumsum([0] + [count for _, count in windows])
    window = np.searchsorted(edges, rows, side="right") - 1
    names = ("block", "source", "length", "ends", "column")
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in (*names, "row")}
    for number in np.flatnonzero(np.bincount(window, minlength=len(windows))).tolist():
        file = columns.read(root / windows[number][0])
        places = np.flatnonzero(window == number)
        first = file["edges"][rows[places] - edges[number]].astype(np.int64)
        counts = file["edges"][rows[places] - edges[number] + 1].astype(np.int64) - first
        chosen = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
        parts["row"].append(np.repeat(places, counts))
        for name in names:
            column = file[name][chosen]
            parts[name].append(column if name == "ends" else column.astype(np.int64))
    return {name: np.concatenate(values) for name, values in parts.items()}
