"""data.json: what a run read, so that any step's samples can be named later, and any sample's steps.

A run is continued after every stop, perhaps with another batch size or on more ranks. Each time it begins or
continues, it adds a *part*: the step and the number of samples it began at, and everything that decides the
order. A part's steps end where a later part begins; what was trained after that point was lost with its
process.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from btlm_data.errors import ConfigError, DataError
from btlm_data.formats.sealed_json import NO_CHECKSUM, Sha256, checksum_of, sealed
from btlm_train.data.loader import RestartableDataLoader
from btlm_train.data.mixture import Mixture
from btlm_train.data.order import SampleOrder
from btlm_train.data.samples import HDF5Dataset, Subset
from btlm_train.files import read_bytes, write_bytes

FILE_NAME = "data.json"
MAX_BYTES = 1 << 30
Int64Array = npt.NDArray[np.int64]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Positive = Annotated[int, Meta(ge=1, le=2**62)]


class ShardRead(msgspec.Struct, frozen=True, array_like=True):
    """A shard as the run read it. path: absolute, or a URL. rows: of the file (corpus: tokens)."""

    path: str
    rows: Count
    sha256: str | None


class SourceRead(msgspec.Struct, frozen=True):
    """One set of shards. length: tokens of a sample where the shards are a corpus, else None. weight: in the
    mixture.
    """

    shards: list[ShardRead]
    subset: str | None
    weight: float | None
    length: Positive | None


class Part(msgspec.Struct, frozen=True):
    """A stretch of a run that was not interrupted. step, samples: where it began; until: its last step, as
    planned.
    """

    step: Count
    samples: Count
    until: Count
    batch_size: Positive
    world_size: Positive
    drop_last: bool
    pad_last: bool
    shuffle: bool
    seed: Count
    num_samples: Positive | None
    sources: list[SourceRead]


class History(msgspec.Struct, frozen=True):
    """data.json. run: the run's identity (run_folder.py)."""

    run: str
    parts: list[Part]
    format_version: Literal[1] = 1
    checksum: Sha256 = NO_CHECKSUM


class Seen(NamedTuple):
    """A sample in a run. query: which of the rows requested; sample: its number in its set; step: counted
    from 0, the batch that brings the model from this step to the next; rank: whose slice of the batch it is
    in; batch_index: its position in the global batch; epoch.
    """

    query: int
    sample: int
    step: int
    rank: int
    batch_index: int
    epoch: int


class InBatch(NamedTuple):
    """A sample of a batch. batch_index: its position in the global batch; shard: absolute path of the file
    where it begins; row: in it (of a corpus: its first token); length: rows that it takes (of a corpus: its
    input tokens, which may continue in the next shard).
    """

    batch_index: int
    rank: int
    shard: str
    row: int
    length: int


# Writing ----------------------------------------------------------------------------------------------------


def describe_part(loader: RestartableDataLoader, step: int, until: int) -> Part:
    """The part that a loader, set to where it begins, is going to be."""
    dataset, batches = loader.dataset, loader.batches
    assert isinstance(dataset, HDF5Dataset)
    config = dataset.config
    weights: list[float | None] = [None]
    subsets = [config.data_subset]
    if config.mixture is not None:
        used = [entry for entry in config.mixture if entry.weight > 0]
        weights, subsets = [entry.weight for entry in used], [entry.data_subset for entry in used]
    sources = [
        SourceRead(
            [
                ShardRead(file.path, file.rows, source.shards.sha256.get(file.path))
                for file in source.shards.files
            ],
            subset,
            weight,
            None if source.by_sample else source.sequence_length,
        )
        for source, subset, weight in zip(dataset.sources, subsets, weights, strict=True)
    ]
    return Part(
        step=step,
        samples=batches.start,
        until=until,
        batch_size=batches.batch_size,
        world_size=batches.world_size,
        drop_last=batches.drop_last,
        pad_last=batches.pad_last,
        shuffle=config.shuffle,
        seed=config.shuffle_seed,
        num_samples=config.num_samples,
        sources=sources,
    )


def add_part(folder: Path, run: str, part: Part) -> None:
    """Write down, in a run's folder, that a part begins. Hold the folder's lock."""
    present = read_history(folder)
    earlier = present.parts if present is not None and present.run == run else []
    write_bytes(folder / FILE_NAME, sealed(msgspec.to_builtins(History(run, [*earlier, part]))))


def read_history(folder: Path) -> History | None:
    """What a run's folder says it read; None where it says nothing. Raises DataError if the file is damaged."""
    path = folder / FILE_NAME
    try:
        data = read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        tree = msgspec.json.decode(data, type=dict[str, Any])
        if tree.get("checksum") != checksum_of(tree):
            raise ValueError("its checksum is not that of its content")  # noqa: TRY301
        return msgspec.convert(tree, type=History)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}). Restore it from a copy of the run.") from None


# Reading ----------------------------------------------------------------------------------------------------


class _Set:
    """The samples of one source, and where its shards are end to end."""

    def __init__(self, source: SourceRead) -> None:
        self.source = source
        self.ends = np.cumsum([shard.rows for shard in source.shards], dtype=np.int64)
        total = int(self.ends[-1])
        self.count = total if source.length is None else max(0, (total - 1) // source.length)
        self.subset = Subset(source.subset, self.count)

    def number_of(self, path: str, sha256: str | None) -> int | None:
        """The number of a shard, by its path, else by its content."""
        by_path = {shard.path: number for number, shard in enumerate(self.source.shards)}
        if (number := by_path.get(path)) is not None:
            return number
        return next(
            (
                n
                for n, shard in enumerate(self.source.shards)
                if sha256 is not None and shard.sha256 == sha256
            ),
            None,
        )


class Steps:
    """The steps of one part: which samples each takes, and the other way round."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.sets = [_Set(source) for source in part.sources]
        lengths = [len(samples_of_set.subset) for samples_of_set in self.sets]
        weights = [source.weight for source in part.sources]
        self.mixture: Mixture | None = None
        if weights[0] is not None:
            plain = [weight or 0.0 for weight in weights]
            self.mixture = Mixture(lengths, plain, not part.shuffle, part.seed)
        total = lengths[0] if self.mixture is None else len(self.mixture)
        self.order = SampleOrder(total, part.num_samples, part.shuffle, part.seed)

    def span(self, step: int) -> tuple[int, int]:
        """The positions [first, end) of the stream that a step of the run takes."""
        part, length = self.part, self.order.epoch_length
        number = step - part.step
        if part.drop_last:  # what fills no batch opens the next epoch: there are no gaps
            first = part.samples + number * part.batch_size
            return first, first + part.batch_size
        stop = (part.samples // length + 1) * length
        first_pass = -(-(stop - part.samples) // part.batch_size)
        if number < first_pass:
            first = part.samples + number * part.batch_size
        else:
            epochs, within = divmod(number - first_pass, -(-length // part.batch_size))
            first = stop + epochs * length + within * part.batch_size
            stop += (epochs + 1) * length
        return first, min(first + part.batch_size, stop)

    def step_of(self, position: int) -> int:
        """The inverse of `span`."""
        part, length = self.part, self.order.epoch_length
        if part.drop_last:
            return part.step + (position - part.samples) // part.batch_size
        stop = (part.samples // length + 1) * length
        if position < stop:
            return part.step + (position - part.samples) // part.batch_size
        first_pass = -(-(stop - part.samples) // part.batch_size)
        epochs, within = divmod(position - stop, length)
        return part.step + first_pass + epochs * -(-length // part.batch_size) + within // part.batch_size

    def rank_of(self, batch_index: int, count: int) -> int:
        """The rank whose slice of a batch of `count` samples holds an index."""
        if self.part.pad_last:
            count = self.part.batch_size
        ranks = self.part.world_size
        return next(rank for rank in range(ranks) if (rank + 1) * count // ranks > batch_index)

    def batch(self, step: int) -> Iterator[InBatch]:
        """The samples of one step, in their order."""
        first, end = self.span(step)
        indices = self.order.between(first, end)
        sets, samples = np.zeros_like(indices), indices
        if self.mixture is not None:
            sets, samples = self.mixture.locate(indices)
        for batch_index, (number, sample) in enumerate(zip(sets.tolist(), samples.tolist(), strict=True)):
            chosen_set = self.sets[number]
            row = int(chosen_set.subset.stored(np.array([sample]))[0])
            length = chosen_set.source.length
            row = row if length is None else row * length
            shard = bisect.bisect_right(chosen_set.ends, row)
            before = int(chosen_set.ends[shard - 1]) if shard else 0
            rank = self.rank_of(batch_index, end - first)
            yield InBatch(batch_index, rank, chosen_set.source.shards[shard].path, row - before, length or 1)

    def seen(self, asked: Sequence[tuple[str, str | None, int, int]], steps: tuple[int, int]) -> list[Seen]:
        """Where rows were seen at steps [first, last) of this part, in that order.

        asked: (path of a shard, its SHA-256, first row, one past the last row); of a corpus: tokens that are
        inputs or labels.
        """
        if steps[0] >= steps[1] or not asked:
            return []
        start, stop = self.span(steps[0])[0], self.span(steps[1] - 1)[1]
        indices, queries, samples = [], [], []
        for number, samples_of_set in enumerate(self.sets):
            query, sample = _samples_of(samples_of_set, asked)
            chosen = samples_of_set.subset.chosen(sample)
            query, sample, chosen = (values[chosen >= 0] for values in (query, sample, chosen))
            index, which = chosen, np.arange(len(chosen))
            if self.mixture is not None:
                index, which = self.mixture.indices_of(number, chosen)
            indices.append(index)
            queries.append(query[which])
            samples.append(sample[which])
        index, query, sample = (np.concatenate(parts) for parts in (indices, queries, samples))
        positions, numbers = self.order.positions_of(index, start, stop)
        sightings = []
        for position, k in zip(positions.tolist(), numbers.tolist(), strict=True):
            step = self.step_of(position)
            first, end = self.span(step)
            rank = self.rank_of(position - first, end - first)
            epoch = position // self.order.epoch_length
            sightings.append(Seen(int(query[k]), int(sample[k]), step, rank, position - first, epoch))
        return sightings


def _samples_of(
    samples_of_set: _Set, asked: Sequence[tuple[str, str | None, int, int]]
) -> tuple[Int64Array, Int64Array]:
    """(query, sample of the set) of what is requested, as far as the set has it."""
    queries, samples = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for query, (path, sha256, first, last) in enumerate(asked):
        shard = samples_of_set.number_of(path, sha256)
        if shard is None:
            continue
        base = int(samples_of_set.ends[shard - 1]) if shard else 0
        low, high = base + first, base + last
        if (
            samples_of_set.source.length is not None
        ):  # a token is an input of one sample, and perhaps the label of the one before
            low, high = (
                max(0, low - 1) // samples_of_set.source.length,
                (high - 1) // samples_of_set.source.length + 1,
            )
        numbers = np.arange(low, min(high, samples_of_set.count))
        queries.append(np.full(len(numbers), query, np.int64))
        samples.append(numbers)
    return np.concatenate(queries), np.concatenate(samples)


class RunHistory:
    """A run as its folder tells it: which samples each step took (or will take)."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the folder has no data.json, DataError if it is damaged."""
        history = read_history(folder)
        if history is None or not history.parts:
            raise ConfigError(
                f"{folder} has no {FILE_NAME}, which says what a run has read. Name the --model-dir of a run that this version "
                "of btlm-train has trained or continued."
            )
        self.folder, self.history = folder, history

    @cached_property
    def _parts(self) -> list[tuple[Steps, tuple[int, int]]]:
        """Each part with the steps [first, last) that count: those before a later part begins."""
        parts = self.history.parts
        parts_with_steps = []
        for number, part in enumerate(parts):
            end = min([part.until, *(later.step for later in parts[number + 1 :])])
            if part.step < end:
                parts_with_steps.append((Steps(part), (part.step, end)))
        return parts_with_steps

    @cached_property
    def steps_done(self) -> int:
        """Steps that the newest checkpoint includes; 0 without one."""
        from btlm_train import checkpoint

        steps = [
            state.step
            for path in checkpoint.list_steps(self.folder / "checkpoints")
            if isinstance(state := checkpoint.read_state(path), checkpoint.State)
        ]
        return max(steps, default=0)

    def batch(self, step: int) -> list[InBatch]:
        """The samples of a step. Raises ConfigError if the run has no such step."""
        for steps, (first, last) in self._parts:
            if first <= step < last:
                return list(steps.batch(step))
        ranges = ", ".join(f"{first} to {last - 1}" for _, (first, last) in self._parts)
        raise ConfigError(f"The run {self.folder} has no step {step}; it has {ranges}. Name one of them.")

    def seen(self, asked: Sequence[tuple[str, str | None, int, int]]) -> list[Seen]:
        """Where rows of shards were seen or will be, by step; see `Steps.seen`."""
        return [seen for steps, range_ in self._parts for seen in steps.seen(asked, range_)]
