"""Fetches from the store what the next batches will read, so that reading waits for no request.

The order of samples is known, so what is needed next is no guess. One thread looks ahead and says which
blocks are missing; others fetch them into the cache, from where the workers of the loader read.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from btlm_data.errors import BtlmError
from btlm_train.data.block_cache import BLOCK_BYTES, STRETCH
from btlm_train.data.remote_shard import RemoteObject, RemoteShard

logger = logging.getLogger(__name__)
REQUESTS = 16  # under way at once
_OPEN = 128  # shards whose tables of chunks are kept
_MOST_AHEAD = 2**30  # bytes
_MOST_TOGETHER = 32  # batches whose blocks are requested together
_PATIENCE = 2.0  # seconds

Rows = tuple[RemoteObject, int, int]  # a shard, the first of its rows that is needed, the end of them


class ReadAhead:
    """A context in which the rows of coming batches are fetched. `consumed()` after each batch.

    batches: for each batch of a pass the rows it needs. num_bytes: of the cache. At most a quarter of it, by
    all ranks of this node, holds blocks that no batch has read yet. What cannot be fetched is left to the
    reader, which says why.
    """

    def __init__(self, batches: Iterable[Iterable[Rows]], num_bytes: int) -> None:
        ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
        share = num_bytes // 4 // max(1, int(ranks) if ranks.isdecimal() else 1)
        self._limit = max(BLOCK_BYTES, min(share, _MOST_AHEAD))
        self._batches = iter(batches)
        self._wanted: queue.Queue[tuple[RemoteShard, Sequence[int]] | None] = queue.Queue(2 * REQUESTS)
        self._changed = threading.Condition()
        self._ahead: collections.deque[int] = collections.deque()  # bytes requested by each batch to come
        self._behind = 0  # batches consumed before they were looked at
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._shards: OrderedDict[RemoteObject, RemoteShard] = OrderedDict()

    def __enter__(self) -> ReadAhead:
        self._threads = [threading.Thread(target=self._look, daemon=True)]
        self._threads += [threading.Thread(target=self._fetch, daemon=True) for _ in range(REQUESTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Threads end with the request that they are at; they are waited for, but not for long."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with contextlib.suppress(queue.Empty):
            while True:
                self._wanted.get_nowait()
        for _ in range(REQUESTS):
            with contextlib.suppress(queue.Full):
                self._wanted.put_nowait(None)
        end = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def consumed(self) -> None:
        """A batch was handed out."""
        with self._changed:
            if self._ahead:
                self._ahead.popleft()
            else:
                self._behind += 1
            self._changed.notify_all()

    def _look(self) -> None:
        try:
            size = 1
            while rows := list(itertools.islice(self._batches, size)):
                asked = 0
                for shard, numbers in self._missing(itertools.chain.from_iterable(rows)):
                    asked += len(numbers) * BLOCK_BYTES
                    for group in _stretches(numbers):
                        self._put((shard, group))
                if not self._wait_after(len(rows), asked):
                    return
                # The first batches come one by one, so that the first is there soon; later ones together, in
                # fewer requests.
                share = max(1, self._limit // 4 // max(1, asked // len(rows)))
                size = min(2 * size, _MOST_TOGETHER, share)
        except BtlmError as error:
            logger.debug("Reading ahead ended: %s", error)

    def _wait_after(self, count: int, asked: int) -> bool:
        """Note what `count` batches requested, and wait while that is far ahead; False where all is over."""
        with self._changed:
            for number in range(count):
                if self._behind:
                    self._behind -= 1
                else:
                    self._ahead.append(asked * (number + 1) // count - asked * number // count)
            self._changed.wait_for(lambda: self._closed or sum(self._ahead) <= self._limit)
            return not self._closed

    def _missing(self, rows: Iterable[Rows]) -> Iterator[tuple[RemoteShard, list[int]]]:
        """For each shard of a batch the blocks that are not in the cache, ascending."""
        blocks: dict[RemoteObject, set[int]] = {}
        for target, start, stop in rows:
            blocks.setdefault(target, set()).update(self._shard(target).blocks_of(start, stop))
        for target, numbers in blocks.items():
            shard = self._shard(target)
            if missing := shard.file.missing(sorted(numbers)):
                yield shard, missing

    def _shard(self, target: RemoteObject) -> RemoteShard:
        shard = self._shards.get(target)
        if shard is None:
            while len(self._shards) >= _OPEN:
                self._shards.popitem(last=False)
            shard = self._shards[target] = RemoteShard(target)
        self._shards.move_to_end(target)
        return shard

    def _put(self, item: tuple[RemoteShard, Sequence[int]]) -> None:
        while not self._closed:
            with contextlib.suppress(queue.Full):
                self._wanted.put(item, timeout=0.2)
                return

    def _fetch(self) -> None:
        while not self._closed:
            item = self._wanted.get()
            if item is None:
                return
            shard, numbers = item
            try:
                shard.file.bring(numbers)
            except BtlmError as error:
                logger.debug("Fetching ahead failed: %s", error)


def _stretches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """The numbers in groups, each of one stretch of the cache."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(number // STRETCH, []).append(number)
    yield from groups.values()
