"""How far a run is, from its work folder alone (engine/status.py writes what is read here)."""

from __future__ import annotations

from pathlib import Path

from btlm_data.engine import status
from btlm_data.engine.status import Status
from btlm_data.storage import open_store

MARK = "work-folder.json"  # of a work folder (work_folder.py)


def is_work_folder(path: Path) -> bool:
    """Whether a run has marked the folder as its work folder."""
    return (path / MARK).is_file()


def read(path: Path) -> Status:
    """The state of a run now. Raises DataError if the folder cannot be read."""
    return status.read(open_store(path))
