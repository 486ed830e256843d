"""The body of `btlm-data worker`: take a task that nobody has, do it, look for the next. No daemon, no
server.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from types import FrameType

import msgspec

from btlm_data.engine import published, receipts
from btlm_data.engine.execute import execute
from btlm_data.engine.pace import SHORTEST, Pace
from btlm_data.engine.published import Board, Published
from btlm_data.errors import BtlmError, DataError, InputError
from btlm_data.storage import Store
from btlm_data.storage.claims import CLAIMS, Worker, working

logger = logging.getLogger(__name__)
_LONGEST_PAUSE = 5.0  # seconds between two looks at the board
_LOOKS_PER_SECOND = 500  # of all workers together: two requests each, where S3 allows 5,500 a second
_LIST_SECONDS_APART = 1.0  # until the tasks of the same board are listed again, at least
_LIST_COSTS = 20  # and so many times as long as listing takes
_LIST_SECONDS = 10.0  # after so much work, too: what others did in the meantime


class Share(msgspec.Struct, frozen=True):
    """Which of several workers this is: where in the list of tasks it begins. All tasks are for all workers."""

    rank: int = 0
    world: int = 1


class _Ended(Exception):
    """The system asks this process to end (walltime, preemption)."""


def work(store: Store, share: Share, idle: float) -> int:
    """Do tasks until the run of this work folder is over, or there was nothing to do for `idle` seconds; how
    many were done.

    Raises InputError if there was never a run: the folder may be misspelt.
    """
    done, last, next_list = 0, time.monotonic(), 0.0
    pace, seen, workers = Pace(_LONGEST_PAUSE), None, share.world
    worker: Worker | None = None  # nothing is written into a folder before a run has posted something in it
    with contextlib.ExitStack() as stack:
        stack.enter_context(_until_terminated())
        try:
            while True:
                begun = time.monotonic()
                board = published.read_board(store)
                looked = time.monotonic()
                if board is not None and board.state == "finished":
                    return done
                if board != seen:
                    seen, next_list = board, 0.0
                    pace.restart()
                count = 0
                if board is not None and board.jobs is not None and looked >= next_list:
                    workers = max(share.world, board.workers)
                    worker = worker or stack.enter_context(working(store))
                    count = _work_on(store, board, worker, share)
                    ended = time.monotonic()
                    next_list = ended + max(_LIST_SECONDS_APART, _LIST_COSTS * (ended - looked))
                if count:
                    done, last, next_list = done + count, time.monotonic(), 0.0
                    pace.restart()
                elif time.monotonic() - last > idle:
                    if board is None and worker is None:
                        raise InputError(
                            f"There was no run in {store.shown} for {idle:.0f} seconds. Name the work folder of a run: its "
                            "--work-dir, or .work in its --out."
                        )
                    return done
                else:
                    shortest = max(SHORTEST, workers / _LOOKS_PER_SECOND)
                    time.sleep(pace.pause(looked - begun, shortest))
        except _Ended:
            logger.info("this worker was asked to end; its task is free for others")
            return done


def _work_on(store: Store, board: Board, worker: Worker, share: Share) -> int:
    """Do tasks of what the board names, as long as it names that; how many were done."""
    try:
        publication = published.read_index(store, board)
    except DataError:  # the step has just ended
        return 0
    step = publication.name.rpartition("/")[2].rpartition("-")[0]
    done = 0
    begun = time.monotonic()
    for task in _free(store, step, publication, share):
        if not worker.take(step, task):
            continue
        try:
            # Looked at after the claim is made: the process that clears the board waits for the claims that
            # exist then.
            if published.read_board(store) != board:
                return done
            if _is_done(store, step, task):
                continue
            _do(store, publication, step, task)
            done += 1
        finally:
            worker.release(step, task)
        if time.monotonic() - begun > _LIST_SECONDS:
            break
    return done


def _free(store: Store, step: str, publication: Published, share: Share) -> list[str]:
    """Tasks that are neither done nor claimed, beginning at this worker's share of the list."""
    done = {entry.name for entry in store.list(f"{receipts.FOLDER}/{step}")}
    claimed = {entry.name for entry in store.list(f"{CLAIMS}/{step}")}
    tasks = list(publication.index)
    first = share.rank % share.world * len(tasks) // share.world
    return [
        task
        for task in tasks[first:] + tasks[:first]
        if receipts.name_of(step, task) not in done and f"{CLAIMS}/{step}/{task}" not in claimed
    ]


def _is_done(store: Store, step: str, task: str) -> bool:
    return store.size(receipts.name_of(step, task)) is not None


def _do(store: Store, publication: Published, step: str, task: str) -> None:
    """Do a task; an error is left for the driver to read."""
    begun = time.monotonic()
    try:
        execute(published.load(publication.pointer(task)))
    except _Ended:
        raise
    except Exception as error:
        logger.warning("%s %s: %s", step, task, error)
        with contextlib.suppress(BtlmError):
            store.write(f"{published.ERRORS}/{step}/{task}", published.encode_error(error), durable=False)
    else:
        logger.info("%s %s: done in %.1f s", step, task, time.monotonic() - begun)


@contextlib.contextmanager
def _until_terminated() -> Iterator[None]:
    """Turn SIGTERM into _Ended, so that the task is given back."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
