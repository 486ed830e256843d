"""Work on several cores of one process: reading, inflating, hashing and compiled kernels do not hold the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_END = object()


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], most: int) -> Iterator[Result]:
    """What `work` makes of each item, in their order. most: items at once, which bounds memory; no more than cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(max(1, min(most, cores, len(items)))) as pool:
        yield from pool.map(work, items)


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each made in a thread while the one before is used: two are held."""
    made = iter(items)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, made, _END)
        while (item := following.result()) is not _END:
            following = pool.submit(next, made, _END)
            yield item  # type: ignore[misc]
