"""Tasks whose workers die: tried again, a bounded number of times, then put aside with their inputs and their
logs.

    failures/STEP/TASK.json   {"digest", "step", "task", "title", "reasons": [how each try ended], "log"}

A task that kills its worker every time (a file that a library crashes on, a document too large for the
memory) is tried `MOST_TRIES` times, the later tries after everything else of its step, so that it holds up
nothing. Then the run stops and names it; or, with --skip-failed, continues without its input, which the
ledger counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from btlm_data.engine.base import Engine, Lost
from btlm_data.engine.execute import Job
from btlm_data.engine.receipts import Receipt
from btlm_data.errors import SafetyStop
from btlm_data.storage import Store
from btlm_data.wording import counted

FOLDER = "failures"
MOST_TRIES = 3
_SHOWN = 5


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task that was put aside. title: what a person calls its input. reasons: how each try ended."""

    digest: str
    step: str
    task: str
    title: str
    reasons: tuple[str, ...]
    log: str


def do_all(engine: Engine, jobs: Sequence[Job], failed: list[Failure]) -> Iterator[Receipt | Lost | None]:
    """Do the jobs of one step, and lost jobs again; yields as `Engine.map` does. Jobs lost every time are
    added to `failed`.
    """
    reasons: dict[str, tuple[str, ...]] = {}
    for attempt in range(1, MOST_TRIES + 1):
        lost: list[Lost] = []
        for ended in engine.map(jobs):
            if isinstance(ended, Lost):
                lost.append(ended)
                task = ended.job.task
                reasons[task.id] = (*reasons.get(task.id, ()), ended.reason)
            yield ended
        if not lost:
            return
        if attempt == MOST_TRIES:
            failed += [_failure(loss, reasons[loss.job.task.id]) for loss in lost]
        jobs = [loss.job for loss in lost]


def _failure(lost: Lost, reasons: tuple[str, ...]) -> Failure:
    job = lost.job
    return Failure(job.digest, job.step, job.task.id, title_of(job), reasons, lost.log)


def title_of(job: Job) -> str:
    """What a person calls the task: its input, or its number."""
    return job.task.title or f"task {job.task.id}"


def write(store: Store, failure: Failure) -> None:
    """Keep a failure, for people and for --skip-failed."""
    data = msgspec.json.format(msgspec.json.encode(failure), indent=1)
    store.write(_name(failure.step, failure.task), data + b"\n", durable=False)


def read_all(store: Store, step: str = "") -> list[Failure]:
    """The failures of a step, or of all, in the order of their names; what is torn is left out."""
    failures = []
    for entry in store.list(f"{FOLDER}/{step}" if step else FOLDER):
        try:
            failures.append(msgspec.json.decode(store.read(entry.name), type=Failure))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
    return failures


def forget(store: Store, step: str) -> None:
    """Remove the failures of a step: its tasks are about to be tried again."""
    store.delete(entry.name for entry in store.list(f"{FOLDER}/{step}"))


def stop(failed: Sequence[Failure], store: Store, *, can_skip: bool) -> SafetyStop:
    """The error that names what was put aside and says what to do."""
    lines = [
        f"{counted(len(failed), 'task')} of the step {failed[0].step} failed {MOST_TRIES} times each: "
        "every time the worker died. All other tasks of the step are done.",
    ]
    for failure in failed[:_SHOWN]:
        lines.append(f"  {failure.title}: {failure.reasons[-1]}")
        lines.append(f"    details: {store.shown}/{_name(failure.step, failure.task)}")
    if len(failed) > _SHOWN:
        lines.append(f"  and {len(failed) - _SHOWN:,} more in {store.shown}/{FOLDER}")
    lines.append(
        "If memory ran out, rerun the same command with fewer --workers or a smaller --memory; it continues from here."
    )
    if can_skip:
        lines.append(
            "To prepare the rest without them, rerun it with --skip-failed: the ledger counts them as unreadable_file."
        )
    return SafetyStop("\n".join(lines))


def _name(step: str, task: str) -> str:
    return f"{FOLDER}/{step}/{task}.json"
