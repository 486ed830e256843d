"""Read rows of many shards, in no more open files than a process may have.

A shard that disappears or changes while it is in use is an error, never zeros.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from btlm_data.errors import DataError, InputError
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_train.data.remote_shard import RemoteObject, RemoteShard

Shard = ShardReader | RemoteShard


@dataclass(frozen=True)
class ShardFile:
    """One file as it was when the data was opened: enough to open it later and to notice that it has changed.

    path: absolute, or its URL. rows is the length of axis 0; probe is the CRC-32 of the first, middle and
    last row (of a corpus: of at most 1,024 tokens each). mtime_ns: of a local file. remote: of one in a
    store.
    """

    path: str
    rows: int
    num_bytes: int
    mtime_ns: int
    probe: int
    remote: RemoteObject | None = None

    def check(self) -> None:
        """Raise DataError if a local file is gone or has changed; a store is asked with each request."""
        if self.remote is not None:
            return
        try:
            now = os.stat(self.path)
        except OSError as error:
            raise DataError(
                f"The shard {self.path} cannot be found any more ({error.strerror}). "
                "Restore it, then run the same command again."
            ) from None
        if (now.st_size, now.st_mtime_ns) != (self.num_bytes, self.mtime_ns):
            raise DataError(
                f"The shard {self.path} changed while it was in use ({self.num_bytes} bytes when opened, "
                f"{now.st_size} now, or written again). Restore it, or start again with the new data."
            )


class OpenShards:
    """The open shards of this process, least recently used first: at most half of its limit of open files,
    and 1,024.

    One for the whole process, because the limit is the process's. A shard that leaves is closed when its last
    user drops it. After a fork the child starts with none, so that each process counts its own.
    """

    def __init__(self) -> None:
        self.clear()
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        """Drop all open shards."""
        self.lock = threading.Lock()
        self.shards: OrderedDict[ShardFile, Shard] = OrderedDict()

    def get(self, file: ShardFile) -> Shard:
        """`file`, opened. Raises DataError if it has changed, InputError if the process may open no more
        files.
        """
        with self.lock:
            file.check()
            shard = self.shards.get(file)
            if shard is None:
                while len(self.shards) >= self.capacity():
                    self.shards.popitem(last=False)
                shard = self.shards[file] = self.open(file.remote or file.path)
            self.shards.move_to_end(file)
            return shard

    def open(self, path: str | RemoteObject) -> Shard:
        """`path`, newly opened; where the process's limit is reached, half of the others are dropped
        first.
        """
        if isinstance(path, RemoteObject):
            return RemoteShard(path)
        while True:
            try:
                return ShardReader(path)
            except OSError as error:
                if not self.shards:
                    raise InputError(
                        f"{path} cannot be opened ({error.strerror or error}): other files use up the "
                        "process's limit. "
                        "Raise it (ulimit -n)."
                    ) from error
                for _ in range((len(self.shards) + 1) // 2):
                    self.shards.popitem(last=False)

    @staticmethod
    def capacity() -> int:
        """How many shards may be open. Asked each time, since a test or a user may change the limit."""
        try:
            import resource
        except ImportError:  # not on Windows, which has no such limit
            return 256
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return 1024 if soft == resource.RLIM_INFINITY else max(1, min(1024, soft // 2))


OPEN_SHARDS = OpenShards()


def probe_shard(target: str | RemoteObject) -> tuple[ShardFile, tuple[int, ...], np.dtype[Any]]:
    """Open a shard once and close it: what it is, the shape of a row (() in a corpus), and its dtype."""
    if isinstance(target, RemoteObject):
        path, num_bytes, mtime_ns, remote = f"{target.url}/{target.name}", target.num_bytes, 0, target
    else:
        path, remote = os.path.abspath(target), None
        before = os.stat(path)
        num_bytes, mtime_ns = before.st_size, before.st_mtime_ns
    shard = OPEN_SHARDS.open(remote or path)
    rows, trailing = shard.shape[0], shard.shape[1:]
    length = 1 if trailing else min(1024, rows)
    probe = 0
    for start in sorted({0, (rows - length) // 2, rows - length}) if rows else ():
        stored = np.ascontiguousarray(shard.read(start, start + length))
        probe = zlib.crc32(stored.view(np.uint8).data, probe)
    return ShardFile(path, rows, num_bytes, mtime_ns, probe, remote), trailing, shard.dtype
