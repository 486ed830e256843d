"""Steps run under receipts, as the pipeline runs them, in a work folder of a test's own; and what may befall such a run."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from btlm_data import pipeline
from btlm_data.blocks import Block
from btlm_data.dedupe import ranges, sizes, steps
from btlm_data.engine.base import EngineSettings
from btlm_data.engine.execute import Job, execute
from btlm_data.engine.local import LocalEngine
from btlm_data.engine.receipts import Receipt
from btlm_data.engine.runner import Runner
from btlm_data.formats import columns
from btlm_data.formats.columns import Columns
from btlm_data.locations import Locations
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.stages import members
from btlm_data.storage import open_store
from btlm_data.task import Artifact, Step, Task
from btlm_data.task_files import TaskFiles


class Killed(Exception):
    """What ends a run in a test."""


@dataclass
class Events:
    """Notes which tasks were not skipped; nobody wants to know more. before: called before a step's tasks."""

    ran: list[str]
    before: Callable[[Step], None]

    def step_started(self, step: Step, todo: Sequence[Task], *_: object) -> None:
        self.before(step)
        self.ran.extend(f"{step.name} {task.id}" for task in todo)

    def step_moved(self, *_: object) -> None: ...
    def step_finished(self, *_: object) -> None: ...


@dataclass
class Mortal(LocalEngine):
    """Dies after `left` jobs (of the step named): the outputs of the next job are written, its receipt is not."""

    left: int
    step: str | None = None

    def __post_init__(self) -> None:
        super().__init__(EngineSettings(1))

    def map(self, jobs: Sequence[Job]) -> Iterator[Receipt | None]:
        for job in jobs:
            if self.step in (None, job.step):
                if self.left == 0:
                    job.work(job.task, job.settings, TaskFiles(job.locations.open(), job.task))
                    raise Killed
                self.left -= 1
            yield execute(job)


@dataclass
class Context:
    """A work folder and how its steps are run; `ran` lists the tasks that were not skipped."""

    work_dir: Path
    workers: int = 1
    ran: list[str] = field(default_factory=list)
    before: Callable[[Step], None] = lambda step: None
    engine: Callable[[EngineSettings], LocalEngine] = LocalEngine
    index: str | None = None

    @contextlib.contextmanager
    def runner(self) -> Iterator[Runner]:
        locations = Locations(str(self.work_dir), f"{self.work_dir}-out", index=self.index)
        with self.engine(EngineSettings(self.workers)) as engine:
            yield Runner(locations, locations.open(), engine, Events(self.ran, self.before))


def opened(work_dir: Path, name: str) -> Columns:
    """A columns file as it lies there."""
    store = open_store(work_dir)
    artifact = columns.find(store, name)
    assert artifact is not None
    return Columns(store, artifact)


def column(work_dir: Path, listed: str, name: str) -> np.ndarray:
    """A column of all documents, as the files of a list by ordinal have it."""
    parts = [opened(work_dir, file)[name] for _, _, file, *_ in json.loads((work_dir / listed).read_bytes())]
    return np.concatenate([np.empty(0, np.uint8), *parts]) if len(parts) != 1 else parts[0]


@contextlib.contextmanager
def joined(how: str) -> Iterator[None]:
    """How documents are joined: "whole", in one process; or in "ranges", or in ranges with "wide" ordinals of 64 bits."""
    with pytest.MonkeyPatch.context() as patch:
        if how != "whole":
            patch.setattr(sizes, "MOST_JOINED", -1)
            patch.setattr(sizes, "RANGE_DOCUMENTS", 16)
            patch.setattr(steps, "MOST_SPLIT_FILES", 1)
        if how == "wide":
            patch.setattr(ranges, "MOST_NARROW", -1)
        yield


def flip(path: Path, rng: np.random.Generator) -> None:
    """Flip one bit that means something: of a columns file not the bytes between its arrays."""
    data = bytearray(path.read_bytes())
    places = np.arange(len(data))
    if path.suffix == ".cols":
        _, length = struct.unpack("<8sQ", data[:16])
        header = json.loads(data[32 : 32 + length])
        parts = [(0, 32 + length), (header["sums"], header["num_sums"] * 8)]
        parts += [
            (entry["offset"], int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize)
            for entry in header["arrays"].values()
        ]
        begin, size = parts[rng.choice([i for i, (_, size) in enumerate(parts) if size])]
        places = np.arange(begin, begin + size)
    data[rng.choice(places)] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def prepare(source: Path | str, out: Path, **options: Any) -> pipeline.Prepared:
    """Prepare a dataset in this process, with one worker; options by dotted key with `__` for the dot."""
    given = {"source.name": str(source), "run.out": str(out), "run.workers": 1}
    given |= {key.replace("__", "."): value for key, value in options.items()}
    return pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())


def plan_places(blocks: Sequence[Block], components: Artifact, with_texts: bool) -> Step:
    """As one part of a source that cannot be read: only places are asked for."""
    assert not with_texts
    part = members.PartBlocks(Task("000000", hints={"ranges": []}), blocks)
    settings: Any = SimpleNamespace(products={"docs": ""})
    return members.plan([part], components, settings, with_texts)


def no_texts(clusters: Artifact) -> Step:
    """For runs that compare no texts: an index keeps none."""
    raise AssertionError("texts are asked for")
