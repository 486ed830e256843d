from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from btlm_data.engine.local import LocalEngine
from btlm_data.engine.runner import exclusive, is_done, run_step, task_digest
from btlm_data.errors import OutputError
from btlm_data.formats import receipts
from btlm_data.task import Counts, Step, Task

ROOT = Path(__file__).resolve().parents[2]
ran: list[str] = []


def work(task: Task, settings: Any, work_dir: str) -> Counts:
    """Write the task's outputs; dies halfway if told to."""
    ran.append(task.id)
    for output in task.outputs:
        path = Path(work_dir, output)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{settings} {dict(task.args)}")
    if task.args.get("fail"):
        raise OutputError("No room.")
    Path(work_dir, f"extra-{task.id}").write_text("found while working")
    counts = Counts(extra={"outputs": [f"extra-{task.id}"]})
    counts.add("train", task.id, "in", int(task.id) + 1)
    return counts


class Nobody:
    """Events that are only remembered."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.skipped: list[int] = []

    def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None:
        self.started.append((len(todo), len(done)))

    def step_moved(self, step: Step, units: int, documents: int) -> None:
        assert units >= 0

    def step_finished(self, step: Step, seconds: float, skipped: int) -> None:
        self.skipped.append(skipped)


def step(count: int = 3, **changes: Any) -> Step:
    tasks = [Task(f"{i}", args={"n": i}, inputs=["in"], outputs=[f"out/{i}"]) for i in range(count)]
    return replace(Step("step", 1, work, tasks, "settings", "digest"), **changes)


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    ran.clear()
    yield
    ran.clear()


def run(made: Step, work_dir: Path, events: Nobody | None = None) -> list[Counts]:
    with LocalEngine(1) as engine:
        return run_step(made, work_dir, engine, events or Nobody())


def test_a_second_run_does_nothing_and_counts_the_same(tmp_path: Path) -> None:
    events = Nobody()
    first = run(step(), tmp_path, events)
    again = run(step(), tmp_path, events)
    assert ran == ["0", "1", "2"]
    assert first == again
    assert [counts.cells["train", str(i), "in"].documents for i, counts in enumerate(again)] == [1, 2, 3]
    assert events.started == [(3, 0), (0, 3)]
    assert events.skipped == [0, 3]


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"settings_digest": "other"}, {"name": "other"}, {"tasks": [replace(task, inputs=["new"]) for task in step().tasks]},
     {"tasks": [replace(task, args={"n": 9}) for task in step().tasks]}, {"tasks": [replace(task, outputs=[f"new/{task.id}"]) for task in step().tasks]}],
    ids=["version", "settings", "name", "inputs", "arguments", "outputs"],
)  # fmt: skip
def test_whatever_decides_the_outputs_makes_them_again(tmp_path: Path, changes: dict[str, Any]) -> None:
    run(step(), tmp_path)
    run(step(**changes), tmp_path)
    assert ran == ["0", "1", "2"] * 2


def test_how_settings_and_hints_make_nothing_again(tmp_path: Path) -> None:
    run(step(), tmp_path)
    run(
        step(
            settings="with more workers",
            unit="doc",
            tasks=[replace(t, weight=5, hints={"a": 1}) for t in step().tasks],
        ),
        tmp_path,
    )
    assert ran == ["0", "1", "2"]


@pytest.mark.parametrize("lost", ["out/1", "extra-1"])
def test_a_lost_or_resized_output_is_made_again_and_no_other(tmp_path: Path, lost: str) -> None:
    run(step(), tmp_path)
    whole = (tmp_path / lost).read_bytes()
    (tmp_path / lost).unlink()
    run(step(), tmp_path)
    assert ran == ["0", "1", "2", "1"]
    (tmp_path / lost).write_bytes(whole + b"more")
    run(step(), tmp_path)
    assert ran == ["0", "1", "2", "1", "1"]
    assert (tmp_path / lost).read_bytes() == whole


def test_a_failed_task_has_no_receipt_not_even_its_old_one(tmp_path: Path) -> None:
    run(step(), tmp_path)
    tasks = list(step().tasks)
    tasks[1] = replace(tasks[1], args={"n": 1, "fail": True})
    failing = step(tasks=tasks)
    with pytest.raises(OutputError, match="No room"):
        run(failing, tmp_path)
    assert receipts.read(tmp_path, "step", "1") is None
    assert [is_done(failing, task, tmp_path) for task in tasks] == [True, False, True]
    run(step(), tmp_path)  # back to what was there before: its outputs were overwritten, so it is made again
    assert ran == ["0", "1", "2", "1", "1"]


def test_a_digest_covers_all_but_outputs_weight_and_hints() -> None:
    made = step()
    task = made.tasks[0]
    same = replace(task, outputs=["elsewhere"], weight=7, hints={"x": 1})
    assert task_digest(made, task) == task_digest(made, same)
    different = [replace(task, id="9"), replace(task, args={"n": 1}), replace(task, inputs=["b"])]
    assert len({task_digest(made, t) for t in [task, *different]}) == 4


# One run at a time -------------------------------------------------------------------------------------------------

_HOLD = "import sys, time; from pathlib import Path; from btlm_data.engine.runner import exclusive\nwith exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_second_run_says_who_holds_the_folder_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None
    holder.stdout.readline()
    with (
        pytest.raises(OutputError, match=rf"in use by process {holder.pid} on .*Wait for it to end"),
        exclusive(tmp_path),
    ):
        pass
    holder.kill()
    holder.communicate()
    with exclusive(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()
    with exclusive(tmp_path):
        pass


def test_taking_the_folder_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    (tmp_path / "read/.a.docs.123.tmp").write_bytes(b"half")
    (tmp_path / "read/a.docs").write_bytes(b"whole")
    with exclusive(tmp_path):
        assert [path.name for path in (tmp_path / "read").iterdir()] == ["a.docs"]


def test_a_work_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="could not be written"), exclusive(tmp_path / "file" / "work"):
        pass


def test_receipts_are_plain_json(tmp_path: Path) -> None:
    run(step(1), tmp_path)
    value = json.loads(receipts.path_of(tmp_path, "step", "0").read_bytes())
    assert set(value) == {"digest", "step", "version", "task", "outputs", "counts", "seconds"}
    assert value["outputs"].keys() == {"out/0", "extra-0"}
