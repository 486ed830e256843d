"""`btlm-data status`: what stands in a work folder (engine/status.py), for people and for programs."""

from __future__ import annotations

import time
from typing import Any

from msgspec import to_builtins
from rich.console import Console
from rich.table import Table

from btlm_data import terminal
from btlm_data.engine import status
from btlm_data.engine.status import Status, StepStatus
from btlm_data.errors import InputError
from btlm_data.storage import Store
from btlm_data.wording import amount, counted, duration

_EVERY = 2.0
_SHOWN = 5


def show(store: Store, console: Console, *, watch: bool, as_json: bool) -> None:
    """Print the status once, or until the run is over. Raises InputError where there is no run."""
    while True:
        found = status.read(store)
        if found.run is None:
            raise InputError(
                f"There is no run in {store.shown}. Name a work folder: --work-dir of the run, or .work in its --out."
            )
        if as_json:
            terminal.echo(terminal.to_json(to_builtins(found), indent=None if watch else 1))
        else:
            if watch and console.is_terminal:
                console.clear()
            render(found, console)
        if not watch or found.run.state != "running":
            return
        time.sleep(_EVERY)


def render(found: Status, console: Console) -> None:
    """Print a status."""
    run = found.run
    assert run is not None
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "", "tasks", "done", "speed", "left"):
        table.add_column(column, justify="left" if column in ("stage", "") else "right")
    for step in run.steps:
        table.add_row(*_cells(step, found))
    console.print(table)
    for line in _lines(found):
        console.print(line, highlight=False, soft_wrap=True)


def _cells(step: StepStatus, found: Status) -> list[str]:
    assert found.run is not None
    is_last = step is found.run.steps[-1]
    done = max(step.done, found.done_now or 0) if is_last else step.done
    share = step.units / step.weight if step.weight else 1.0
    speed = f"{amount(step.units / step.seconds, step.unit)}/s" if step.seconds > 0 and step.units else ""
    left = ""
    if step.state == "running" and found.run.state == "running" and 0 < step.units < step.weight:
        left = duration(step.seconds * (step.weight - step.units) / step.units)
    state = step.state if step.state == "done" or found.run.state == "running" else found.run.state
    return [
        step.name.replace(".", ": "),
        state,
        f"{done:,} of {step.tasks:,}",
        f"{100 * min(1.0, share):.0f} %",
        speed,
        left,
    ]


def _lines(found: Status) -> list[str]:
    run = found.run
    assert run is not None
    if run.state == "running":
        who = run.driver.get("holder")
        lines = [
            f"running, driven by {who}, engine {run.engine}"
            if found.driver_is_alive
            else f"the driver ({who}) is gone; rerun its command, it continues from here"
        ]
    else:
        lines = [run.state + (f": {run.message}" if run.message else "")]
    if found.running:
        lines.append(f"{counted(len(found.running), 'task')} running elsewhere:")
        lines += [f"  {step} {task}: {holder}" for step, task, holder in found.running[:_SHOWN]]
    slowest: list[tuple[float, str, str]] = sorted(
        ((seconds, step.name, title) for step in run.steps for title, seconds in step.slowest), reverse=True
    )
    if slowest:
        lines.append("slowest tasks:")
        lines += [f"  {duration(seconds)}: {step}, {title}" for seconds, step, title in slowest[:_SHOWN]]
    if found.failed:
        lines.append(f"{counted(len(found.failed), 'task')} put aside:")
        lines += [f"  {one.step}, {one.title}: {one.reasons[-1]}" for one in found.failed[-_SHOWN:]]
    return [str(_plain(line)) for line in lines]


def _plain(line: Any) -> str:
    """Text from outside as terminal.visible shows it."""
    return terminal.visible(str(line))
