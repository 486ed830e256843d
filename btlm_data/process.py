"""What a command's process asks of Python and its libraries before it imports them. A program that uses the package as a library keeps its own ways."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

# Of numpy's BLAS: the engine decides how many processes there are, and idle threads of BLAS wait by turning in a loop.
# pydantic looks for plugins in every installed package. pyarrow's own allocator takes memory from the system beside what
# numpy has freed.
_DEFAULTS = {
    "OPENBLAS_NUM_THREADS": "1",
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
# glibc's mallopt. A block's arrays are freed and made again for the next block: kept, they need not be cleared by the
# system once more. Arrays above the second bound, the most that glibc takes, always go back at once.
_TRIM_THRESHOLD, _KEPT_BYTES = -1, 128 << 20
_MMAP_THRESHOLD, _ARRAY_BYTES = -3, 32 << 20
_FRAME_WORDS = (1 << 16) + (1 << 10)  # with it, a piece of 1 MiB: nearly half of it is for the frames behind


def set_defaults() -> None:
    """Set what libraries read from the environment when they are imported, where the user has not set it."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def with_room_for_frames(work: Callable[[], None]) -> None:
    """Do the work where the frames of its calls find room: CPython keeps them in pieces of 16 KiB (from 3.11 on, `push_chunk` in
    Python/pystate.c), and a loop whose calls cross the end of a piece takes and returns memory of the system at every one of
    them, ten times as long as a call takes. A frame that is larger than a piece gets one of its own, and the calls that it
    makes lie behind it: so this one is large. None of its size is ever touched.
    """

    def begin() -> None:
        work()

    begin.__code__ = begin.__code__.replace(co_stacksize=_FRAME_WORDS)
    begin()


def keep_freed_memory() -> None:
    """Have the C library keep up to _KEPT_BYTES of freed memory for what comes next, where it is glibc and the user has not set this."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _ARRAY_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
