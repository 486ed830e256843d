"""Cut a stream into samples and send each to its place in the shuffled order.

reads   a stretch of a stream (stages/streams.py)
writes  work/pack/NAME-RANGE.cols: `rows` (m, L+1) tokens sorted by destination, `place` (m,) uint64 destinations, `edges`
        (shards + 1,) uint64: rows of each shard
unit    a stretch of samples
balance tokens in = label positions + 1 (a stream's first token is nobody's label) + the dropped tail

Sample i of a stream takes stream[i*L : (i+1)*L + 1], so any stretch can be cut without its neighbours. Its place is a
seeded bijection of [0, n) (kernels.packing.permute_index): no table of n entries is ever made. Only `shuffle: samples` of a
stream too large for memory needs this step; otherwise a shard takes its samples from the stream directly (stages/shard.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.fingerprint import digest
from btlm_data.formats import columns
from btlm_data.formats.shard_formats.order import destinations, sample_purpose
from btlm_data.recipe.models import Settings
from btlm_data.stages.streams import Index, gather
from btlm_data.task import Counts, Task

VERSION = 1
TOKENS_PER_FILE = 16_777_216  # default shard: 8,192 samples of 2,048 tokens


@dataclass(frozen=True)
class SampleSet:
    """One prepared split of one set: how many samples of which length lie in which shards."""

    folder: str  # relative to the output folder: "train", or "msl2048/train"
    split: str
    index: Index
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


def plan(sample_set: SampleSet, lineage: str, memory_per_worker: int) -> list[Task]:
    """A task per stretch of samples."""
    step = range_samples(sample_set, memory_per_worker)
    tasks = []
    for number, first in enumerate(range(0, sample_set.num_samples, step)):
        last = min(first + step, sample_set.num_samples)
        start, stop = (
            first * sample_set.seq_len,
            min(last * sample_set.seq_len + 1, sample_set.index.num_tokens),
        )
        args = {
            "seq_len": sample_set.seq_len,
            "range": [first, last],
            "samples": sample_set.num_samples,
            "per_file": sample_set.samples_per_file,
            "shards": sample_set.num_shards,
            "tokens": [start, stop],
            "purpose": sample_set.purpose,
        }
        tasks.append(
            Task(
                id=f"{sample_set.name}-{number:06d}",
                args=args,
                hints={"buckets": sample_set.index.overlapping(start, stop)},
                inputs=[lineage],
                outputs=[f"pack/{sample_set.name}-{number:06d}.cols"],
                weight=stop - start,
            )
        )
    return tasks


def work(task: Task, settings: PackSettings, work_dir: str) -> Counts:
    """Cut one stretch into rows and sort them by destination."""
    root, args = Path(work_dir), task.args
    (first, last), (start, stop), length = args["range"], args["tokens"], args["seq_len"]
    stream = gather(root, task.hints["buckets"], start, stop, settings.dtype, settings.eos_id)
    place = destinations(first, last, args["samples"], settings.settings.seed, args["purpose"])
    order = np.argsort(place)
    rows = cut_rows(stream, last - first, length)[order]
    del stream
    place = place[order]
    shards = np.arange(args["shards"] + 1, dtype=np.uint64) * np.uint64(args["per_file"])
    columns.write(
        root / task.outputs[0],
        {"rows": rows, "place": place, "edges": np.searchsorted(place, shards).astype(np.uint64)},
    )
    advance(stop - start)
    return Counts()


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
    root: Path, ranges: Sequence[str], number: int, per_file: int, num_samples: int
) -> npt.NDArray[Any]:
    """Rows of one shard from every packed stretch, (m, L+1), in their final order; and nothing else of those files is read."""
    first, last = number * per_file, min((number + 1) * per_file, num_samples)
    rows: npt.NDArray[Any] | None = None
    filled = 0
    for path in ranges:
        file = columns.read(root / path)
        begin, end = (int(edge) for edge in file["edges"][number : number + 2])
        if begin == end:
            continue
        if rows is None:
            rows = np.empty((last - first, file["rows"].shape[1]), file["rows"].dtype)
        rows[file["place"][begin:end] - np.uint64(first)] = file["rows"][begin:end]
        filled += end - begin
    assert rows is not None
    assert filled == last - first, f"shard {number} has {filled} of {last - first} samples"
    return rows
