"""How far a run is, from its work folder alone: the receipts of tasks that are done, and the lease of the
process at work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from btlm_data.storage.lease import EXPIRY

MARK = "work-folder.json"  # of a work folder (work_folder.py)
RECEIPTS = "receipts"
LEASE = "run.lease"


@dataclass(frozen=True)
class StepState:
    """A step. done: tasks with a receipt. rate: tasks a second between the first and the last of them, None
    for one.

    seconds_ago: since the last one.
    """

    name: str
    done: int
    rate: float | None
    seconds_ago: float


@dataclass(frozen=True)
class RunState:
    """A work folder. held: a process works there now."""

    steps: list[StepState]
    held: bool


def is_work_folder(path: Path) -> bool:
    """Whether a run has marked the folder as its work folder."""
    return (path / MARK).is_file()


def read(path: Path) -> RunState:
    """The state of a run now; its steps in the order in which they began."""
    now = time.time()
    steps: list[tuple[float, StepState]] = []
    receipts = path / RECEIPTS
    for folder in receipts.iterdir() if receipts.is_dir() else ():
        times = sorted(_times(folder))
        if times:
            span = times[-1] - times[0]
            rate = (len(times) - 1) / span if span > 0 else None
            steps.append((times[0], StepState(folder.name, len(times), rate, max(0.0, now - times[-1]))))
    steps.sort(key=lambda item: (item[0], item[1].name))
    try:
        held = now - (path / LEASE).stat().st_mtime < EXPIRY
    except OSError:
        held = False
    return RunState([state for _, state in steps], held)


def _times(folder: Path) -> list[float]:
    """When each receipt was written; one that is being replaced does not count."""
    times = []
    if folder.is_dir():
        for entry in folder.glob("*.json"):
            try:
                times.append(entry.stat().st_mtime)
            except OSError:
                continue
    return times
