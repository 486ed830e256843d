"""One door to files: a folder on this machine or a place in an object store, behind the same few calls.

    base.py    the protocol (`Store`), names, what a listing gives
    local.py   a folder                      remote.py  any fsspec URL (s3://, gs://, memory://, ...)
    lease.py   a lock with heartbeat and takeover, on either       process.py  which processes are alive
    retry.py   the one policy for faults that may pass       digest.py  the checksums of the project
    cached.py  files written by way of the page cache        direct.py  and past it

Everything that a run writes or reads back goes through a store: work files, receipts, shards, tables,
dataset.json. Source files do not; sources/ fetches them.
"""

from __future__ import annotations

from pathlib import Path

from btlm_data.storage.base import Creating, Entry, Store, check_name, is_remote

__all__ = ["Creating", "Entry", "Store", "check_name", "is_remote", "open_store"]


def open_store(location: str | Path) -> Store:
    """The store at a folder or URL. Nothing is created, read or asked before the first call that needs it.

    location: a path (relative to the current folder), `file://PATH`, or a URL that fsspec opens. Raises
    ConfigError for a scheme that nothing installed can open.
    """
    text = str(location)
    if is_remote(text):
        from btlm_data.storage.remote import RemoteStore

        return RemoteStore(text)
    from btlm_data.storage.local import LocalStore

    return LocalStore(Path(text.removeprefix("file://")))
