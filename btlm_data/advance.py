"""Where work says how far it is. Stages call `advance(n)`; the engine decides who listens. Does nothing by default."""

from __future__ import annotations

from collections.abc import Callable


def _nobody(amount: int) -> None:
    """Forget it."""


_listener: Callable[[int], None] = _nobody


def advance(amount: int) -> None:
    """Report `amount` more units (the step's unit: bytes, documents or samples) of the current task done."""
    _listener(amount)


def listen(listener: Callable[[int], None] | None) -> None:
    """Send this process's reports to `listener`; None stops listening. Called by engines only."""
    global _listener
    _listener = listener or _nobody
