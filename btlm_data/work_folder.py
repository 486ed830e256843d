"""The work folder: a run marks it as its own before it writes or deletes anything there.

work-folder.json   {"format_version": 3}: the marked folder's entries named below belong to btlm-data
run.lease          held by the process that works there now
"""

from __future__ import annotations

import json

from btlm_data.errors import OutputError
from btlm_data.storage import Store, claims

MARK = "work-folder.json"
LEASE = "run.lease"
BOARD = "engine/board.json"  # what free workers are to do (engine/published.py)
FORMAT_VERSION = 3
# Folders of the steps (the first part of their names) and of receipts; nothing else below the work folder is
# touched.
FOLDERS = (
    "acquire",
    "read",
    "dedupe",
    "holdout",
    "shuffle",
    "pack",
    "shard",
    "emit",
    "receipts",
    "failures",
    "engine",
)


def claim(store: Store) -> None:
    """Mark the folder. Hold its lease. Raises OutputError if it holds entries of these names that are not
    known to be ours.
    """
    if is_ours(store):
        claims.settle(store, BOARD)
        store.sweep()
    else:
        store.write(MARK, (json.dumps({"format_version": FORMAT_VERSION}) + "\n").encode())


def is_ours(store: Store) -> bool:
    """Whether the folder is marked. Raises OutputError if it is not a run's to use."""
    if store.size(MARK) is not None:
        try:
            version = json.loads(store.read(MARK))["format_version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            version = None
        if not isinstance(version, int):
            raise OutputError(
                f"{store.shown}/{MARK} does not say that the work folder is btlm-data's: it is damaged, or of another program. "
                f"If a run of btlm-data made {store.shown}, remove it; otherwise choose another --work-dir."
            )
        if version != FORMAT_VERSION:
            raise OutputError(
                f"The work folder {store.shown} is of format version {version}; this program uses {FORMAT_VERSION}. "
                "Remove it, or choose another --work-dir."
            )
        return True
    for folder in FOLDERS:
        if entries := store.list(folder):
            raise OutputError(
                f"The work folder {store.shown} already has {entries[0].name}, which this version of btlm-data did not "
                f"write; it would be deleted. Choose an empty --work-dir, or remove {store.shown}/{folder}."
            )
    return False
