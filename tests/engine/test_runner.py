from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from btlm_data.engine import receipts
from btlm_data.engine.base import EngineSettings
from btlm_data.engine.execute import Job, execute
from btlm_data.engine.local import LocalEngine
from btlm_data.engine.runner import Runner, task_digest
from btlm_data.errors import OutputError
from btlm_data.formats.columns import DamagedError
from btlm_data.locations import Locations
from btlm_data.task import Artifact, Counts, Step, Task, TaskResult
from btlm_data.task_files import TaskFiles, write_list
from tests import fresh_interpreter

ran: list[str] = []


def work(task: Task, settings: Any, files: TaskFiles) -> Counts:
    """Write the task's outputs; dies halfway if told to."""
    ran.append(task.id)
    for store, name in task.outputs:
        with files.create(name, store) as creating:
            creating.file.write(f"{settings} {dict(task.args)}".encode())
    if task.args.get("fail"):
        raise OutputError("No room.")
    files.write_columns(f"step/extra-{task.id}", {"x": np.arange(4)})
    counts = Counts()
    counts.add("train", task.id, "in", int(task.id) + 1)
    return counts


class Seen:
    """Remembers progress events."""

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
    tasks = [
        Task(f"{i}", args={"n": i}, inputs=["in"], outputs=[("work", f"step/{i}"), ("out", f"train/{i}")])
        for i in range(count)
    ]
    return replace(Step("step", 1, work, tasks, "settings", "digest"), **changes)


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    ran.clear()
    yield
    ran.clear()


def runner(folder: Path, events: Seen | None = None, workers: int = 1) -> Runner:
    locations = Locations(str(folder / "work"), str(folder / "out"))
    return Runner(locations, locations.open(), LocalEngine(EngineSettings(workers)), events or Seen())


def run(made: Step, folder: Path, events: Seen | None = None) -> list[TaskResult]:
    return runner(folder, events).run(made)


def test_a_second_run_does_nothing_and_counts_the_same(tmp_path: Path) -> None:
    events = Seen()
    first = run(step(), tmp_path, events)
    again = run(step(), tmp_path, events)
    assert ran == ["0", "1", "2"]
    assert first == again
    cells = [result.counts.cells["train", str(i), "in"].documents for i, result in enumerate(again)]
    assert cells == [1, 2, 3]
    assert events.started == [(3, 0), (0, 3)]
    assert events.skipped == [0, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"settings_digest": "other"},
        {"tasks": [replace(task, inputs=["new"]) for task in step().tasks]},
        {"tasks": [replace(task, args={"n": 9}) for task in step().tasks]},
        {"tasks": [replace(task, reads={"a": [Artifact("b", 1, "c")]}) for task in step().tasks]},
        {"tasks": [replace(task, outputs=[("work", f"step/new-{task.id}")]) for task in step().tasks]},
    ],
    ids=["version", "settings", "inputs", "arguments", "files", "outputs"],
)
def test_whatever_decides_the_outputs_makes_them_again(tmp_path: Path, changes: dict[str, Any]) -> None:
    run(step(), tmp_path)
    run(step(**changes), tmp_path)
    assert ran == ["0", "1", "2"] * 2


def test_how_settings_hints_and_files_on_the_way_make_nothing_again(tmp_path: Path) -> None:
    run(step(), tmp_path)
    through = {"a": [Artifact("b", 1, "c")]}
    tasks = [replace(task, weight=5, hints={"a": 1}, through=through) for task in step().tasks]
    run(step(settings="with more workers", unit="doc", tasks=tasks), tmp_path)
    assert ran == ["0", "1", "2"]


@pytest.mark.parametrize("lost", ["work/step/1", "work/step/extra-1", "out/train/1"])
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
    assert runner(tmp_path).proved(failing).keys() == {"0", "2"}
    assert not runner(tmp_path).is_done(failing)
    run(step(), tmp_path)  # back to what was there before: its outputs were overwritten, so it is made again
    assert ran == ["0", "1", "2", "1", "1"]


def test_files_and_receipts_that_no_task_names_are_removed_and_foreign_ones_are_not(tmp_path: Path) -> None:
    run(step(3), tmp_path)
    (tmp_path / "work/step/foreign-2.cols").write_bytes(b"left by another run")
    (tmp_path / "work/other").mkdir()
    (tmp_path / "work/other/file").write_bytes(b"of another step")
    (tmp_path / "out/train/notes.txt").write_bytes(b"the user's")
    run(step(2), tmp_path)
    work = tmp_path / "work"
    assert sorted(path.name for path in (work / "step").iterdir()) == ["0", "1", "extra-0", "extra-1"]
    assert sorted(path.name for path in (work / "receipts/step").iterdir()) == ["0.json", "1.json"]
    assert (work / "other/file").exists()
    assert (tmp_path / "out/train/notes.txt").exists()


def test_what_a_task_can_continue_from_stays_until_it_is_done(tmp_path: Path) -> None:
    (tmp_path / "work/step").mkdir(parents=True)
    for name in ("1-part", "2-part", "other"):
        (tmp_path / "work/step" / name).write_bytes(b"half")
    tasks = [replace(task, resumes=f"step/{task.id}-", args={"fail": True}) for task in step(2).tasks]
    with pytest.raises(OutputError):
        run(step(tasks=tasks), tmp_path)
    assert {path.name for path in (tmp_path / "work/step").iterdir()} >= {"1-part"}
    assert not (tmp_path / "work/step/2-part").exists()
    run(step(tasks=[replace(task, resumes=f"step/{task.id}-") for task in step(2).tasks]), tmp_path)
    assert not (tmp_path / "work/step/1-part").exists()


def test_a_digest_covers_all_but_outputs_weight_hints_and_files_on_the_way() -> None:
    made = step()
    task = made.tasks[0]
    through = {"x": [Artifact("a", 1, "b")]}
    same = replace(task, outputs=[("out", "elsewhere")], weight=7, hints={"x": 1}, through=through)
    assert task_digest(made, task) == task_digest(made, same)
    different = [
        replace(task, id="9"),
        replace(task, args={"n": 1}),
        replace(task, inputs=["b"]),
        replace(task, reads=through),
    ]
    assert len({task_digest(made, t) for t in [task, *different]}) == 5


def test_a_flipped_receipt_counts_as_none(tmp_path: Path) -> None:
    run(step(1), tmp_path)
    path = tmp_path / "work/receipts/step/0.json"
    stored = path.read_bytes()
    value = json.loads(stored)
    assert set(value) == {"checksum", "receipt"}
    assert set(value["receipt"]) == {"digest", "step", "version", "task", "outputs", "counts", "seconds"}
    for position in range(len(stored) - 1):
        path.write_bytes(stored[:position] + bytes([stored[position] ^ 1]) + stored[position + 1 :])
        read = receipts.read_all(runner(tmp_path).stores.work, "step").get("0")
        assert read is None or json.loads(path.read_bytes()) == value
    path.write_bytes(stored[:-20])
    assert receipts.read_all(runner(tmp_path).stores.work, "step") == {}


# What a task may read ----------------------------------------------------------------------------------------------


def reading(task: Task, settings: Any, files: TaskFiles) -> Counts:
    """Read a columns file and, named by a list, others."""
    [listed] = task.reads["list"]
    for artifact in files.read_list(listed):
        files.columns(artifact)["x"]
    return Counts()


def peeking(task: Task, settings: Any, files: TaskFiles) -> Counts:
    """Read a file that the task does not name."""
    files.columns(settings)
    return Counts()


def test_a_task_reads_only_what_it_names(tmp_path: Path) -> None:
    results = run(step(), tmp_path)
    extras = [a for result in results for a in result.outputs if a.name.startswith("step/extra")]
    over = runner(tmp_path)
    listed = write_list(over.stores.work, "list.json", extras)
    over.run(Step("read", 1, reading, [Task("0", reads={"list": [listed]})], None, ""))
    with pytest.raises(AssertionError, match="which it does not name"):
        over.run(Step("peek", 1, peeking, [Task("0", reads={"list": [listed]})], extras[0], ""))


def test_a_damaged_file_is_named_removed_and_made_again(tmp_path: Path) -> None:
    results = run(step(), tmp_path)
    extras = [a for result in results for a in result.outputs if a.name.startswith("step/extra")]
    path = tmp_path / "work" / extras[1].name
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    over = runner(tmp_path)
    listed = write_list(over.stores.work, "list.json", extras)
    with pytest.raises(DamagedError, match=r"step/extra-1 is damaged.*made again"):
        over.run(Step("read", 1, reading, [Task("0", reads={"list": [listed]})], None, ""))
    run(step(), tmp_path)
    assert path.read_bytes() == whole
    assert ran == ["0", "1", "2", "1"]


# Another process ---------------------------------------------------------------------------------------------------


def test_a_job_is_complete_a_fresh_interpreter_elsewhere_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/work_of_a_test.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path / "modules")
    module = importlib.import_module("work_of_a_test")
    over = runner(tmp_path)
    made = replace(step(1), work=module.work)
    job = Job.of(made, made.tasks[0], task_digest(made, made.tasks[0]), over.locations)
    fresh_interpreter.do(job, paths=[tmp_path / "modules"])
    assert over.is_done(made)
    assert ran == []


@pytest.mark.parametrize("field", ["digest", "counts"])
def test_a_receipt_with_half_a_surrogate_pair_counts_as_none(tmp_path: Path, field: str) -> None:
    """JSON can spell what UTF-8 cannot: a flipped bit in an escape is enough."""
    store = Locations(str(tmp_path / "work"), str(tmp_path / "out")).open().work
    receipt = receipts.Receipt("digest", "step", 1, "0", (), {"stages": "é"}, 0.5)
    receipts.write(store, receipt)
    name = receipts.name_of("step", "0")
    assert receipts.read(store, [name]) == [receipt]
    damaged = json.loads(store.read(name))
    damaged["receipt"][field] = "\ud800" if field == "digest" else {"\ud800": 1}
    store.write(name, json.dumps(damaged).encode())
    assert receipts.read(store, [name]) == []


class SlowToLoad:
    """Settings whose tasks need something that takes a while to load."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def get_ready(self) -> None:
        time.sleep(0.3)
        self.loaded.append(len(ran))

    def __str__(self) -> str:
        return "settings"


def test_a_process_gets_ready_before_a_task_and_its_time_is_not_the_tasks(tmp_path: Path) -> None:
    settings = SlowToLoad()
    task = Task("7", outputs=[("work", "step/7")])
    locations = Locations(str(tmp_path / "work"), str(tmp_path / "out"))
    receipt = execute(Job("step", 1, work, settings, task, "digest", locations))
    assert settings.loaded == [0]
    assert ran == ["7"]
    assert receipt.seconds < 0.3
