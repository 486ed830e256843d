"""The Python API: `btlm_data.prepare(recipe)` and `btlm_data.open(dataset)`. docs/api.md shows both in use.

A dataset may be a folder or a URL (s3://...); what is read is what is requested. Two runs in one process, one
after the other or in two threads, do not touch each other. Several workers are processes: a script that asks
for more than one needs Python's usual `if __name__ == "__main__":` where it has threads already.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from btlm_data import pipeline
from btlm_data.engine.runner import Events
from btlm_data.errors import DataError
from btlm_data.formats import dataset, generations, provenance
from btlm_data.formats.dataset import Dataset, SetList, Split
from btlm_data.formats.ledger import Row
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.pages import publish
from btlm_data.recipe.load import Override, load
from btlm_data.recipe.models import Recipe, Settings
from btlm_data.storage import Store, open_store

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)
RecipeLike = str | Path | Recipe | Mapping[str, Any]
_SECTIONS = frozenset({"source", "clean", "dedupe", "holdout", "tokenizer", "shards", "run"})


def prepare(recipe: RecipeLike, *, events: Events | None = None, **settings: Any) -> PreparedDataset:
    """Prepare a corpus as `btlm-data prepare` does, and open what it made.

    recipe: a recipe file, a Recipe, or a mapping with a recipe's keys ({"source": "corpus/", "seq_len": 2048,
    "run": {"out": "shards"}}). settings: more keys, laid over it; `section__key` for a key of a section
    (dedupe__method="exact", run__workers=4). events: receives progress; None ignores it. Returns the dataset,
    complete. Raises BtlmError, whose message says what to do: ConfigError for a recipe that makes no sense,
    InputError for a source that cannot be read, OutputError for a folder that cannot be written, SafetyStop.
    A run that ended is resumed by the same call.
    """
    resolved = load_recipe(recipe, **settings)
    prepared = pipeline.prepare(resolved, events or _NoEvents())
    if prepared.complete:
        run = resolved.run
        for warning in publish.write_beside(run.out, report=run.report, card=run.card):
            logger.warning(warning)
    if not prepared.complete:
        raise DataError(
            f"The run ended after the stage {resolved.run.stop_after}, as run.stop_after asks, so there is no dataset to "
            "open. Leave run.stop_after out, or use btlm_data.pipeline.prepare."
        )
    return open(resolved.run.out)


def load_recipe(recipe: RecipeLike, **settings: Any) -> Recipe:
    """A recipe, complete and checked; arguments as in `prepare`. Raises ConfigError naming the key and the
    nearest one.
    """
    overrides = {
        key.replace("__", "."): Override(value, key.replace("__", ".")) for key, value in settings.items()
    }
    if isinstance(recipe, str | Path):
        return load(Path(recipe), overrides)
    tree = recipe.model_dump(mode="json", exclude_unset=True) if isinstance(recipe, Recipe) else recipe
    given: dict[str, Override] = {}
    for key, value in tree.items():
        nested = value.items() if key in _SECTIONS and isinstance(value, Mapping) else None
        for dotted, item in ((f"{key}.{k}", v) for k, v in nested) if nested is not None else ((key, value),):
            given[dotted] = Override(item, dotted)
    return load(None, given | overrides)


def open(location: str | Path) -> PreparedDataset:
    """Open a prepared dataset: a folder or a URL. Raises DataError if there is none, or its dataset.json is
    damaged.
    """
    store = open_store(location)
    store.reach()
    entries: Sequence[generations.Listed] = ()
    if (size := store.size(generations.FILE_NAME)) is not None and size <= generations.MAX_BYTES:
        shown = f"{store.shown}/{generations.FILE_NAME}"
        entries = generations.decode(store.read(generations.FILE_NAME), shown).generations
    later = [_generation(store, f"{entry.folder}/", entry.checksum) for entry in entries[1:]]
    first = _generation(store, "", entries[0].checksum if entries else None)
    return first if not later else _joined([first, *later])


def _generation(store: Store, prefix: str, checksum: str | None) -> PreparedDataset:
    """The dataset in a folder of the store, by itself. checksum: of its dataset.json, where it is listed."""
    shown = f"{store.shown}/{prefix}{dataset.FILE_NAME}"
    value = (
        dataset.read(store) if not prefix else dataset.decode(store.read(prefix + dataset.FILE_NAME), shown)
    )
    if checksum not in (None, value.checksum):
        raise DataError(
            f"{shown} is not the one that {generations.FILE_NAME} lists. Restore both from one copy."
        )
    if isinstance(value, SetList):
        sets = {name: _opened(store, f"{prefix}{name}/") for name in value.names}
        return PreparedDataset(store, prefix, None, sets)
    return PreparedDataset(store, prefix, value, {})


def _joined(parts: Sequence[PreparedDataset]) -> PreparedDataset:
    """The generations of a dataset (or of a set) as one."""
    first = parts[0]
    sets = {name: _joined([part.sets[name] for part in parts]) for name in first.sets}
    return replace(first, sets=sets, generations=dict(enumerate(parts, 1)))


def _opened(store: Store, prefix: str) -> PreparedDataset:
    value = dataset.decode(
        store.read(prefix + dataset.FILE_NAME), f"{store.shown}/{prefix}{dataset.FILE_NAME}"
    )
    if not isinstance(value, Dataset):
        raise DataError(
            f"{store.shown}/{prefix}{dataset.FILE_NAME} describes several sets, one was expected."
        )
    return PreparedDataset(store, prefix, value, {})


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared dataset. Made by `open`.

    sets: where several sequence lengths were prepared together, each by its folder (`msl2048`); else empty,
    and the dataset itself has the splits. generations: where documents were added to it, each generation by its
    number, as a dataset of its own; else empty. The splits have the samples of all, the oldest first; the
    manifest, the ledger, the configuration and the provenance are those of the first.
    """

    _store: Store
    _prefix: str
    _manifest: Dataset | None
    sets: Mapping[str, PreparedDataset]
    generations: Mapping[int, PreparedDataset] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """The folder or URL, as people should see it."""
        return f"{self._store.shown}/{self._prefix}".rstrip("/")

    @property
    def manifest(self) -> Dataset:
        """What dataset.json says, typed. Raises DataError for a dataset of several sets: each has its own."""
        if self._manifest is None:
            raise DataError(
                f"{self.location} holds the sets {', '.join(self.sets)}. Name one: open(...).sets[NAME]."
            )
        return self._manifest

    @property
    def ledger(self) -> Sequence[Row]:
        """What every stage did with the documents of every source and split."""
        return self.manifest.ledger

    @property
    def configuration(self) -> Settings:
        """The settings that decided the data; `prepare` of them, from the same source, gives the same bytes."""
        return Settings.model_validate(
            {"source": {"name": "(not recorded)"}, **_sections(self.manifest.configuration)}
        )

    @cached_property
    def provenance(self) -> provenance.Provenance | None:
        """How it was made: file locations, times, versions. None if provenance.json is not there."""
        name = self._prefix + provenance.FILE_NAME
        if self._store.size(name) is None:
            return None
        return provenance.decode(self._store.read(name), f"{self._store.shown}/{name}")

    @cached_property
    def splits(self) -> Mapping[str, PreparedSplit]:
        """The splits by name: train, validation, test, as far as there are."""
        parts: dict[str, list[tuple[str, Split]]] = {name: [] for name in self.manifest.splits}
        for part in self.generations.values() or [self]:
            for name, split in part.manifest.splits.items():
                parts.setdefault(name, []).append((f"{part._prefix}{name}", split))
        return {name: PreparedSplit(self._store, tuple(of_split)) for name, of_split in parts.items()}

    def __getitem__(self, split: str) -> PreparedSplit:
        """A split. Raises KeyError that names those there are."""
        if split not in self.splits:
            raise KeyError(f"{self.location} has no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]


def _sections(configuration: Mapping[str, Any]) -> dict[str, Any]:
    source = configuration.get("source")
    named = {"source": {"name": "(not recorded)", **source}} if isinstance(source, Mapping) else {}
    return {**configuration, **named}


@dataclass(frozen=True)
class PreparedSplit:
    """One split: its samples (tokens, for a corpus) as a sequence, its documents as a table."""

    _store: Store
    _parts: tuple[tuple[str, Split], ...]  # folder and entry of each generation

    @property
    def num_tokens(self) -> int:
        """Label positions that are trained on (tokens, for a corpus)."""
        return sum(entry.label_tokens for _, entry in self._parts)

    @property
    def num_documents(self) -> int:
        """Documents in the split; one that a mix repeats counts each time."""
        return sum(entry.documents for _, entry in self._parts)

    @cached_property
    def _files(self) -> list[tuple[str, int]]:
        """Name and rows of every shard."""
        return [
            (f"{folder}/{file.name}", file.n_examples)
            for folder, entry in self._parts
            for file in entry.files
        ]

    @cached_property
    def _bounds(self) -> list[int]:
        """First row of every shard, and the number of rows."""
        return [0, *accumulate(rows for _, rows in self._files)]

    def __len__(self) -> int:
        """Samples (tokens, for a corpus)."""
        return self._bounds[-1]

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        """Sample `index`, (planes, L) int32: input_ids, attention_mask, labels [, attention_span,
        position_ids].

        A slice gives (n, planes, L); of a corpus, (n,) tokens. Raises IndexError beyond the end, DataError if
        a shard is damaged.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return (
                self.rows(start, max(start, stop))[::step]
                if step > 0
                else self.rows(stop + 1, start + 1)[::step]
            )
        number = range(len(self))[index]
        row: npt.NDArray[Any] = self.rows(number, number + 1)[0]
        return row

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Samples [start, stop), (n, planes, L); tokens, (n,), of a corpus. The dtype is that of the shards."""
        parts = []
        first = max(0, bisect_right(self._bounds, start) - 1)
        for number in range(first, len(self._files)):
            begin, end = self._bounds[number], self._bounds[number + 1]
            if begin >= stop:
                break
            with self._reader(number) as reader:
                parts.append(reader.read(max(start, begin) - begin, min(stop, end) - begin))
        if parts:
            return np.concatenate(parts) if len(parts) > 1 else parts[0]
        with self._reader(0) as reader:
            return reader.read(0, 0)

    def batches(self, size: int) -> Iterator[npt.NDArray[Any]]:
        """All samples in order, `size` at a time (fewer in the last): (n, planes, L). The dtype is that of
        the shards.
        """
        for start in range(0, len(self), size):
            yield self.rows(start, min(start + size, len(self)))

    def documents(self, columns: Sequence[str] | None = None) -> pyarrow.Table:
        """documents.parquet: a row per document in stream order (docs/format.md has the columns), one
        generation after the other. columns: all by default.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for folder, _ in self._parts:
            with self._store.open(f"{folder}/{dataset.DOCUMENTS}") as file:
                tables.append(pq.read_table(file, columns=list(columns) if columns is not None else None))
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default")

    def _reader(self, number: int) -> ShardReader:
        if not self._files:
            raise DataError(
                f"{self._store.shown}/{self._parts[0][0]} has no shards: its stream is too short for a sample."
            )
        return ShardReader(_StoredShard(self._store, self._files[number][0]))


class _StoredShard:
    """A shard in a store, as the shard reader wants it."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = f"{store.shown}/{name}"
        size = store.size(name)
        if size is None:
            raise DataError(
                f"The shard {self.name} is missing. Restore it from a copy, or prepare the dataset again."
            )
        self.size = size
        self._store, self._shard = store, name

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, fewer where the file ends."""
        return (
            self._store.read(self._shard, offset, min(offset + count, self.size))
            if offset < self.size
            else b""
        )

    def close(self) -> None:
        """Nothing is held open."""


class _NoEvents:
    """Ignores progress events."""

    def step_started(self, *_: object) -> None: ...

    def step_moved(self, *_: object) -> None: ...

    def step_finished(self, *_: object) -> None: ...
