from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from btlm_data import progress
from btlm_data.progress import Bars, Lines
from btlm_data.task import Counts, Step, Task
from btlm_data.wording import amount, duration

STEP = Step(
    "dedupe.cluster",
    1,
    lambda task, settings, folder: Counts(),
    [Task("0", weight=600), Task("1", weight=400)],
    None,
    "",
)


@pytest.mark.parametrize(("value", "unit", "said"), [(0, "B", "0 B"), (999, "B", "999 B"), (1500, "B", "1.5 kB"), (999_600, "B", "1.0 MB"), (3.4e9, "B", "3.4 GB"), (1.2e6, "doc", "1.2 M documents"), (1, "task", "1 task"), (1, "token", "1 token"), (999_999, "token", "1.0 M tokens"), (5e18, "B", "5000 PB")])  # fmt: skip
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
    assert "dedupe: cluster" in said
    assert "100 %" in said
    assert "done before" in said.split("shard ")[1]


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
        "dedupe: cluster: 1 task, 1 done before, 600 B",
        "dedupe: cluster: 50 %, 15 B/s, 3 documents/s, 20.0 s left",
        "dedupe: cluster: done in 40.0 s, 15 B/s, 2 documents/s",
    ]


def test_a_step_that_is_counted_in_documents_has_one_rate(caplog: pytest.LogCaptureFixture) -> None:
    of_documents = Step("holdout", 1, STEP.work, STEP.tasks, None, "", "doc")
    with caplog.at_level(logging.INFO, "btlm_data"), Lines() as lines:
        lines.step_started(of_documents, STEP.tasks, [])
        lines.step_moved(of_documents, 1000, 900)
        lines.step_finished(of_documents, 2.0, 0)
    assert caplog.records[-1].getMessage() == "holdout: done in 2.0 s, 500 documents/s"


def test_a_finished_bar_keeps_the_rate_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    now = 0.0
    bars = Bars(Console(file=out, force_terminal=True, width=120, get_time=lambda: now))
    with bars:
        bars.step_started(STEP, STEP.tasks, [])
        now = 10.0
        bars.step_moved(STEP, 1000, 200)
        bars.step_finished(STEP, 10.0, 0)
        now = 500.0
        bars.step_started(Step("shard", 1, STEP.work, STEP.tasks, None, "", "token"), STEP.tasks, [])
        now = 1000.0
    last = out.getvalue().split("dedupe: cluster")[-1]
    assert "100 B/s, 20 documents/s" in last
    assert "10.0 s" in last


@pytest.mark.parametrize("width", [80, 120])
def test_names_and_numbers_are_whole_at_any_usual_width(width: int) -> None:
    out = io.StringIO()
    with Bars(Console(file=out, force_terminal=True, color_system=None, width=width)) as bars:
        for name in ("acquire", "dedupe.split bands", "shard"):
            step = Step(name, 1, STEP.work, [Task("0", weight=10**13)], None, "", "token")
            bars.step_started(step, step.tasks, [])
            bars.step_moved(step, 123_456_789_012, 98_765_432)
            bars.step_finished(step, 5432.1, 0)
    last = out.getvalue().split("acquire")[-1]
    assert "…" not in last
    assert "dedupe: split bands" in last
    assert last.count("1.8 G tokens/s") == 3
    assert last.count("1 h 30 min") + last.count("1 h 31 min") == 3
