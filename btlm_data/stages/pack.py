"""Cut a stream into samples and send each to its place in the shuffled order.

reads   a stretch of a stream (stages/stream.py)
writes  pack/NAME-RANGE.cols: `rows` (m, L+1) tokens sorted by destination, `place` (m,) uint64 destinations, `edges`
        (shards + 1,) uint64: rows of each shard
unit    a stretch of samples
balance tokens in = label positions + 1 (the first token of a stream is never a label) + the dropped tail

Sample i of a stream takes stream[i*L : (i+1)*L + 1], so any stretch can be cut without its neighbours. Its place is a
seeded bijection of [0, n) (kernels.packing.permute_index): no table of n entries is ever made. Only `shuffle: samples` of a
stream too large for memory needs this step; otherwise a shard takes its samples from the stream directly (stages/shard.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.errors import DataError
from btlm_data.fingerprint import digest
from btlm_data.formats.shard_formats.order import destinations, sample_purpose
from btlm_data.recipe.models import Settings
from btlm_data.stages.stream import Bucket, StreamIndex, StreamReader
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 2
TOKENS_PER_FILE = 16_777_216  # default shard: 8,192 samples of 2,048 tokens


@dataclass(frozen=True)
class SampleSet:
    """One prepared split of one set: how many samples of which length lie in which shards."""

    folder: str  # relative to the output folder: "train", or "msl2048/train"
    split: str
    index: StreamIndex
    seq_len: int
    samples_per_file: int
    tail: str  # "pad" or "drop"

    @property
    def num_labels(self) -> int:
        """Label positions of the stream: all tokens but the first."""
        return max(0, self.index.num_tokens - 1)

    @property
    def num_samples(self) -> int:
        """Samples, the padded one included."""
        return -(-self.num_labels // self.seq_len) if self.tail == "pad" else self.num_labels // self.seq_len

    @property
    def num_shards(self) -> int:
        """Files."""
        return -(-self.num_samples // self.samples_per_file)

    @property
    def labels_kept(self) -> int:
        """Label positions that are in some sample."""
        return min(self.num_labels, self.num_samples * self.seq_len)

    def shard_name(self, number: int) -> str:
        """File name; wide enough that text order is number order."""
        return f"data-{number:0{max(5, len(str(self.num_shards - 1)))}d}.h5"

    @property
    def purpose(self) -> str:
        """What the sample order's salt is for: a length prepared alone or beside others is shuffled alike."""
        return sample_purpose(self.seq_len, self.split)

    @property
    def name(self) -> str:
        """For task ids."""
        return f"{self.seq_len}-{self.index.stream.name}"


@dataclass(frozen=True)
class StreamSource:
    """Where tasks find the tokens of streams. table: of the blocks. lineage: of everything that decides the streams."""

    table: Artifact
    lineage: str
    memory_per_worker: int

    def reads(self, buckets: Sequence[Bucket]) -> dict[str, Any]:
        """The fields of a Task that reads some buckets of a stream.

        Which blocks hold the tokens, and so which files are read, follows from the lineage: it is no part of the digest.
        """
        return {
            "inputs": [self.lineage],
            "through": {"blocks": [self.table], "index": [bucket.file for bucket in buckets]},
            "hints": {"buckets": buckets},
        }


@dataclass(frozen=True)
class PackSettings:
    """What decides samples and their order."""

    settings: Settings
    dtype: str
    eos_id: int

    @property
    def digest(self) -> str:
        """Of what decides a sample's tokens and place."""
        s = self.settings
        return digest(VERSION, s.shuffle, s.seed, s.tail, s.max_documents_per_sample, self.dtype, self.eos_id)


def samples_per_file(settings: Settings, seq_len: int) -> int:
    """The option, or about TOKENS_PER_FILE tokens a shard."""
    return settings.shards.samples_per_file or max(1, TOKENS_PER_FILE // seq_len)


def range_samples(sample_set: SampleSet, memory_per_worker: int) -> int:
    """Samples of one task: few enough for memory (the stretch, its rows and what the blocks map), many enough that segments are long."""
    bytes_per_sample = 2 * 4 * (sample_set.seq_len + 1)
    by_memory = memory_per_worker // 4 // bytes_per_sample
    wanted = max(16_777_216 // sample_set.seq_len, sample_set.num_samples // 4096)
    return max(1, min(by_memory, wanted))


def plan(sample_sets: Sequence[SampleSet], settings: PackSettings, source: StreamSource) -> Step:
    """A task per stretch of samples of each set."""
    tasks = [task for sample_set in sample_sets for task in _plan_set(sample_set, source)]
    return Step("pack", VERSION, work, tasks, settings, settings.digest, "token")


def _plan_set(sample_set: SampleSet, source: StreamSource) -> list[Task]:
    step = range_samples(sample_set, source.memory_per_worker)
    tasks = []
    for number, first in enumerate(range(0, sample_set.num_samples, step)):
        last = min(first + step, sample_set.num_samples)
        start, stop = (
            first * sample_set.seq_len,
            min(last * sample_set.seq_len + 1, sample_set.index.num_tokens),
        )
        reads = source.reads(sample_set.index.overlapping(start, stop))
        tasks.append(
            Task(
                id=f"{sample_set.name}-{number:06d}",
                args={
                    "seq_len": sample_set.seq_len,
                    "range": [first, last],
                    "samples": sample_set.num_samples,
                    "per_file": sample_set.samples_per_file,
                    "shards": sample_set.num_shards,
                    "tokens": [start, stop],
                    "purpose": sample_set.purpose,
                },
                outputs=[("work", f"pack/{sample_set.name}-{number:06d}.cols")],
                weight=stop - start,
                **reads | {"hints": reads["hints"] | {"folder": sample_set.folder}},
            )
        )
    return tasks


def work(task: Task, settings: PackSettings, files: TaskFiles) -> Counts:
    """Cut one stretch into rows and sort them by destination."""
    args = task.args
    (first, last), (start, stop), length = args["range"], args["tokens"], args["seq_len"]
    stream = reader(task, settings, files).stretch(start, stop)
    place = destinations(first, last, args["samples"], settings.settings.seed, args["purpose"])
    order = np.argsort(place)
    rows = cut_rows(stream, last - first, length)[order]
    del stream
    place = place[order]
    shards = np.arange(args["shards"] + 1, dtype=np.uint64) * np.uint64(args["per_file"])
    edges = np.searchsorted(place, shards).astype(np.uint64)
    files.write_columns(task.outputs[0][1], {"rows": rows, "place": place, "edges": edges})
    advance(stop - start)
    return Counts()


def reader(task: Task, settings: PackSettings, files: TaskFiles) -> StreamReader:
    """Reads the stream that a task planned with a StreamSource names."""
    [table] = task.through["blocks"]
    return StreamReader(files, table, task.hints["buckets"], settings.dtype, settings.eos_id)


def cut_rows(stream: npt.NDArray[Any], num_rows: int, length: int) -> npt.NDArray[Any]:
    """Row i is stream[i*L : (i+1)*L + 1], (num_rows, L+1), a view where the stream is long enough, else padded with 0."""
    needed = num_rows * length + 1
    if len(stream) < needed:
        stream = np.concatenate([stream, np.zeros(needed - len(stream), stream.dtype)])
    return np.lib.stride_tricks.as_strided(
        stream, (num_rows, length + 1), (length * stream.itemsize, stream.itemsize), writeable=False
    )


def num_real(first: int, last: int, num_labels: int, length: int) -> npt.NDArray[np.int64]:
    """Real label positions of samples [first, last): L, and fewer for the very last one. (last - first,) int64."""
    return np.clip(num_labels - np.arange(first, last, dtype=np.int64) * length, 0, length)


def shuffled_shard(
    files: TaskFiles, stretches: Sequence[Artifact], number: int, first: int, last: int
) -> npt.NDArray[Any]:
    """Rows [first, last) of shard `number`, (last - first, L+1), in their final order, from every packed stretch.

    Nothing else of those files is read. Raises DataError if they do not hold each row once.
    """
    rows: npt.NDArray[Any] | None = None
    is_filled = np.zeros(last - first, np.bool_)
    for stretch in stretches:
        packed = files.columns(stretch)
        begin, end = (int(edge) for edge in packed.rows("edges", number, number + 2))
        if begin == end:
            continue
        part = packed.rows("rows", begin, end)
        place = packed.rows("place", begin, end).astype(np.int64) - first
        if rows is None:
            rows = np.empty((last - first, part.shape[1]), part.dtype)
        if int(place.min()) < 0 or int(place.max()) >= last - first:
            raise DataError(f"{stretch.name} holds samples that do not belong to shard {number}.")
        rows[place] = part
        is_filled[place] = True
    if rows is None or not is_filled.all():
        raise DataError(f"The packed samples of shard {number} are incomplete. Rerun the same command.")
    return rows
