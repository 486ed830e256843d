"""How work reports its progress: `advance(n)` from anywhere inside a task; the process that runs the task listens.

The listener belongs to the running thread (a context variable), so two runs in two threads do not mix their figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar


def _ignore(amount: int) -> None:
    """Default listener: does nothing."""


_listener: ContextVar[Callable[[int], None]] = ContextVar("listener", default=_ignore)


def advance(amount: int) -> None:
    """Report `amount` more units (the step's unit: bytes, documents or tokens) of the current task done."""
    _listener.get()(amount)


@contextlib.contextmanager
def listening(listener: Callable[[int], None]) -> Iterator[None]:
    """Send the reports made inside the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
