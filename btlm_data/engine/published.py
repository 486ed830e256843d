"""The jobs of a step as a file in the work folder, from which any process that reaches it can do them.

    engine/STEP-XXXX.jobs    JSON values, one a line (values.py): the head (what all jobs share), each task;
                             at the end the index: [[task, offset, length], ...]
    engine/board.json        {"state": "working", "jobs": [name, head, index offset, index length], "workers":
                             how many there were, "post": unlike any other}: what free workers are to do now;
                             {"state": "between"} steps; {"state": "finished"} once the dataset is complete
    engine/errors/STEP/TASK  the error that ended a task of a free worker

What goes to a worker is a `Pointer` (a few numbers), what comes back a receipt or an error, in a few bytes.
"""

from __future__ import annotations

import json
import secrets
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from btlm_data import errors
from btlm_data.engine import values
from btlm_data.engine.base import EngineSettings, Lost, LostError
from btlm_data.engine.execute import Job, execute
from btlm_data.engine.local import LocalEngine, NurseryError
from btlm_data.engine.receipts import Receipt
from btlm_data.errors import BtlmError, DataError
from btlm_data.fingerprint import digest
from btlm_data.formats.columns import DamagedError
from btlm_data.locations import Locations
from btlm_data.storage import Store, open_store
from btlm_data.storage.claims import Worker
from btlm_data.task import Artifact

FOLDER = "engine"
BOARD = f"{FOLDER}/board.json"
ERRORS = f"{FOLDER}/errors"


class Pointer(NamedTuple):
    """Where a job is. work: URL of the store. jobs: the file. head: bytes of the head. offset, length: of its
    task.
    """

    work: str
    jobs: str
    head: int
    offset: int
    length: int


class Published(msgspec.Struct, frozen=True):
    """A file of jobs. index: task -> (offset, length)."""

    work: str
    name: str
    head: int
    index: dict[str, tuple[int, int]]
    index_extent: tuple[int, int]

    def pointer(self, task: str) -> Pointer:
        """Where the job of a task is."""
        return Pointer(self.work, self.name, self.head, *self.index[task])


def publish(store: Store, jobs: Sequence[Job]) -> Published:
    """Write the jobs of one step. Raises ConfigError if they need secrets (signed addresses)."""
    first = jobs[0]
    head = _line(
        [
            first.step,
            first.version,
            values.encode(first.work),
            values.encode(first.settings),
            values.encode(first.locations),
        ]
    )
    name = f"{FOLDER}/{first.step}-{digest([job.digest for job in jobs])[:16]}.jobs"
    index: dict[str, tuple[int, int]] = {}
    position = len(head)
    with store.create(name, durable=False) as creating:
        creating.file.write(head)
        for job in jobs:
            line = _line([job.digest, values.encode(job.task)])
            creating.file.write(line)
            index[job.task.id] = (position, len(line))
            position += len(line)
        last = _line([[task, *extent] for task, extent in index.items()])
        creating.file.write(last)
    return Published(store.url, name, len(head), index, (position, len(last)))


def post(store: Store, published: Published, workers: int) -> None:
    """Say on the board that these jobs are to be done. workers: how many free workers there are now, about."""
    jobs = [published.name, published.head, *published.index_extent]
    value = {"state": "working", "jobs": jobs, "workers": workers, "post": secrets.token_hex(8)}
    store.write(BOARD, json.dumps(value).encode(), durable=False)


def withdraw(store: Store) -> None:
    """Say on the board that there is nothing to do now. It stays where it is: a file that is missing may be kept as missing by
    the cache of a network file system.
    """
    store.write(BOARD, json.dumps({"state": "between"}).encode(), durable=False)


def finish(store: Store) -> None:
    """Say on the board that the run is over, so that workers end."""
    store.write(BOARD, json.dumps({"state": "finished"}).encode(), durable=False)


class Board(NamedTuple):
    """What the board says. jobs: as posted, or None. workers: how many there were. post: differs between any two
    posts, also of the same jobs.
    """

    state: str
    jobs: tuple[str, int, int, int] | None = None
    workers: int = 0
    post: str = ""


def read_board(store: Store) -> Board | None:
    """The board; None where there is none (yet)."""
    present = store.read_version(BOARD)
    if present is None:
        return None
    try:
        value = json.loads(present[0])
        if not value.get("jobs"):
            return Board(str(value["state"]))
        return Board(
            str(value["state"]),
            tuple(value["jobs"]),
            int(value.get("workers", 0)),
            str(value.get("post", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_index(store: Store, board: Board) -> Published:
    """The jobs that the board names. Raises DataError if they are gone or damaged."""
    assert board.jobs is not None
    name, head, offset, length = board.jobs
    rows = _parse(store, name, offset, length)
    return Published(store.url, name, head, {row[0]: (row[1], row[2]) for row in rows}, (offset, length))


def load(pointer: Pointer) -> Job:
    """The job at a place. Raises DataError if it is not there, or of another version of this program."""
    step, version, work, settings, locations = _head(pointer.work, pointer.jobs, pointer.head)
    task_digest, task = _parse(open_store(pointer.work), pointer.jobs, pointer.offset, pointer.length)
    return Job(step, version, work, settings, values.decode(task), task_digest, locations)


@lru_cache(maxsize=2)
def _head(work: str, jobs: str, length: int) -> tuple[str, int, Any, Any, Locations]:
    step, version, function, settings, locations = _parse(open_store(work), jobs, 0, length)
    return step, version, values.decode(function), values.decode(settings), values.decode(locations)


def do(pointer: Pointer, execute: Callable[[Job], Receipt] = execute) -> bytes:
    """Do a job in this process; returns the receipt, or the error, as `outcome` reads it. Raises nothing but
    for SystemExit.

    execute: what does it.
    """
    try:
        worker, job = _worker(pointer.work), load(pointer)
        worker.take(job.step, job.task.id)
        try:
            return msgspec.json.encode(execute(job))
        finally:
            worker.release(job.step, job.task.id)
    except Exception as error:
        return encode_error(error)


def do_apart(pointer: Pointer) -> bytes:
    """As `do`, but in a process below this one: what kills the task leaves this process, and `outcome` raises
    LostError.
    """
    _apart().start()  # before this process has a thread
    return do(pointer, _execute_apart)


def _execute_apart(job: Job) -> Receipt:
    """Do a job in the process below. Raises LostError if that ended before the job."""
    try:
        for ended in _apart().map([job]):
            if isinstance(ended, Lost):
                raise LostError(ended.reason, ended.log)
            if ended is not None:
                return ended
    except NurseryError as error:
        _apart().kill()
        _apart.cache_clear()
        raise LostError(str(error)) from error
    raise AssertionError("a job has ended without an end")


@lru_cache(maxsize=1)
def _apart() -> LocalEngine:
    return LocalEngine(EngineSettings(workers=1), apart=True)


@lru_cache(maxsize=4)
def _worker(work: str) -> Worker:
    """The own process in a work folder, as long as it lives."""
    return Worker(open_store(work))


def outcome(data: bytes) -> Receipt:
    """What `do` returned. Raises the error that it stands for."""
    value = msgspec.json.decode(data)
    if "error" not in value:
        return msgspec.convert(value, Receipt)
    kind, message, traceback_text = value["error"], value["message"], value["traceback"]
    cls = getattr(errors, kind, None)
    error: Exception
    if kind == "LostError":
        raise LostError(message, value["log"])
    if kind == "DamagedError":
        error = DamagedError(message, Artifact(*value["artifact"]))
    elif isinstance(cls, type) and issubclass(cls, BtlmError):
        error = cls(message)
    else:
        error = RuntimeError(f"{kind}: {message}")
    raise error from RuntimeError(f"in a worker:\n{traceback_text}")


def encode_error(error: BaseException) -> bytes:
    """An error as `outcome` reads it."""
    value: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    value["traceback"] = "".join(traceback.format_exception(error))[-20_000:]
    if isinstance(error, LostError):
        value["log"] = error.log
    if isinstance(error, DamagedError):
        value["artifact"] = list(error.artifact)
    return msgspec.json.encode(value)


def _line(value: Any) -> bytes:
    return (json.dumps(value, separators=(",", ":")) + "\n").encode()


def _parse(store: Store, name: str, offset: int, length: int) -> Any:
    try:
        return json.loads(store.read(name, offset, offset + length))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{store.shown}/{name} is damaged. Rerun the same command: the file is made again."
        ) from error
