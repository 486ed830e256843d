"""What a person sees while a run goes on: a live bar per step on a terminal, plain lines where there is none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
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
    return f"{value:.{digits}f} {prefix}{unit}" if unit == "B" else f"{value:.{digits}f}{' ' + prefix if prefix else ''} {unit}"


def duration(seconds: float) -> str:
    """Seconds as 4.2 s, 3 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _Rate(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        unit = task.fields["unit"]
        rate = amount(task.speed, unit) + "/s" if task.speed else ""
        documents = task.fields.get("documents", 0)
        if documents and task.elapsed:
            rate += f"  {amount(documents / task.elapsed, 'documents')}/s"
        return Text(f"{amount(task.completed, unit)} of {amount(task.total or 0, unit)}  {rate}", style="dim")


class Bars:
    """Events to live bars on `console`. A context manager: the bars stop when it ends, however it ends."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<30}"), BarColumn(bar_width=28), _Rate(), TimeRemainingColumn(compact=True), console=console
        )
        self._ids: dict[str, TaskID] = {}
        self._started = False

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._started:
            self._progress.stop()

    def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None:
        """Add a bar. What receipts prove done is left out: its time is nought, and the rate should be honest."""
        if not self._started:  # the display thread starts only now, after the engine has forked its workers
            self._progress.start()
            self._started = True
        label = LABELS.get(step.name, step.name)
        if done and not todo:
            label += " (done before)"
        total = sum(task.weight for task in todo)
        self._ids[step.name] = self._progress.add_task(label, total=total or 1, completed=0 if todo else 1, unit=step.unit)

    def step_moved(self, step: Step, units: int, documents: int) -> None:
        """Move the bar."""
        task = self._progress.tasks[self._progress.task_ids.index(self._ids[step.name])]
        self._progress.update(self._ids[step.name], completed=min(units, task.total or units), documents=documents)

    def step_finished(self, step: Step, seconds: float, skipped: int) -> None:
        """Fill the bar."""
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
        self._total = sum(task.weight for task in todo)
        self._start = self._last = monotonic()
        before = f", {len(done)} done before" if done else ""
        logger.info("%s: %d tasks%s, %s", LABELS.get(step.name, step.name), len(todo), before, amount(self._total, step.unit))

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
        rate = f", {amount(self._total / seconds, step.unit)}/s" if seconds > 0 and self._total else ""
        logger.info("%s: done in %s%s", LABELS.get(step.name, step.name), duration(seconds), rate)
