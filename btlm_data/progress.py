"""What a person sees during a run: a live bar for each step on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from btlm_data.task import Step, Task
from btlm_data.wording import amount, counted, duration

logger = logging.getLogger(__name__)

_LINE_SECONDS = 10.0
_NARROW = 100  # columns below which a bar shows one rate only


def label(step: Step) -> str:
    """A step's name: its stage, and its own where the stage has several steps ("dedupe: cluster")."""
    return step.name.replace(".", ": ")


def _rates(units: float, unit: str, documents: float, seconds: float) -> str:
    """Speed in the step's unit and, where they were counted besides, in documents."""
    rates = [f"{amount(units / seconds, unit)}/s"]
    if documents and unit != "doc":
        rates.append(f"{amount(documents / seconds, 'document')}/s")
    return ", ".join(rates)


class _Rate(ProgressColumn):
    """Speed of the step: so far while it runs, over its whole time when it has ended."""

    def render(self, task: RichTask) -> Text:
        if task.fields.get("before"):
            return Text("done before")
        seconds = task.fields.get("seconds") or task.elapsed
        if not seconds or not task.completed:
            return Text("")
        documents = 0 if task.fields["narrow"] else task.fields.get("documents", 0)
        return Text(_rates(task.completed, task.fields["unit"], documents, seconds), style="dim")


class _Time(ProgressColumn):
    """Time left while it runs, time taken when it has ended."""

    def render(self, task: RichTask) -> Text:
        if (seconds := task.fields.get("seconds")) is not None:
            return Text("" if task.fields.get("before") else duration(seconds), style="green")
        left = task.time_remaining
        return Text("" if left is None else f"{duration(left)} left", style="cyan")


class Bars:
    """Events to live bars on `console`. A context manager: the bars stop when it ends, however it ends."""

    def __init__(self, console: Console) -> None:
        whole = Column(no_wrap=True, overflow="fold")
        self._progress = Progress(
            TextColumn("{task.description}", table_column=whole, markup=False),
            BarColumn(bar_width=None, table_column=Column(min_width=4, max_width=14, ratio=1)),
            TextColumn("{task.percentage:>3.0f} %", table_column=whole),
            _Rate(whole),
            _Time(whole),
            console=console,
        )
        self._ids: dict[str, TaskID] = {}
        self._started = False

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            self._progress.stop()

    def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None:
        """Add a bar. Tasks done by an earlier run are left out of it, so that the rate is this run's."""
        if not step.tasks:
            return
        if not self._started:  # the display thread starts only now, after the engine has forked its workers
            self._progress.start()
            self._started = True
        total = sum(task.weight for task in todo)
        before = bool(done) and not todo
        self._ids[step.name] = self._progress.add_task(
            label(step),
            total=total or 1,
            completed=0 if todo else 1,
            unit=step.unit,
            before=before,
            narrow=self._progress.console.width < _NARROW,
        )

    def step_moved(self, step: Step, units: int, documents: int) -> None:
        """Move the bar."""
        if (task_id := self._ids.get(step.name)) is not None:
            self._progress.update(task_id, completed=min(units, self._total(task_id)), documents=documents)

    def step_finished(self, step: Step, seconds: float, skipped: int) -> None:
        """Fill the bar; from now on its rate and time stay as they are."""
        if (task_id := self._ids.get(step.name)) is not None:
            self._progress.update(task_id, completed=self._total(task_id), seconds=seconds)
            self._progress.stop_task(task_id)

    def _total(self, task_id: TaskID) -> float:
        task = next(task for task in self._progress.tasks if task.id == task_id)
        return task.total or 1


class Lines:
    """Events to log lines, where there is no terminal: at a step's start and end, and every ten seconds
    between.
    """

    def __init__(self) -> None:
        self._last = 0.0
        self._start = 0.0
        self._total = 0
        self._documents = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None:
        """Log what is to be done and what was done before."""
        if not step.tasks:
            return
        self._total, self._documents = sum(task.weight for task in todo), 0
        self._start = self._last = monotonic()
        before = f", {len(done):,} done before" if done else ""
        weight = "" if step.unit == "task" else f", {amount(self._total, step.unit)}"
        logger.info("%s: %s%s%s", label(step), counted(len(todo), "task"), before, weight)

    def step_moved(self, step: Step, units: int, documents: int) -> None:
        """Log now and then."""
        now = monotonic()
        self._documents = documents
        if now - self._last < _LINE_SECONDS or not self._total:
            return
        self._last = now
        seconds = now - self._start
        left = duration((self._total - units) * seconds / units) if 0 < units < self._total else "0 s"
        share = min(1.0, units / self._total)
        shown = _rates(units, step.unit, documents, seconds)
        logger.info("%s: %.0f %%, %s, %s left", label(step), 100 * share, shown, left)

    def step_finished(self, step: Step, seconds: float, skipped: int) -> None:
        """Log the step's one line."""
        if not step.tasks:
            return
        measured = seconds > 0 and self._total
        rates = f", {_rates(self._total, step.unit, self._documents, seconds)}" if measured else ""
        logger.info("%s: done in %s%s", label(step), duration(seconds), rates)
