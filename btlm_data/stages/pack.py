"""Decide which rows each stream becomes, where that follows from what is in it; and what tasks are told of streams.

reads   a stretch of a stream (stages/stream.py)
writes  pack/cut/NAME-NUMBER.cols: the columns that the format lays down (formats/shard_formats)
unit    a stretch, as the format asks for; most formats ask for none
balance tokens in = tokens kept as label positions + what the format drops, by reason

What rows are is the format's to say (ShardFormat); here are the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.engine.runner import Runner
from btlm_data.estimate import Estimate, Workload
from btlm_data.fingerprint import digest
from btlm_data.formats.shard_formats import FORMATS, get_format, load_format
from btlm_data.formats.shard_formats.base import Packing, ShardFormat, StreamSize, Stretch
from btlm_data.formats.shard_formats.writer import ShardOptions
from btlm_data.recipe.models import Settings
from btlm_data.stages.stream import Bucket, StreamIndex, StreamReader
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 3
TOKENS_PER_FILE = 16_777_216  # default shard: 8,192 samples of 2,048 tokens
Int64Array = npt.NDArray[np.int64]


class SampleSet(msgspec.Struct, frozen=True):
    """One split of one prepared set. folder: relative to the output folder, "train" or "msl2048/train"."""

    folder: str
    index: StreamIndex
    packing: Packing

    @property
    def size(self) -> StreamSize:
        """The stream in numbers."""
        return StreamSize(self.index.num_tokens, self.index.num_documents)

    @property
    def name(self) -> str:
        """For ids of tasks."""
        return f"{self.packing.seq_len}-{self.index.stream.name}"


class StreamSource(msgspec.Struct, frozen=True):
    """Where tasks find the tokens of streams. lineage: of everything that decides the streams. blocks: of the run."""

    lineage: str
    memory_per_worker: int
    blocks: Sequence[Block]

    def reads(
        self,
        index: StreamIndex,
        buckets: Sequence[Bucket],
        packed: Sequence[Artifact] = (),
        sent: Artifact | None = None,
    ) -> dict[str, Any]:
        """The fields of a Task that reads some buckets of a stream and packed files, or what was sent.

        Which files hold the tokens follows from the lineage and the memory: it is no part of the digest.
        """
        through = {"tokens": [index.tokens], "index": [bucket.file for bucket in buckets], "packed": packed}
        through["sent"] = [] if sent is None else [sent]
        return {"inputs": [self.lineage], "through": through, "hints": {"buckets": buckets}}


class FormatSettings(msgspec.Struct, frozen=True):
    """The format that tasks of `pack` and `shard` work for. module: where any process finds it."""

    name: str
    module: str

    @staticmethod
    def of(name: str) -> FormatSettings:
        """For a registered format."""
        return FormatSettings(name, FORMATS[name])

    @property
    def shard_format(self) -> ShardFormat:
        """The format itself."""
        return load_format(self.module)

    @property
    def digest(self) -> str:
        """Of what decides rows and bytes, besides the arguments of each task."""
        return digest(VERSION, self.name)


class PackedSet(NamedTuple):
    """What is packed of a split. files: of its stretches in order; rows: of the split that each of these fills. sent: the list of
    files that have its pieces (pieces.py), if these were sent; first_group: of its shards there.
    """

    files: tuple[Artifact, ...] = ()
    rows: tuple[int, ...] = ()
    sent: Artifact | None = None
    first_group: int = 0


def prepared_streams(workload: Workload) -> list[tuple[StreamSize, Packing]]:
    """The streams that become shards, all splits of a prepared length together, and how each is packed."""
    settings, stream = workload.settings, workload.stream
    dtype = f"uint{8 * workload.token_bytes}"
    prepared = []
    for part in settings.seq_len:
        share = 1.0 if part.share is None else part.share
        size = StreamSize(round(stream.tokens * share), round(stream.documents * share))
        prepared.append((size, packing_of(settings, part.seq_len, "train", dtype, workload.eos_id)))
    return prepared


def estimate(workload: Workload) -> list[Estimate]:
    """What packing stretches takes; nothing where the format needs none."""
    rates, shard_format = workload.rates, get_format(workload.settings.format)
    tasks = packed_bytes = longest = 0
    for size, packing in prepared_streams(workload):
        stretches = shard_format.stretches(size, packing, workload.run.memory_per_worker)
        if stretches:
            tasks += len(stretches) + workload.splits - 1
            packed_bytes += shard_format.packed_bytes(size, packing)
            longest = max(longest, *(stop - start for _, (start, stop) in stretches))
    if not tasks:
        return []
    return [
        Estimate(
            "pack.cut",
            tasks=tasks,
            documents=workload.stream.documents,
            read_bytes=32 * workload.stream.documents,
            reads=8 * tasks,
            work_bytes=packed_bytes,
            memory_bytes=rates.process_bytes + 4 * workload.token_bytes * longest,
            cpu_seconds=tasks * rates.task + packed_bytes * rates.pack_byte,
        )
    ]


def reads_of_stretches(workload: Workload, stretches: int) -> int:
    """Reads of tokens that so many stretches of a stream make out of every block."""
    of_a_stretch = min(workload.blocks, -(-workload.stream.documents // max(1, stretches)))
    return stretches * (8 + of_a_stretch)


def packing_of(
    settings: Settings, seq_len: int, split: str, dtype: str, eos_id: int, borders: Sequence[int] = ()
) -> Packing:
    """How a recipe packs one split. dtype: of the stream's tokens. borders: between phases, in tokens."""
    shards = settings.shards
    element_type = get_format(settings.format).element_type(shards.dtype, dtype)
    return Packing(
        seq_len=seq_len,
        split=split,
        samples_per_file=shards.samples_per_file or max(1, TOKENS_PER_FILE // seq_len),
        tail=settings.tail,
        is_shuffled=settings.shuffle == "samples",
        seed=settings.seed,
        max_documents=settings.max_documents_per_sample or 0,
        eos_id=eos_id,
        dtype=dtype,
        storage=ShardOptions(shards.compression, shards.level, shards.hdf5_shuffle, element_type),
        borders=tuple(borders),
    )


def plan(sample_sets: Sequence[SampleSet], settings: FormatSettings, source: StreamSource) -> Step:
    """A task per stretch of each split that the format wants packed."""
    tasks = []
    for sample_set in sample_sets:
        stretches = settings.shard_format.stretches(
            sample_set.size, sample_set.packing, source.memory_per_worker
        )
        for number, stretch in enumerate(stretches):
            start, stop = stretch.tokens
            reads = source.reads(sample_set.index, sample_set.index.overlapping(start, stop))
            name = f"{sample_set.name}-{number:06d}"
            tasks.append(
                Task(
                    id=name,
                    args={
                        "packing": sample_set.packing.to_json(),
                        "size": list(sample_set.size),
                        "rows": list(stretch.rows),
                        "tokens": [start, stop],
                    },
                    outputs=[("work", f"pack/cut/{name}.cols")],
                    weight=stop - start,
                    **reads | {"hints": reads["hints"] | {"folder": sample_set.folder}},
                )
            )
    return Step("pack.cut", VERSION, work, tasks, settings, settings.digest, "token")


def run(
    runner: Runner, sample_sets: Sequence[SampleSet], source: StreamSource, settings: FormatSettings
) -> dict[str, PackedSet]:
    """What is packed of each split, by its folder."""
    packed = {sample_set.folder: PackedSet() for sample_set in sample_sets}
    step = plan(sample_sets, settings, source)
    for task, result in zip(step.tasks, runner.run(step) if step.tasks else [], strict=True):
        folder = task.hints["folder"]
        rows = (*packed[folder].rows, int(result.counts.extra["rows"]))
        packed[folder] = PackedSet((*packed[folder].files, *result.outputs), rows)
    return packed


def work(task: Task, settings: FormatSettings, files: TaskFiles) -> Counts:
    """Pack one stretch."""
    args = task.args
    start, stop = args["tokens"]
    packing = Packing.from_json(args["packing"])
    stretch = Stretch((args["rows"][0], args["rows"][1]), (start, stop))
    stream = TaskStream.of(task, packing, files)
    packed = settings.shard_format.pack(stretch, StreamSize(*args["size"]), packing, stream)
    files.write_columns(task.outputs[0][1], packed.columns)
    advance(stop - start)
    return Counts(extra={"rows": packed.rows})


class TaskStream(StreamReader, frozen=True):
    """The stream that a task planned with a StreamSource names, as formats see it (StreamAccess)."""

    @classmethod
    def of(cls, task: Task, packing: Packing, files: TaskFiles) -> TaskStream:
        """The stream of a task."""
        [listed] = task.through["tokens"]
        return cls(files, listed, task.hints["buckets"], packing.dtype, packing.eos_id)

    def documents(self, start: int, stop: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Block, first token in the block, and length (without EOS) of the documents that begin in [start,
        stop). Each is (n,) int64.
        """
        names = ("block", "start", "length")
        parts: list[list[Int64Array]] = [[np.empty(0, np.int64)] * len(names)]
        for bucket in self.buckets:
            index = self.files.columns(bucket.file)
            bounds = [max(0, start - bucket.start), max(0, stop - bucket.start)]
            first, last = np.searchsorted(index["offset"], bounds).tolist()
            parts.append([index.rows(name, first, last).astype(np.int64) for name in names])
        block, begin, length = (np.concatenate([part[i] for part in parts]) for i in range(len(names)))
        return block, begin, length

    def tokens_of_block(self, block: int, starts: Int64Array, lengths: Int64Array) -> npt.NDArray[Any]:
        """A block's tokens, of which those in [starts[i], starts[i] + lengths[i]) may be looked at. starts,
        lengths: (n,) int64. Returns (tokens,) in the dtype of the tokens.
        """
        return self._opened(block).scattered("tokens", starts, lengths)
