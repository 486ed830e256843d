"""What a person sees while a run goes on: a live bar per step on a terminal, plain lines where there is none."""

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

logger = logging.getLogger(__name__)

LABELS = {
    "read": "read: clean, sketch, tokenize",
    "holdout": "holdout",
    "scatter": "shuffle: documents",
    "sort": "shuffle: order",
    "pack": "pack samples",
    "shard": "write shards",
    "documents": "table of documents",
}
_LINE_SECONDS = 10.0


def amount(value: float, unit: str) -> str:
    """A readable amount: 3.4 GB, 1.2 M doc."""
    names = ("", " k", " M", " G", " T", " P")
    power = 0
    while value >= 999.5 and power < len(names) - 1:
        value /= 1000
        power += 1
    digits = 0 if power == 0 or value >= 99.95 else 1
    prefix = names[power].strip()
    return (
        f"{value:.{digits}f} {prefix}{unit}"
        if unit == "B"
        else f"{value:.{digits}f}{' ' + prefix if prefix else ''} {unit}"
    )


def duration(seconds: float) -> str:
    """Seconds as 4.2 s, 3 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _Rate(ProgressColumn):
    """Speed so far, in the step's unit and in documents where the step counts them."""

    def render(self, task: RichTask) -> Text:
        if not task.elapsed or not task.completed or task.fields.get("before"):
            return Text("done before" if task.fields.get("before") else "")
        rate = f"{amount(task.completed / task.elapsed, task.fields['unit'])}/s"
        if documents := task.fields.get("documents", 0):
            rate += f" {amount(documents / task.elapsed, 'doc')}/s"
        return Text(rate, style="dim")


class _Time(ProgressColumn):
    """Time left while it runs, time taken when it has ended."""

    def render(self, task: RichTask) -> Text:
        if task.finished:
            return Text(duration(task.finished_time or 0), style="green")
        left = task.time_remaining
        return Text("" if left is None else f"{duration(left)} left", style="cyan")


class Bars:
    """Events to live bars on `console`. A context manager: the bars stop when it ends, however it ends."""

    def __init__(self, console: Console) -> None:
        line = Column(no_wrap=True)
        description = TextColumn("{task.description:<29}", table_column=line)
        share = TextColumn("{task.percentage:>3.0f} %", table_column=line)
        self._progress = Progress(
            description, BarColumn(bar_width=12), share, _Rate(line), _Time(line), console=console
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
        """Add a bar. What receipts prove done is left out: its time is nought, and the rate should be honest."""
        if not step.tasks:
            return
        if not self._started:  # the display thread starts only now, after the engine has forked its workers
            self._progress.start()
            self._started = True
        total = sum(task.weight for task in todo)
        label = LABELS.get(step.name, step.name)
        before = bool(done) and not todo
        self._ids[step.name] = self._progress.add_task(
            label, total=total or 1, completed=0 if todo else 1, unit=step.unit, before=before
        )

    def step_moved(self, step: Step, units: int, documents: int) -> None:
        """Move the bar."""
        if step.name not in self._ids:
            return
        task = self._progress.tasks[self._progress.task_ids.index(self._ids[step.name])]
        self._progress.update(
            self._ids[step.name], completed=min(units, task.total or units), documents=documents
        )

    def step_finished(self, step: Step, seconds: float, skipped: int) -> None:
        """Fill the bar."""
        if step.name not in self._ids:
            return
        task = self._progress.tasks[self._progress.task_ids.index(self._ids[step.name])]
        self._progress.update(self._ids[step.name], completed=task.total)


class Lines:
    """Events to log lines, where there is no terminal: at a step's start and end, and every ten seconds between."""

    def __init__(self) -> None:
        self._last = 0.0
        self._start = 0.0
        self._total = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None:
        """Log what is to be done and what was done before."""
        if not step.tasks:
            return
        self._total = sum(task.weight for task in todo)
        self._start = self._last = monotonic()
        before = f", {len(done)} done before" if done else ""
        logger.info(
            "%s: %d tasks%s, %s",
            LABELS.get(step.name, step.name),
            len(todo),
            before,
            amount(self._total, step.unit),
        )

    def step_moved(self, step: Step, units: int, documents: int) -> None:
        """Log now and then."""
        now = monotonic()
        if now - self._last < _LINE_SECONDS or not self._total:
            return
        self._last = now
        rate = units / (now - self._start)
        left = duration((self._total - units) / rate) if rate and units < self._total else "soon"
        share = min(1.0, units / self._total)
        shown = f"{amount(rate, step.unit)}/s"
        if documents:
            shown += f", {amount(documents / (now - self._start), 'documents')}/s"
        logger.info("%s: %.0f %%, %s, done in %s", LABELS.get(step.name, step.name), 100 * share, shown, left)

    def step_finished(self, step: Step, seconds: float, skipped: int) -> None:
        """Log the step's one line."""
        if not step.tasks:
            return
        rate = f", {amount(self._total / seconds, step.unit)}/s" if seconds > 0 and self._total else ""
        logger.info("%s: done in %s%s", LABELS.get(step.name, step.name), duration(seconds), rate)
