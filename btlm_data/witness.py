"""Words for a death that leaves none: a library crashed, or the system ran out of memory and killed the program.

A process that dies so cannot speak. The witness is a small process of its own that waits at a pipe, which closes when the
program is gone, however it went. Into the pipe writes only faulthandler: the stacks of a crash. A program that came to its
own end has said so in a piece of shared memory (`ended`); there it also leaves the name of the file that it reads
(`note`). The program's process number, exit code and signals are those that it has without a witness.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

NAME = "btlm-witness"  # as `ps -o comm` shows it
_NAME_BYTES = 512  # of the file that is read: its end is what tells files apart
_MOST_STACKS = 100_000  # bytes
_EVENTS = Path(
    "/proc/vmstat"
)  # its line `oom_kill N`: processes killed for lack of memory since the system started


class Death(NamedTuple):
    """What the witness knows. reading: the file that was read last, or "". stacks: of the crash; "" where memory ran out."""

    reading: str
    stacks: str


_shared: mmap.mmap | None = None


def start(tell: Callable[[Death], None]) -> None:
    """Fork the witness, once, in a process without threads. tell: called in the witness if this process dies without words."""
    global _shared
    if _shared is not None or not hasattr(os, "fork"):
        return
    _shared = mmap.mmap(-1, 1 + _NAME_BYTES)
    killed = _killed_for_memory()
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        if os.fork():  # the witness is nobody's child: the program sees only children that it made
            os._exit(0)
        _watch(ends, _shared, killed, tell)
    os.waitpid(child, 0)
    os.close(ends[0])
    if not faulthandler.is_enabled():  # else the user wants the stacks on standard error
        faulthandler.enable(ends[1])


def note(name: str) -> None:
    """Leave the name of the file from outside that is read now."""
    if _shared is not None:
        _shared[1:] = name.encode("utf-8", "replace")[-_NAME_BYTES:].ljust(_NAME_BYTES, b"\0")


def ended() -> None:
    """The program has said all that it had to say."""
    if _shared is not None:
        _shared[0] = 1


def _watch(ends: tuple[int, int], shared: mmap.mmap, killed: int, tell: Callable[[Death], None]) -> NoReturn:
    """Body of the witness. killed: processes killed for lack of memory before the program began."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # meant for the program
            signal.signal(number, signal.SIG_IGN)
        os.close(ends[1])
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text(NAME)
        stacks = b""
        while data := os.read(ends[0], 65536):
            stacks = (stacks + data)[:_MOST_STACKS]
        name = shared[1:].rstrip(b"\0").decode("utf-8", "replace")
        if not shared[0] and (stacks or _killed_for_memory() > killed):
            tell(Death(name, stacks.decode("utf-8", "replace")))
    finally:
        os._exit(0)


def _killed_for_memory() -> int:
    """How many processes the system has killed because memory ran out; 0 where it does not say."""
    with contextlib.suppress(OSError):
        count = re.search(rb"^oom_kill (\d+)$", _EVENTS.read_bytes(), re.MULTILINE)
        return int(count[1]) if count else 0
    return 0
