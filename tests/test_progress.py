from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from btlm_data import progress
from btlm_data.progress import Bars, Lines, amount, duration
from btlm_data.task import Counts, Step, Task

STEP = Step(
    "read",
    1,
    lambda task, settings, folder: Counts(),
    [Task("0", weight=600), Task("1", weight=400)],
    None,
    "",
)


@pytest.mark.parametrize(("value", "unit", "said"), [(0, "B", "0 B"), (999, "B", "999 B"), (1500, "B", "1.5 kB"), (999_600, "B", "1.0 MB"), (3.4e9, "B", "3.4 GB"), (1.2e6, "doc", "1.2 M doc"), (5e18, "B", "5000 PB")])  # fmt: skip
def test_amounts(value: float, unit: str, said: str) -> None:
    assert amount(value, unit) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (190, "3 min 10 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_terminal_shows_a_bar_per_step_and_what_was_done_before() -> None:
    out = io.StringIO()
    with Bars(Console(file=out, force_terminal=True, width=220)) as bars:
        bars.step_started(STEP, STEP.tasks, [])
        bars.step_moved(STEP, 500, 0)
        bars.step_finished(STEP, 1.0, 0)
        again = Step("shard", 1, STEP.work, STEP.tasks, None, "", "token")
        bars.step_started(again, [], STEP.tasks)
        bars.step_finished(again, 0.0, 2)
    said = out.getvalue()
    assert "read: clean, sketch, tokenize" in said
    assert "100 %" in said
    assert "done before" in said.split("write shards")[1]


def test_lines_say_how_far_and_how_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO, "btlm_data"), Lines() as lines:
        lines.step_started(STEP, STEP.tasks[:1], STEP.tasks[1:])
        lines.step_moved(STEP, 10, 0)
        now = 120.0
        lines.step_moved(STEP, 300, 60)
        lines.step_moved(STEP, 301, 60)
        lines.step_finished(STEP, 40.0, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "read: clean, sketch, tokenize: 1 tasks, 1 done before, 600 B",
        "read: clean, sketch, tokenize: 50 %, 15 B/s, 3 documents/s, done in 20.0 s",
        "read: clean, sketch, tokenize: done in 40.0 s, 15 B/s",
    ]
