"""What is served: datasets, each generation of them by itself, work folders of runs, and a training run."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from btlm_data.errors import DataError
from btlm_data.formats import generations
from btlm_data.formats.dataset import FILE_NAME, read_set
from btlm_data.inspection.difference import Side
from btlm_data.inspection.opening import open_path
from btlm_data.serve import run_state
from btlm_data.serve.originals import Originals
from btlm_data.serve.pairs import Pairs, Verdicts
from btlm_data.serve.served import MAX_HITS, Hit, Served
from btlm_data.serve.training import Training


class Series(msgspec.Struct, frozen=True):
    """A dataset (of one set). root: the folder of the whole dataset, in which all its sets and generations are. members: the
    numbers of its generations among all that is served, the oldest first. places: the numbers of all generations of all sets
    of the whole dataset.
    """

    name: str
    root: Path
    members: tuple[int, ...]
    places: Mapping[tuple[int, str], int]


class Site:
    """Everything that one server shows. datasets: each with what is read of it; a generation is one of its own."""

    def __init__(self, paths: Sequence[Path], run: Path | None) -> None:
        """Raises DataError for a path that holds nothing to serve, ConfigError for a run that no trainer knows."""
        self.datasets: list[Served] = []
        self.series: list[Series] = []
        self.runs: list[Path] = []
        for path in paths:
            if run_state.is_work_folder(path):
                self.runs.append(path)
            else:
                self._add(path)
        self.originals = [Originals(served.opened) for served in self.datasets]
        self.verdicts = [Verdicts() for _ in self.datasets]
        self.training = Training(run, self.datasets) if run is not None else None
        self.workers = max(1, os.cpu_count() or 1)

    def _add(self, path: Path) -> None:
        opened = open_path(path)
        listed = generations.listed(opened.root) if opened.chosen is None else ()
        folders = [opened.root / entry.folder for entry in listed] or [path]
        places: dict[tuple[int, str], int] = {}
        for name in opened.sets.names if opened.sets is not None else [""]:
            shown = f"{opened.root.name}/{name}" if name else opened.path.name
            members = []
            for number, folder in enumerate(folders, 1):
                members.append(len(self.datasets))
                places[number, name] = len(self.datasets)
                label = f"{shown} (generation {number})" if len(folders) > 1 else shown
                self.datasets.append(Served(folder / name if name else folder, label))
            self.series.append(Series(shown, opened.root, tuple(members), places))

    @property
    def names(self) -> list[str]:
        """Of the datasets, each generation by itself."""
        return [served.name for served in self.datasets]

    @property
    def run_names(self) -> list[str]:
        """Of the work folders."""
        return [
            f"{path.resolve().parent.name}/.work" if path.name == ".work" else path.name for path in self.runs
        ]

    def series_of(self, k: int) -> Series:
        """The dataset that is, or has the generation, number `k`."""
        return next(series for series in self.series if k in series.members)

    def place_of(self, k: int, generation: int, set_name: str) -> int | None:
        """The number of a generation of a set of the dataset that `k` is of; None where it is not served."""
        return self.series_of(k).places.get((generation, set_name))

    def samples_before(self, k: int, split: str) -> int:
        """Samples of a split in earlier generations: readers number samples through all."""
        members = self.series_of(k).members
        earlier = [self.datasets[number] for number in members[: members.index(k)]]
        return sum(served.num_samples(split) for served in earlier if split in served.splits)

    def beside(self, k: int, split: str, sample: int, step: int) -> tuple[int, int]:
        """The dataset and sample before (step: -1) or behind (1) a sample, in the generation beside where there is none left; the
        same one at the end.
        """
        if 0 <= sample + step < self.datasets[k].num_samples(split):
            return k, sample + step
        members = self.series_of(k).members
        at = members.index(k)
        for number in members[at + 1 :] if step > 0 else members[:at][::-1]:
            served = self.datasets[number]
            total = served.num_samples(split) if split in served.splits else 0
            if total:
                return number, 0 if step > 0 else total - 1
        return k, sample

    def search(self, k: int, text: str) -> tuple[list[tuple[int, Hit]], bool]:
        """Samples that hold a text, of all generations, each with the number of its dataset; and whether those are all."""
        hits: list[tuple[int, Hit]] = []
        for number in self.series_of(k).members:
            served = self.datasets[number]
            result = served.search(text, served.splits, self.workers)
            hits += [(number, hit) for hit in result.hits]
            if not result.complete or len(hits) > MAX_HITS:
                return hits[:MAX_HITS], False
        return hits, True

    @functools.cached_property
    def comparable(self) -> list[tuple[str, tuple[int, ...]]]:
        """What can be compared: datasets with all generations, then single generations; names and numbers."""
        wholes = [(series.name, series.members) for series in self.series]
        grown = [k for series in self.series if len(series.members) > 1 for k in series.members]
        return wholes + [(self.datasets[k].name, (k,)) for k in grown]

    def side(self, number: int) -> Side:
        """One of what can be compared. Raises DataError if it has no dataset.json that can be read."""
        if number >= len(self.comparable):
            raise DataError("Two datasets are needed: serve both, and name them as a and b.")
        name, members = self.comparable[number]
        roots = [self.datasets[k].opened.root for k in members]
        if not all((root / FILE_NAME).exists() for root in roots):
            raise DataError("Only datasets with a dataset.json can be compared.")
        return Side(name, [(root, read_set(root)) for root in roots])

    @functools.cache  # noqa: B019  # one site lives as long as the process
    def pairs(self, k: int) -> Pairs:
        """The duplicate pairs of a dataset."""
        return Pairs(self.datasets[k].opened.root)
