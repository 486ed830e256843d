"""The one policy for faults that may pass: growing pauses with jitter, a server's own wish first, and an end.

`Retry` holds the numbers, `Attempts` one series of tries. A try that made progress (new bytes) starts the
count again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

T = TypeVar("T")
# Seconds: a server that has not answered once by then cannot be reached, and a user is waiting.
FIRST_ANSWER = 8.0
LONGEST_PAUSE = 60.0  # seconds between two tries, unless the server asks for more
LONGEST_WISH = 3600.0  # a server that asks for a longer pause is treated as unavailable


class TransientError(Exception):
    """A fault that may pass.

    wait: seconds the server asked to wait, if it did. status: the HTTP status, if there was one. restart:
    what has been received so far is of no use.
    """

    def __init__(
        self, reason: str, wait: float | None = None, status: int | None = None, *, restart: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait = wait
        self.status = status
        self.restart = restart


class Retry(msgspec.Struct, frozen=True):
    """retries: tries without progress after the first. pause: seconds before the first repeat; it doubles up
    to a minute.
    """

    retries: int = 8
    pause: float = 1.0

    def attempts(self) -> Attempts:
        """A new series of tries."""
        return Attempts(self)

    def call(self, ask: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
        """`ask()` until it returns, repeated where it raises TransientError; the last of these passes
        through.
        """
        attempts = self.attempts()
        while True:
            try:
                return ask()
            except TransientError as error:
                pause = attempts.failed(error)
                if pause is None:
                    raise
                sleep(pause)


@dataclass
class Attempts:
    """One series of tries."""

    policy: Retry
    failures: int = field(default=0, init=False)

    def failed(self, error: TransientError, *, progress: bool = False) -> float | None:
        """Seconds to pause before the next try, or None: give up. progress: this try brought something new."""
        self.failures = 1 if progress else self.failures + 1
        if self.failures > self.policy.retries or (error.wait or 0.0) > LONGEST_WISH:
            return None
        return backoff(self.failures - 1, self.policy.pause, error.wait)


def backoff(attempt: int, base: float, asked: float | None) -> float:
    """Seconds to pause before try `attempt + 1`: what the server requested, else base * 2**attempt, with
    jitter.

    The jitter keeps many workers from asking again in the same moment; it never shortens what the server
    requested.
    """
    if asked is not None:
        return min(asked, LONGEST_WISH) + random.uniform(0, base)
    return min(LONGEST_PAUSE, base * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)


def within(seconds: float, ask: Callable[[], T]) -> T:
    """`ask()`, waited for at most so long: looking up a name has no limit of its own. Raises TransientError."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="first-answer", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        if answer.done():
            raise
        raise TransientError(f"no answer within {seconds:.0f} s") from error
