"""A lock on a store: held by one process, kept alive by a heartbeat, taken over when its holder is gone.

    NAME  JSON: {"holder": "process 4711 on host", "token": hex, "machine": id, "process": pid, "started":
          ticks, "beat": n}

The holder writes the file again every `HEARTBEAT` seconds. Another process takes the lease over if the holder
ran on this machine and is dead (seen at once), or if the file has not changed for `EXPIRY` seconds of its own
watching, so that no two clocks are ever compared. Taking over and beating are conditional writes
(storage/base.py), so that of two processes that try at once, one gets it. A holder that finds the lease taken
stops writing: `check` raises. No advisory lock of the operating system is used: they are missing on many
network file systems.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from btlm_data.errors import BtlmError, OutputError
from btlm_data.storage.base import Store
from btlm_data.storage.process import machine, started

HEARTBEAT = 10.0  # seconds
EXPIRY = 60.0  # seconds without a heartbeat after which a holder on another machine counts as gone


class Lease:
    """A held lease. `check` raises OutputError once another process has taken it."""

    def __init__(self, store: Store, name: str, state: dict[str, Any], version: str) -> None:
        self._store, self._name, self._state, self._version = store, name, state, version
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="btlm lease", daemon=True)
        self._process = os.getpid()

    def check(self) -> None:
        """Raise OutputError if the lease has been lost."""
        if self._lost:
            raise OutputError(
                f"{self._store.shown} was taken over by another run while this one was not responding. "
                "Nothing more is written by this one. Wait for the other run, or choose another folder."
            )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            self._state["beat"] += 1
            try:
                version = self._store.replace_version(self._name, encode_state(self._state), self._version)
            except BtlmError:
                continue  # the store has a fault; the next heartbeat may come through
            if version is None:
                self._lost = True
                return
            self._version = version

    def _release(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=HEARTBEAT)
        present = self._store.read_version(self._name)
        if present is not None and decode_state(present[0]).get("token") == self._state["token"]:
            self._store.delete([self._name])


@contextlib.contextmanager
def hold(
    store: Store, name: str, purpose: str, *, option: str = "folder", heartbeat: bool = True
) -> Iterator[Lease]:
    """Hold the lease `name` for the length of the block.

    purpose, option: for the message, "The work folder X is" in use, "choose another --work-dir".

    heartbeat: keep it alive by a thread; without one (where a process is about to fork) call `start` later.
    Raises OutputError naming the holder if another live process has it.
    """
    state = own_state()
    lease = _take(store, name, state, purpose, option)
    if heartbeat:
        lease._thread.start()
    try:
        yield lease
    finally:
        if os.getpid() == lease._process:
            lease._release()


def start_heartbeat(lease: Lease) -> None:
    """Start the heartbeat of a lease that was taken without one."""
    if not lease._thread.is_alive():
        lease._thread.start()


def _take(store: Store, name: str, state: dict[str, Any], purpose: str, option: str) -> Lease:
    unreadable = 0
    watched: tuple[str, float] | None = None  # the version seen first, and when
    while True:
        version = store.create_new(name, encode_state(state))
        if version is not None:
            return Lease(store, name, state, version)
        present = store.read_version(name)
        if present is None:
            unreadable += 1  # just released, or no file at all: a folder, a pipe, a link that leads nowhere
            if unreadable > 50:
                raise OutputError(
                    f"{store.shown}/{name} is in the way: it is not a file that btlm-data wrote. Remove it, or choose "
                    f"another {option}."
                )
            time.sleep(0.02)
            continue
        holder, now = decode_state(present[0]), time.monotonic()
        alive = is_alive(holder)
        is_beating = watched is not None and watched[0] != present[1]
        if alive or (alive is None and is_beating):
            raise OutputError(
                f"{purpose} in use by {holder.get('holder', 'another run')}. Two runs would overwrite each other's "
                f"files. Wait for it to end, or choose another {option}."
            )
        watched = watched or (present[1], now)
        if alive is False or "token" not in holder or now - watched[1] >= EXPIRY:
            version = store.replace_version(name, encode_state(state), present[1])
            if version is not None:
                return Lease(store, name, state, version)
            watched = None
            time.sleep(0.02)
        else:
            time.sleep(0.5)


def own_state() -> dict[str, Any]:
    """What names this process and lets others on this machine see whether it lives."""
    return {
        "holder": f"process {os.getpid()} on {socket.gethostname()}",
        "token": secrets.token_hex(8),
        "machine": machine(),
        "process": os.getpid(),
        "started": started(os.getpid()),
        "beat": 0,
    }


def is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether the holder lives, if it ran on this machine; None if only its heartbeat can tell."""
    if holder.get("machine") != machine() or not isinstance(holder.get("process"), int):
        return None
    began = started(holder["process"])
    return began is not None and began == holder.get("started")


def encode_state(state: dict[str, Any]) -> bytes:
    """What a lease's or a claim's file holds."""
    return (json.dumps(state, sort_keys=True) + "\n").encode()


def decode_state(data: bytes) -> dict[str, Any]:
    """The state in such a file; empty where it is none."""
    try:
        value = json.loads(data[:4096])
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
