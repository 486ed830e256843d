"""`btlm-data status`: what is in a work folder (engine/status.py), for people and for programs."""

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
        current = status.read(store)
        if current.run is None:
            raise InputError(
                f"There is no run in {store.shown}. Name a work folder: --work-dir of the run, or .work in its --out."
            )
        if as_json:
            terminal.echo(terminal.to_json(to_builtins(current), indent=None if watch else 1))
        else:
            if watch and console.is_terminal:
                console.clear()
            render(current, console)
        if not watch or current.run.state != "running":
            return
        time.sleep(_EVERY)


def render(current: Status, console: Console) -> None:
    """Print a status."""
    run = current.run
    assert run is not None
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "", "tasks", "done", "speed", "left"):
        table.add_column(column, justify="left" if column in ("stage", "") else "right")
    for step in run.steps:
        table.add_row(*_cells(step, current))
    console.print(table)
    for line in _lines(current):
        console.print(line, highlight=False, soft_wrap=True)


def _cells(step: StepStatus, current: Status) -> list[str]:
    assert current.run is not None
    is_last = step is current.run.steps[-1]
    done = max(step.done, current.done_now or 0) if is_last else step.done
    share = step.units / step.weight if step.weight else 1.0
    speed = f"{amount(step.units / step.seconds, step.unit)}/s" if step.seconds > 0 and step.units else ""
    left = ""
    if step.state == "running" and current.run.state == "running" and 0 < step.units < step.weight:
        left = duration(step.seconds * (step.weight - step.units) / step.units)
    state = step.state if step.state == "done" or current.run.state == "running" else current.run.state
    return [
        step.name.replace(".", ": "),
        state,
        f"{done:,} of {step.tasks:,}",
        f"{100 * min(1.0, share):.0f} %",
        speed,
        left,
    ]


def _lines(current: Status) -> list[str]:
    run = current.run
    assert run is not None
    if run.state == "running":
        who = run.driver.get("holder")
        lines = [
            f"running, driven by {who}, engine {run.engine}"
            if current.driver_is_alive
            else f"the driver ({who}) is gone; rerun its command, it continues from here"
        ]
    else:
        lines = [run.state + (f": {run.message}" if run.message else "")]
    if current.running:
        lines.append(f"{counted(len(current.running), 'task')} running elsewhere:")
        lines += [f"  {step} {task}: {holder}" for step, task, holder in current.running[:_SHOWN]]
    slowest: list[tuple[float, str, str]] = sorted(
        ((seconds, step.name, title) for step in run.steps for title, seconds in step.slowest), reverse=True
    )
    if slowest:
        lines.append("slowest tasks:")
        lines += [f"  {duration(seconds)}: {step}, {title}" for seconds, step, title in slowest[:_SHOWN]]
    if current.failed:
        lines.append(f"{counted(len(current.failed), 'task')} put aside:")
        lines += [
            f"  {failure.step}, {failure.title}: {failure.reasons[-1]}"
            for failure in current.failed[-_SHOWN:]
        ]
    return [str(_plain(line)) for line in lines]


def _plain(line: Any) -> str:
    """Text from outside as terminal.visible shows it."""
    return terminal.visible(str(line))
