"""Who does which task now, where several processes take tasks from one work folder.

    engine/claims/STEP/TASK   {"worker", "holder", "machine", "process", "started"}: this process does the
                              task
    engine/workers/WORKER     the same with "beat": a heartbeat of the process, while it lives

A claim is made only where there is none, so one process gets a task. A claim is dead if its process ran on
this machine and is gone (seen at once), or if its heartbeat has not changed for `lease.EXPIRY` seconds of
one's own watching.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from btlm_data.errors import BtlmError
from btlm_data.storage import lease
from btlm_data.storage.base import Store

CLAIMS, WORKERS = "engine/claims", "engine/workers"
logger = logging.getLogger(__name__)


class Worker:
    """The own process, as it is in a work folder: a name, and a heartbeat until `close`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.state = {"worker": secrets.token_hex(6), **lease.own_state()}
        self._stop = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name="btlm worker", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """Unlike that of any other process."""
        return str(self.state["worker"])

    def take(self, step: str, task: str) -> bool:
        """Claim a task; False if another process has it."""
        return self._store.create_new(f"{CLAIMS}/{step}/{task}", lease.encode_state(self.state)) is not None

    def release(self, step: str, task: str) -> None:
        """Give a task back."""
        with contextlib.suppress(BtlmError):
            self._store.delete([f"{CLAIMS}/{step}/{task}"])

    def close(self) -> None:
        """The process does no more tasks."""
        self._stop.set()
        self._thread.join(timeout=lease.HEARTBEAT)
        with contextlib.suppress(BtlmError):
            self._store.delete([f"{WORKERS}/{self.name}"])

    def _write(self) -> None:
        self._store.write(f"{WORKERS}/{self.name}", lease.encode_state(self.state), durable=False)

    def _beat(self) -> None:
        while not self._stop.wait(lease.HEARTBEAT):
            self.state["beat"] += 1
            with contextlib.suppress(BtlmError):  # the store has a fault; the next one may come through
                self._write()


class Watch:
    """Tells which claims are dead, by looking again and again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._beats: dict[
            str, tuple[object, float]
        ] = {}  # worker -> its last beat, and when it was first seen

    def claims(self, step: str = "") -> dict[str, dict[str, Any]]:
        """Claims of a step (of all) by task ("STEP/TASK")."""
        states = {}
        for entry in self._store.list(f"{CLAIMS}/{step}" if step else CLAIMS):
            present = self._store.read_version(entry.name)
            if present is not None:
                key = entry.name.removeprefix(f"{CLAIMS}/{step}/" if step else f"{CLAIMS}/")
                states[key] = lease.decode_state(present[0])
        return states

    def is_dead(self, claim: dict[str, Any]) -> bool:
        """Whether the process of a claim is gone."""
        alive = lease.is_alive(claim)
        if alive is not None:
            return not alive
        worker, now = str(claim.get("worker")), time.monotonic()
        present = self._store.read_version(f"{WORKERS}/{worker}")
        beat = lease.decode_state(present[0]).get("beat") if present is not None else None
        seen = self._beats.get(worker)
        if seen is None or seen[0] != beat:
            self._beats[worker] = (beat, now)
            return False
        return now - seen[1] >= lease.EXPIRY


def remove_dead(store: Store, claims: dict[str, dict[str, Any]], watch: Watch) -> int:
    """Remove those of the claims (by "STEP/TASK") whose workers are dead, and what is left of the workers; how many others
    there are.
    """
    dead = {task: claim for task, claim in claims.items() if watch.is_dead(claim)}
    workers = {str(claim.get("worker")) for claim in dead.values()}
    store.delete([f"{CLAIMS}/{task}" for task in dead])
    store.delete([f"{WORKERS}/{name}" for name in workers if name.isalnum()])
    return len(claims) - len(dead)


def settle(store: Store, board: str) -> None:
    """Take away what is to be done, and wait until nobody does a task of an earlier run: from then on only
    this run writes.

    board: the file that names what is to be done. For the holder of the work folder's lease.
    """
    store.delete([board])
    watch, reported_at = Watch(store), 0.0
    while True:
        alive = remove_dead(store, watch.claims(), watch)
        if not alive:
            break
        if time.monotonic() - reported_at > 10:
            reported_at = time.monotonic()
            logger.info("waiting for %d tasks of an earlier run, which workers still do", alive)
        time.sleep(0.5)


@contextlib.contextmanager
def working(store: Store) -> Iterator[Worker]:
    """Be a worker, for the length of the block."""
    worker = Worker(store)
    try:
        yield worker
    finally:
        worker.close()
