"""`inspect --cost`: what each step of a finished run was expected to take, beside what it took.

The expectation is that of `--plan` (estimate.py), with the amounts that the run really had: documents, bytes and
tokens of the ledger, tasks of provenance.json. So a difference is the cost of the work on that machine, not the guess of
a sample. Of duplicates no plan can know; what comparing them takes is expected as nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from btlm_data import planning
from btlm_data.errors import DataError
from btlm_data.estimate import Volume, Workload, by_run_step
from btlm_data.formats import dataset, provenance
from btlm_data.recipe.models import Run, Settings
from btlm_data.wording import amount, counted, duration


class StepCost(msgspec.Struct, frozen=True):
    """One step: tasks, seconds of all its tasks together, bytes written; None where the plan has no such step."""

    step: str
    planned_tasks: int | None
    tasks: int
    planned_seconds: float | None
    task_seconds: float
    planned_bytes: int | None
    written_bytes: int
    seconds: float


class RunCost(msgspec.Struct, frozen=True):
    """The steps in the order in which they ran. workers: of the run. seconds: by the clock."""

    steps: tuple[StepCost, ...]
    workers: int
    planned_seconds: float
    task_seconds: float
    seconds: float


def compare(folder: Path) -> RunCost:
    """Plan against actual. Raises DataError where the folder has no provenance.json of this version."""
    value = dataset.read(folder)
    sets = (
        [dataset.read_set(folder / one.name) for one in value.sets]
        if isinstance(value, dataset.SetList)
        else [value]
    )
    made = provenance.read(folder)
    if made is None:
        raise DataError(
            f"{folder} has no {provenance.FILE_NAME}, which says what its steps took. Restore it."
        )
    if made.workers is None:
        raise DataError(
            f"{folder}/{provenance.FILE_NAME} is of an earlier version, which did not keep what tasks took. Prepare the dataset again."
        )
    workload = _workload(sets, made)
    planned = by_run_step(planning.estimates(workload))
    steps = []
    for took in made.steps:
        expected = planned.get(took.step)
        steps.append(
            StepCost(
                took.step,
                expected.tasks if expected else None,
                took.tasks,
                expected.cpu_seconds if expected else None,
                took.task_seconds,
                expected.work_bytes + expected.out_bytes if expected else None,
                took.bytes,
                took.seconds,
            )
        )
    return RunCost(
        tuple(steps),
        made.workers,
        sum(step.planned_seconds or 0.0 for step in steps),
        sum(step.task_seconds for step in steps),
        sum(step.seconds for step in steps),
    )


def _workload(sets: Sequence[dataset.Dataset], made: provenance.Provenance) -> Workload:
    """The amounts that the run had."""
    first = sets[0]
    cleaned = [row.out for row in first.rows("clean")]
    documents, text_bytes = (sum(getattr(row, name) for row in cleaned) for name in ("documents", "bytes"))
    tokenized = [row.out for row in first.rows("tokenize")]
    kept_bytes, kept_tokens = (sum(getattr(row, name) for row in tokenized) for name in ("bytes", "tokens"))
    streams = sum(row.out.tokens for one in sets for row in one.rows("shuffle"))
    if first.set.share is None:
        streams //= len(sets)
    parts = next((step.tasks for step in made.steps if step.step == "read"), 1)
    tokens = round(text_bytes * kept_tokens / max(1, kept_bytes))
    settings = Settings.model_validate(made.configuration)
    return Workload(
        Volume(first.source.files, parts, first.source.bytes, documents, text_bytes, tokens),
        settings,
        Run(out=".", workers=made.workers or 1, memory=made.memory),
        repeats=streams / max(1, tokens),
        token_bytes=2 if first.dtype == "uint16" else 4,
        eos_id=first.tokenizer.eos_id,
        splits=max(1, len(first.splits)),
    )


def to_json(cost: RunCost) -> dict[str, Any]:
    """As JSON values."""
    values: dict[str, Any] = msgspec.to_builtins(cost)
    return values


def render(cost: RunCost, console: Console) -> None:
    """Print the steps: plan / actual."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", no_wrap=True, style="bold")
    for column in ("tasks", "planned", "took", "ratio", "planned", "wrote", "clock"):
        table.add_column(column, justify="right", no_wrap=True)
    for step in cost.steps:
        planned = step.planned_seconds
        table.add_row(
            step.step,
            f"{step.tasks:,}",
            duration(planned) if planned is not None else "",
            duration(step.task_seconds),
            f"{step.task_seconds / planned:.2f}" if planned and step.task_seconds >= 1 else "",
            amount(step.planned_bytes, "B") if step.planned_bytes is not None else "",
            amount(step.written_bytes, "B"),
            duration(step.seconds),
        )
    ratio = cost.task_seconds / cost.planned_seconds if cost.planned_seconds else 0.0
    table.add_row(
        "all",
        "",
        duration(cost.planned_seconds),
        duration(cost.task_seconds),
        f"{ratio:.2f}",
        "",
        "",
        duration(cost.seconds),
    )
    console.print(table)
    console.print(
        f"planned, took: seconds of all tasks together, with {counted(cost.workers, 'worker')}; clock: of the step. Nothing is planned "
        "for duplicates, nor for the start of each worker.",
        highlight=False,
        soft_wrap=True,
    )
