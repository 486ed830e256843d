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

import numpy as np

from btlm_data.advance import advance
from btlm_data.engine.runner import Runner
from btlm_data.fingerprint import digest
from btlm_data.formats.shard_formats import order
from btlm_data.formats.shard_formats import writer as shard_files
from btlm_data.recipe.models import ShardSettings
from btlm_data.stages import pack
from btlm_data.stages.pack import PackSettings, SampleSet, StreamSource
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 2


@dataclass(frozen=True)
class WriteSettings:
    """How the rows are laid down."""

    pack: PackSettings
    shards: ShardSettings

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


def plan(
    runner: Runner, sample_sets: Sequence[SampleSet], source: StreamSource, settings: WriteSettings
) -> Step:
    """The step that writes all shards. What has to be packed on disk before (stages/pack.py) is packed here."""
    from btlm_data.stages import vsl

    form = settings.pack.settings.format
    if form == "vsl":
        return vsl.plan_all(runner, sample_sets, source, settings)
    if form == "corpus":
        tasks = [task for s in sample_sets for task in plan_corpus(s, source, settings)]
        return Step("shard.write", VERSION, write_corpus, tasks, settings, settings.digest, "token")
    packed: dict[str, Sequence[Artifact]] = {}
    if settings.pack.settings.shuffle == "samples":
        itemsize = np.dtype(settings.pack.dtype).itemsize
        large = [s for s in sample_sets if not _fits_memory(s, itemsize)]
        todo = [
            s
            for s in large
            if not runner.is_done(_samples_step(plan_samples(s, (), source, settings), settings))
        ]
        packing = pack.plan(todo, settings.pack, source)
        for task, result in zip(packing.tasks, runner.run(packing), strict=True):
            packed[task.hints["folder"]] = [*packed.get(task.hints["folder"], ()), *result.outputs]
    tasks = [
        task for s in sample_sets for task in plan_samples(s, packed.get(s.folder, ()), source, settings)
    ]
    return _samples_step(tasks, settings)


def _samples_step(tasks: Sequence[Task], settings: WriteSettings) -> Step:
    return Step("shard.write", VERSION, write_samples, tasks, settings, settings.digest, "token")


def _fits_memory(sample_set: SampleSet, itemsize: int) -> bool:
    """Whether a stream's tokens can stay in the page cache while its samples are fetched in any order."""
    if "BTLM_SCATTER" in os.environ:  # tests make both ways run on small data; the bytes are the same
        return False
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sample_set.index.num_tokens * itemsize <= min(installed // 4, 8 * 2**30)


def plan_samples(
    sample_set: SampleSet, stretches: Sequence[Artifact], source: StreamSource, settings: WriteSettings
) -> list[Task]:
    """A task per shard.

    stretches: the packed ones; empty where samples are not shuffled, or are few enough to be fetched one by one. Which of
    these ways a shard's samples come is no part of the digest: the bytes are the same.
    """
    is_shuffled = settings.pack.settings.shuffle == "samples"
    tasks = []
    for number in range(sample_set.num_shards):
        first = number * sample_set.samples_per_file
        last = min(first + sample_set.samples_per_file, sample_set.num_samples)
        start, stop = (
            first * sample_set.seq_len,
            min(last * sample_set.seq_len + 1, sample_set.index.num_tokens),
        )
        bounds = (0, sample_set.index.num_tokens) if is_shuffled else (start, stop)
        reads = source.reads([] if stretches else sample_set.index.overlapping(*bounds))
        tasks.append(
            Task(
                id=f"{sample_set.folder.replace('/', '-')}-{number:06d}",
                args={
                    "seq_len": sample_set.seq_len,
                    "number": number,
                    "range": [first, last],
                    "samples": sample_set.num_samples,
                    "per_file": sample_set.samples_per_file,
                    "labels": sample_set.num_labels,
                    "tokens": [start, stop],
                    "purpose": sample_set.purpose,
                    "stream": sample_set.index.num_tokens,
                    "shuffled": is_shuffled,
                },
                outputs=[("out", f"{sample_set.folder}/{sample_set.shard_name(number)}")],
                weight=(last - first) * sample_set.seq_len,
                **reads | {"through": reads["through"] | {"stretches": stretches}},
            )
        )
    return tasks


def write_samples(task: Task, settings: WriteSettings, files: TaskFiles) -> Counts:
    """Write one shard of samples."""
    args = task.args
    first, last = args["range"]
    length = args["seq_len"]
    real = None
    if args["shuffled"]:
        s = settings.pack.settings
        if task.through["stretches"]:
            rows = pack.shuffled_shard(files, task.through["stretches"], args["number"], first, last)
        else:
            samples = order.origins(first, last, args["samples"], s.seed, args["purpose"]).astype(np.int64)
            rows = pack.reader(task, settings.pack, files).samples(samples, length, args["stream"])
        # Only the stream's last sample can be short, so its place is all that needs finding.
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
        stream = pack.reader(task, settings.pack, files).stretch(start, stop)
        rows = pack.cut_rows(stream, last - first, length)
        real = pack.num_real(first, last, args["labels"], length)
        if (real == length).all():
            real = None
    store, name = task.outputs[0]
    with files.create(name, store) as creating:
        info = shard_files.write_samples(creating.file, rows, real, settings.options(corpus=False))
    advance((last - first) * length)
    return file_counts(name, info)


def plan_corpus(sample_set: SampleSet, source: StreamSource, settings: WriteSettings) -> list[Task]:
    """A task per shard of the stream itself.

    Shards end at multiples of TOKENS_PER_FILE tokens (or samples_per_file sequences).
    """
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
                outputs=[("out", f"{sample_set.folder}/{name}")],
                weight=stop - start,
                **source.reads(sample_set.index.overlapping(start, stop)),
            )
        )
    return tasks


def write_corpus(task: Task, settings: WriteSettings, files: TaskFiles) -> Counts:
    """Write one shard of the stream."""
    start, stop = task.args["tokens"]
    stream = pack.reader(task, settings.pack, files).stretch(start, stop)
    store, name = task.outputs[0]
    with files.create(name, store) as creating:
        info = shard_files.write_corpus(creating.file, stream, None, settings.options(corpus=True))
    advance(stop - start)
    return file_counts(name, info)


def file_counts(name: str, info: shard_files.ShardInfo) -> Counts:
    """What dataset.json says of a written shard."""
    file = {"name": name.rpartition("/")[2], "n_examples": info.n_examples, "tokens": info.num_tokens}
    return Counts(extra={"file": file | {"sha256": info.sha256, "bytes": info.num_bytes}})
