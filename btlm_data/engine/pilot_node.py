"""What runs on a node beside Parsl, so that a node that is broken, or left alone, ends: a keeper of its manager.

Parsl's manager (process_worker_pool.py) hands tasks to its processes through a queue with a lock. A process
that is killed while it holds the lock leaves a manager that lives and answers, but does nothing. The keeper
ends the whole pilot job as soon as one of Parsl's processes is gone: the batch system starts another, and
the tasks are tried again. (The tasks themselves run in processes of their own, `published.do_apart`; those may
die without this.) It also ends the pilot job when nobody listens where the run was: a driver that was killed
leaves no process behind.

The interchange, Parsl's process beside the driver, runs here too, watched in the same way: it ends when the
driver does.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence

import psutil

_LOOK_SECONDS = 1.0
_KNOCK_SECONDS = 5.0  # between two looks whether the run is there
_CONNECT_SECONDS = 5.0
_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: processes whose parent died become children of this one


def launch_command(command: str, python: str, limit: float) -> str:
    """Parsl's launch command with a keeper around it. limit: seconds without the run after which a node ends.

    The braces are filled in by Parsl.
    """
    keeper = f"{python} -m {__name__} keep --limit {limit:g} --addresses {{addresses}} --port {{worker_port}}"
    return f"{keeper} -- {command}"


def interchange_command() -> list[str]:
    """The command that starts the interchange of this process."""
    return [sys.executable, "-m", __name__, "interchange", "--driver", str(os.getpid())]


def main(arguments: Sequence[str]) -> int:
    """Keep a manager, or be the interchange; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}")
    modes = parser.add_subparsers(dest="mode", required=True)
    keep_mode = modes.add_parser("keep")
    keep_mode.add_argument("--limit", type=float, required=True)
    keep_mode.add_argument("--addresses", required=True)
    keep_mode.add_argument("--port", type=int, required=True)
    keep_mode.add_argument("command", nargs="+")
    modes.add_parser("interchange").add_argument("--driver", type=int, required=True)
    given = parser.parse_args(arguments)
    if given.mode == "interchange":
        threading.Thread(target=_end_with, args=(given.driver,), daemon=True).start()
        runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__", alter_sys=True)
        return 0
    run = [(address, given.port) for address in given.addresses.split(",")]
    return keep(given.command, run, given.limit)


def keep(command: Sequence[str], run: Sequence[tuple[str, int]], limit: float) -> int:
    """Run a manager until it ends, one of its processes ends, or none of the addresses of the run has answered
    for `limit` seconds; then end what it has started.

    Returns 0 once the manager had processes: another pilot job is then worth a try. Before that, the
    manager's own exit code.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1)
    keeper = os.getpid()
    manager = psutil.Popen(command, preexec_fn=lambda: _die_with(keeper))
    seen: set[psutil.Process] = set()
    answered = asked = time.monotonic()
    try:
        while True:
            with contextlib.suppress(psutil.TimeoutExpired):
                code = int(manager.wait(timeout=_LOOK_SECONDS))
                return 0 if seen else code
            with contextlib.suppress(psutil.NoSuchProcess):
                seen |= set(manager.children())
            if any(not _lives(process) for process in seen):
                print("A process of the manager is gone; this pilot job ends.", file=sys.stderr)
                return 0
            now = time.monotonic()
            if now - asked >= min(_KNOCK_SECONDS, limit / 2):
                asked = now
                if any(_answers(address) for address in run):
                    answered = time.monotonic()
                elif now - answered >= limit:
                    print(
                        f"The run has not answered for {limit:.0f} s; this pilot job ends.", file=sys.stderr
                    )
                    return 0 if seen else 1
    finally:
        _end_all()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _end_all() -> None:
    """Kill all processes below this one, until there are none: one that dies may leave others."""
    for _ in range(20):
        below = psutil.Process().children(recursive=True)
        if not below:
            return
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(below, timeout=1)


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _end_with(driver: int) -> None:
    """End this process when its parent is another than the driver: the driver is gone."""
    while os.getppid() == driver:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
