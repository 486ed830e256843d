"""What work reports from anywhere inside a task: `advance(n)`, its progress, and `reading(name)`, the file
from outside that it reads now. The process that runs the task listens; names are otherwise left for the witness.

The listeners belong to the running thread (context variables), so two runs in two threads do not mix their
figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from btlm_data import witness


def _ignore(_: object) -> None:
    """Default listener: does nothing."""


_listener: ContextVar[Callable[[int], None]] = ContextVar("listener", default=_ignore)
_reading: ContextVar[Callable[[str], None]] = ContextVar("reading", default=witness.note)


def advance(amount: int) -> None:
    """Report `amount` more units (the step's unit: bytes, documents or tokens) of the current task done."""
    _listener.get()(amount)


def reading(name: str) -> None:
    """Report that the current task opens this file from outside: if the process dies of it, the file can be
    named.
    """
    _reading.get()(name)


@contextlib.contextmanager
def listening(
    listener: Callable[[int], None], reading_listener: Callable[[str], None] = witness.note
) -> Iterator[None]:
    """Send what is reported inside the block to the listeners: units of work done, names of files read."""
    tokens = _listener.set(listener), _reading.set(reading_listener)
    try:
        yield
    finally:
        _listener.reset(tokens[0])
        _reading.reset(tokens[1])
