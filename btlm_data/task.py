"""What a stage plans and what it reports: Artifact, Task, Step, Counts. Plain data, picklable; no engine, no
files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

StoreName = Literal["work", "out", "text", "index"]


class Artifact(NamedTuple):
    """One file that a task has written, as its receipt names it. Every reader checks the checksum.

    name: relative to the store. size: bytes. checksum: hex XXH3 of the file's bytes, or of the head of a
    columns file (which holds the checksums of the rest). store: the work folder, the dataset folder, the
    folder of --emit-text, or the index of deduplication.
    """

    name: str
    size: int
    checksum: str
    store: StoreName = "work"


class Amount(NamedTuple):
    """Documents, bytes of UTF-8 text, tokens (with one EOS each; 0 before there are tokens)."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    def plus(self, other: Amount) -> Amount:
        """Sum, field by field."""
        return Amount(self.documents + other.documents, self.bytes + other.bytes, self.tokens + other.tokens)

    def minus(self, other: Amount) -> Amount:
        """Difference, field by field."""
        return Amount(self.documents - other.documents, self.bytes - other.bytes, self.tokens - other.tokens)


class Counts(msgspec.Struct):
    """What went in, came out, was added or dropped, by (split, source); each reason apart. JSON: nested
    lists.

    In every stage in + added = out + dropped; `added` is only ever non-zero where a mix repeats documents.
    """

    # (split, source, "in"|"out"|"drop:REASON"|"add:REASON")
    cells: dict[tuple[str, str, str], Amount] = msgspec.field(default_factory=dict)
    # whatever else the stage needs from this task (JSON values)
    extra: dict[str, Any] = msgspec.field(default_factory=dict)

    def add(
        self, split: str, source: str, cell: str, documents: int = 0, num_bytes: int = 0, tokens: int = 0
    ) -> None:
        """Add to one cell: "in", "out", "drop:REASON" or "add:REASON"."""
        key = (split, source, cell)
        self.cells[key] = self.cells.get(key, Amount()).plus(Amount(documents, num_bytes, tokens))

    def merge(self, other: Counts) -> None:
        """Add another task's cells to these (extras are not merged: they belong to their task)."""
        for key, amount in other.cells.items():
            self.cells[key] = self.cells.get(key, Amount()).plus(amount)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, sorted, so that the same counts give the same bytes."""
        return {"cells": [[*key, *amount] for key, amount in sorted(self.cells.items())], "extra": self.extra}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Counts:
        """Inverse of to_json."""
        return Counts({(c[0], c[1], c[2]): Amount(*c[3:6]) for c in value["cells"]}, dict(value["extra"]))


class Task(msgspec.Struct, frozen=True):
    """One unit of a step: a pure function of `args`, the step's settings and the files named, to files and
    counts.

    id: unique in the step, a file-name-safe string whose text order is the task order. args: JSON values,
    part of the digest. inputs: digests of what it depends on (lineage of earlier steps, identities of source
    files), part of the digest. reads: role -> every work file the task reads, part of the digest. through:
    role -> files that intermediate steps made; how these are cut depends on the memory and never changes the
    outcome, so they are named but are no part of the digest (their lineage is in `inputs`). outputs: names it
    will write, where they are known beforehand. resumes: prefix of the names under which an interrupted
    attempt leaves files that the next one can use. title: what a person calls the task's input, where there
    is a word for it. weight: units of work, for progress only. hints: values that change no output (never
    part of the digest).
    """

    id: str
    args: Mapping[str, Any] = msgspec.field(default_factory=dict)
    inputs: Sequence[str] = ()
    reads: Mapping[str, Sequence[Artifact]] = msgspec.field(default_factory=dict)
    through: Mapping[str, Sequence[Artifact]] = msgspec.field(default_factory=dict)
    outputs: Sequence[tuple[StoreName, str]] = ()
    resumes: str | None = None
    title: str = ""
    weight: int = 1
    hints: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def named(self) -> Iterable[Artifact]:
        """Every file the task may read."""
        for files in (*self.reads.values(), *self.through.values()):
            yield from files


class Step(msgspec.Struct, frozen=True):
    """A named list of tasks and the function that does one.

    name: the stage's name, with ".PART" after it where the stage has several steps ("dedupe.cluster"). work:
    a module-level function (task, settings, files: TaskFiles) -> Counts; settings must be picklable. version
    goes up whenever the same inputs would give other outputs. settings_digest covers every setting that
    changes the outputs. unit: what Task.weight counts. skip: replaces `work` where the task's input kills
    every worker and is to be left out: counts what is not read.
    """

    name: str
    version: int
    work: Callable[[Task, Any, Any], Counts]
    tasks: Sequence[Task]
    settings: Any
    settings_digest: str
    unit: str = "B"  # "B" bytes, "doc" documents, "token", "sample", "task"
    skip: Callable[[Task, Any, Any], Counts] | None = None

    @property
    def folder(self) -> str:
        """The folder of the work store in which the step's files are: nothing else is there."""
        return self.name.replace(".", "/")


class TaskResult(msgspec.Struct, frozen=True):
    """A finished task: what it wrote and counted. Its receipt is written."""

    task_id: str
    outputs: tuple[Artifact, ...]
    counts: Counts
    seconds: float
