"""Training runs, as whoever trained them can tell: which samples each step took.

A trainer registers under the entry point group `btlm_data.runs` a callable that opens a run's folder;
`btlm-train` does. So this package knows no trainer.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from btlm_data.errors import ConfigError, InputError, install_command

GROUP = "btlm_data.runs"


class SeenSample(Protocol):
    """A sample in a run. query: the index of the query that it answers. step: from 0; rank: whose slice of
    the batch; batch_index: its position in the batch.
    """

    query: int
    step: int
    rank: int
    batch_index: int
    epoch: int


class BatchSample(Protocol):
    """A sample of a batch. batch_index: its position in the batch; shard: path of the file where it begins;
    row: in it (of a corpus: its first token); length: rows that it takes (of a corpus: its input tokens).
    """

    batch_index: int
    rank: int
    shard: str
    row: int
    length: int


class Run(Protocol):
    """A run of a trainer."""

    @property
    def steps_done(self) -> int:
        """The number of steps that its newest checkpoint includes."""

    def seen(self, asked: Sequence[tuple[str, str | None, int, int]]) -> Sequence[SeenSample]:
        """Where rows were seen or will be. asked: (path of a shard, SHA-256, first row, one past the last;
        corpus: tokens).
        """

    def batch(self, step: int) -> Sequence[BatchSample]:
        """The samples of one step. Raises ConfigError if there is no such step."""


def open_run(folder: Path) -> Run:
    """The run in a folder. Raises InputError if there is no folder, ConfigError if no trainer that is
    installed knows it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Name the --model-dir of a training run.")
    problems = []
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            opener: Callable[[Path], Run] = entry.load()
        except ImportError as error:
            problems.append(f"{entry.name} cannot be loaded ({error})")
            continue
        try:
            return opener(folder)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(
        " ".join(problems)
        or f"No trainer that is installed can tell what {folder} has read. Install one: "
        f"{install_command('train')}."
    )
