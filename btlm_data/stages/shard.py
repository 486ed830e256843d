"""Write the shards: the only step whose outputs lie in the dataset folder.

reads   packed samples (stages/pack.py), or a stretch of a stream where samples are not shuffled
writes  OUT/SPLIT/data-NNNNN.h5 (formats/shard_formats), each under its name only when whole
unit    a shard
balance rows of all shards = samples; mask positions of all shards = label positions kept
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from btlm_data.advance import advance
from btlm_data.fingerprint import digest
from btlm_data.formats.shard_formats import order
from btlm_data.formats.shard_formats import writer as shard_files
from btlm_data.recipe.models import ShardSettings
from btlm_data.stages import pack
from btlm_data.stages.pack import PackSettings, SampleSet
from btlm_data.stages.streams import gather, gather_samples
from btlm_data.task import Counts, Task

VERSION = 1


@dataclass(frozen=True)
class WriteSettings:
    """How the rows are laid down."""

    pack: PackSettings
    shards: ShardSettings
    out: str  # the dataset folder, relative to the work folder where it can be

    @property
    def digest(self) -> str:
        """Of what decides a shard's bytes."""
        return digest(VERSION, self.pack.digest, self.shards, self.pack.settings.format)

    def options(self, corpus: bool) -> shard_files.ShardOptions:
        """For the writer. A corpus is stored in the tokens' own type where that is wanted or fits."""
        s = self.shards
        small = self.pack.dtype == "uint16"
        dtype = ("uint16" if small else "int32") if corpus else s.dtype
        return shard_files.ShardOptions(
            compression=s.compression, level=s.level, hdf5_shuffle=s.hdf5_shuffle, dtype=dtype
        )


def plan_samples(
    sample_set: SampleSet, ranges: Sequence[Task], lineage: str, settings: WriteSettings
) -> list[Task]:
    """A task per shard. ranges: the packed stretches; empty where samples are not shuffled, or are few enough to be fetched one by one.

    Which of these ways a shard's samples come is a hint, no part of the digest: the bytes are the same.
    """
    shuffled = settings.pack.settings.shuffle == "samples"
    tasks = []
    for number in range(sample_set.num_shards):
        first = number * sample_set.samples_per_file
        last = min(first + sample_set.samples_per_file, sample_set.num_samples)
        start, stop = (
            first * sample_set.seq_len,
            min(last * sample_set.seq_len + 1, sample_set.index.num_tokens),
        )
        args = {
            "seq_len": sample_set.seq_len,
            "number": number,
            "range": [first, last],
            "samples": sample_set.num_samples,
            "per_file": sample_set.samples_per_file,
            "labels": sample_set.num_labels,
            "tokens": [start, stop],
            "purpose": sample_set.purpose,
            "stream": sample_set.index.num_tokens,
            "shuffled": shuffled,
        }
        whole = (0, sample_set.index.num_tokens) if shuffled else (start, stop)
        hints = {
            "ranges": [task.outputs[0] for task in ranges],
            "buckets": [] if ranges else sample_set.index.overlapping(*whole),
        }
        output = os.path.join(settings.out, sample_set.folder, sample_set.shard_name(number))
        task_id = f"{sample_set.folder.replace('/', '-')}-{number:06d}"
        weight = (last - first) * sample_set.seq_len
        tasks.append(
            Task(id=task_id, args=args, hints=hints, inputs=[lineage], outputs=[output], weight=weight)
        )
    return tasks


def write_samples(task: Task, settings: WriteSettings, work_dir: str) -> Counts:
    """Write one shard of samples."""
    root, args = Path(work_dir), task.args
    first, last = args["range"]
    length = args["seq_len"]
    if args["shuffled"]:
        s = settings.pack.settings
        if task.hints["ranges"]:
            rows = pack.shuffled_shard(
                root, task.hints["ranges"], args["number"], args["per_file"], args["samples"]
            )
        else:
            samples = order.origins(first, last, args["samples"], s.seed, args["purpose"]).astype(np.int64)
            buckets = [tuple(bucket) for bucket in task.hints["buckets"]]
            rows = gather_samples(
                root, buckets, samples, length, args["stream"], settings.pack.dtype, settings.pack.eos_id
            )
        # Only the stream's last sample can be short, so its place is all that needs finding.
        real = None
        short = args["labels"] - (args["samples"] - 1) * length
        if short < length:
            place = int(
                order.destinations(
                    args["samples"] - 1, args["samples"], args["samples"], s.seed, args["purpose"]
                )[0]
            )
            if first <= place < last:
                real = pack.num_real(0, last - first, 2**62, length)
                real[place - first] = short
    else:
        start, stop = args["tokens"]
        stream = gather(root, task.hints["buckets"], start, stop, settings.pack.dtype, settings.pack.eos_id)
        rows = pack.cut_rows(stream, last - first, length)
        real = pack.num_real(first, last, args["labels"], length)
        if (real == length).all():
            real = None
    info = shard_files.write_samples(root / task.outputs[0], rows, real, settings.options(corpus=False))
    advance((last - first) * length)
    return file_counts(task, info)


def plan_corpus(sample_set: SampleSet, lineage: str, settings: WriteSettings) -> list[Task]:
    """A task per shard of the stream itself; shards end at multiples of TOKENS_PER_FILE tokens (or samples_per_file sequences)."""
    per_file = sample_set.samples_per_file * sample_set.seq_len
    total = sample_set.index.num_tokens
    count = -(-total // per_file)
    tasks = []
    for number, start in enumerate(range(0, total, per_file)):
        stop = min(start + per_file, total)
        name = f"data-{number:0{max(5, len(str(count - 1)))}d}.h5"
        tasks.append(
            Task(
                id=f"{sample_set.folder.replace('/', '-')}-{number:06d}",
                args={"tokens": [start, stop]},
                hints={"buckets": sample_set.index.overlapping(start, stop)},
                inputs=[lineage],
                outputs=[os.path.join(settings.out, sample_set.folder, name)],
                weight=stop - start,
            )
        )
    return tasks


def write_corpus(task: Task, settings: WriteSettings, work_dir: str) -> Counts:
    """Write one shard of the stream."""
    root = Path(work_dir)
    start, stop = task.args["tokens"]
    stream = gather(root, task.hints["buckets"], start, stop, settings.pack.dtype, settings.pack.eos_id)
    info = shard_files.write_corpus(root / task.outputs[0], stream, None, settings.options(corpus=True))
    advance(stop - start)
    return file_counts(task, info)


def file_counts(task: Task, info: shard_files.ShardInfo) -> Counts:
    """What the manifest says of a written shard."""
    file = {"name": Path(task.outputs[0]).name, "n_examples": info.n_examples, "tokens": info.num_tokens}
    return Counts(extra={"file": file | {"sha256": info.sha256, "bytes": info.num_bytes}})
