"""Samples in the order in which a training run takes them, as its trainer tells it (lineage/runs.py)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from btlm_data.errors import DataError
from btlm_data.inspection import lookup
from btlm_data.lineage.runs import Run, open_run
from btlm_data.serve.served import Served

MAX_SHOWN = 20  # steps that are named beside a sample


class Taken(msgspec.Struct, frozen=True):
    """A sample of a step. batch_index: its number in the batch; rank: whose slice of it; dataset, split, number: which sample
    of what is served, None where its shard is in no dataset that is served.
    """

    batch_index: int
    rank: int
    shard: str
    row: int
    dataset: int | None = None
    split: str = ""
    number: int = 0


class TakenAt(msgspec.Struct, frozen=True):
    """A step that takes a sample, and where in its batch; done: whether the newest checkpoint includes it."""

    step: int
    rank: int
    batch_index: int
    done: bool


class Training:
    """A run beside the datasets that it reads."""

    def __init__(self, folder: Path, datasets: Sequence[Served]) -> None:
        """Raises ConfigError if no trainer that is installed knows the run."""
        self.folder = folder
        self.run: Run = open_run(folder)
        self._datasets = datasets

    @property
    def steps_done(self) -> int:
        """Steps that the newest checkpoint includes."""
        return self.run.steps_done

    def step(self, number: int) -> list[Taken]:
        """The samples of a step, in order. Raises ConfigError if the run has no such step."""
        return [
            self._located(Taken(sample.batch_index, sample.rank, sample.shard, sample.row))
            for sample in self.run.batch(number)
        ]

    def _located(self, taken: Taken) -> Taken:
        path = Path(os.path.realpath(taken.shard))
        split = path.parent.name
        for number, served in enumerate(self._datasets):
            if path.parent.parent != served.opened.root.resolve() or split not in served.splits:
                continue
            rows = served.rows(split)
            names = [file.name for file in rows.files]
            if path.name not in names:
                continue
            row = rows.first[names.index(path.name)] + taken.row
            if rows.are_tokens:
                row //= lookup.sequence_length(served.opened, rows)
            return Taken(taken.batch_index, taken.rank, taken.shard, taken.row, number, split, row)
        return taken

    def steps_of(self, served: Served, split: str, number: int) -> list[TakenAt]:
        """The first steps that take a sample of a dataset."""
        rows = served.rows(split)
        length = lookup.sequence_length(served.opened, rows) if rows.are_tokens else 1
        file, row = rows.find(number * length)
        path, manifest = rows.files[file], served.opened.manifest
        sha256 = None
        if manifest is not None:
            entries = {entry.name: entry.sha256 for entry in manifest.split(split).files}
            sha256 = entries.get(path.name)
        # Of a corpus the second token: the first one is a label of the sample before, too.
        first = row + (1 if rows.are_tokens and row + 1 < rows.end(file) - rows.first[file] else 0)
        done = self.run.steps_done
        try:
            seen = self.run.seen([(os.path.abspath(path), sha256, first, first + 1)])
        except DataError:
            return []
        return [
            TakenAt(one.step, one.rank, one.batch_index, one.step < done)
            for one in sorted(seen, key=lambda one: one.step)[:MAX_SHOWN]
        ]
