"""When free workers and their driver look at the work folder again: all that they share, and each look costs requests.

A pause is a part of the time already waited, so that a wait of any length is prolonged by that part at most, and takes looks
that grow with its logarithm. Pauses are of random length, so that many workers do not look at the same moment.
"""

from __future__ import annotations

import random
import time

PART = 1 / 20  # of the time already waited
SHORTEST = 0.02  # seconds
_COSTS = 4  # a pause is at least so many times as long as a look took


class Pace:
    """Pauses between looks for one thing. longest: seconds."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._since = time.monotonic()

    def restart(self) -> None:
        """Something new was found: wait for the next from now on."""
        self._since = time.monotonic()

    def pause(self, look: float, shortest: float = SHORTEST) -> float:
        """Seconds until the next look, after one that took `look` seconds."""
        waited = time.monotonic() - self._since
        wanted = max(shortest, PART * waited, _COSTS * look)
        return min(self._longest, wanted) * random.uniform(0.75, 1.25)
