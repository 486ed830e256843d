"""What a stage plans and what it reports: Task, Step, Counts. Plain data, picklable, JSON-able; no engine, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Amount(NamedTuple):
    """Documents, bytes of UTF-8 text, tokens (with one EOS each; 0 before there are tokens)."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    def plus(self, other: Amount) -> Amount:
        """Sum, field by field."""
        return Amount(self.documents + other.documents, self.bytes + other.bytes, self.tokens + other.tokens)


@dataclass
class Counts:
    """What went in, came out, was added or dropped, by (split, source); each reason apart. JSON: nested lists.

    In every stage in + added = out + dropped; `added` is only ever non-zero where a mix repeats documents.
    """

    cells: dict[tuple[str, str, str], Amount] = field(
        default_factory=dict
    )  # (split, source, "in"|"out"|"drop:REASON"|"add:REASON")
    extra: dict[str, Any] = field(
        default_factory=dict
    )  # whatever else the stage's plan needs from this task (JSON values)

    def add(
        self, split: str, source: str, what: str, documents: int = 0, num_bytes: int = 0, tokens: int = 0
    ) -> None:
        """Add to one cell. what: "in", "out", "drop:REASON" or "add:REASON"."""
        key = (split, source, what)
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


@dataclass(frozen=True)
class Task:
    """One unit of a step: a pure function of `args`, the step's settings and the files named, to `outputs`.

    id: unique in the step, a file-name-safe string whose text order is the task order. args: JSON values, part of the
    digest. inputs: digests of what it reads (receipts of earlier steps, or name+size+version of source files), part
    of the digest. outputs: paths relative to the work folder. weight: bytes to process, for progress and scheduling
    only. hints: JSON values that do not change the outputs' meaning (never part of the digest).
    """

    id: str
    args: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    weight: int = 1
    hints: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A named list of tasks and the function that does one.

    work(task, settings, work_dir) -> Counts must be a module-level function; settings must be picklable. version goes up
    whenever the same inputs would give other outputs. settings_digest covers every setting that changes the outputs.
    """

    name: str
    version: int
    work: Callable[[Task, Any, str], Counts]
    tasks: Sequence[Task]
    settings: Any
    settings_digest: str
    unit: str = "B"  # what Task.weight counts: "B" bytes, "doc" documents, "sample" samples
