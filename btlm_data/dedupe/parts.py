"""Passes over the documents of a run in several threads of the one process that joins them.

A document that writes to the place of another (the first one of its text or component) is handled by the thread in whose part
that place is: each thread looks at all documents from there on, so that no place has two writers, and the outcome
is that of one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from btlm_data.threads import in_threads

MAX_THREADS = 16  # each looks at all documents: 4 bytes of memory for each
_LEAST = 2**20  # documents of a part


class Parts:
    """Parts [first, last) of the documents, as many as there are threads."""

    def __init__(self, num_documents: int, threads: int) -> None:
        count = max(1, min(threads, MAX_THREADS, num_documents // _LEAST))
        self.bounds = [num_documents * number // count for number in range(count + 1)]

    def run(self, kernel: Callable[..., Any], *arrays: Any) -> None:
        """Call kernel(first, last, *arrays) for each part, all at once."""
        jobs = list(zip(self.bounds[:-1], self.bounds[1:], strict=True))
        if len(jobs) == 1:
            kernel(*jobs[0], *arrays)
            return
        for _ in in_threads(lambda bounds: kernel(*bounds, *arrays), jobs, len(jobs)):
            pass
