from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from btlm_data.advance import advance, reading
from btlm_data.engine.base import EngineSettings, Lost
from btlm_data.engine.execute import Job
from btlm_data.engine.local import LocalEngine
from btlm_data.engine.receipts import Receipt
from btlm_data.errors import BtlmError, InputError
from btlm_data.locations import Locations
from btlm_data.task import Counts, Step, Task
from btlm_data.task_files import TaskFiles

ROOT = Path(__file__).resolve().parents[2]


def work(task: Task, settings: Any, files: TaskFiles) -> Counts:
    """Whatever the task's arguments ask for."""
    time.sleep(task.args.get("sleep", 0))
    advance(task.args.get("units", 0))
    if task.args.get("raise"):
        raise InputError("The third record is bad.")
    if name := task.args.get("reads"):
        reading(name)
    if task.args.get("die") == 0:
        os._exit(3)
    if task.args.get("die"):
        os.kill(os.getpid(), task.args["die"])
    with files.create(task.id) as creating:
        creating.file.write(str(settings).encode())
    return Counts(extra={"pid": os.getpid(), "id": task.id})


def jobs(folder: Path, *args: dict[str, Any]) -> list[Job]:
    """A job for each task's arguments."""
    tasks = [Task(f"{i:06d}", args=a) for i, a in enumerate(args)]
    step = Step("test", 1, work, tasks, "settings", "")
    return [Job.of(step, task, "", Locations(str(folder), str(folder))) for task in tasks]


def workers_left() -> list[psutil.Process]:
    """Child processes but the one with which `multiprocessing` tracks what a fresh interpreter shares."""
    return [
        child for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_task_is_run_once_and_its_result_comes_back(tmp_path: Path, workers: int) -> None:
    made = jobs(tmp_path, *[{"units": 10}] * 20)
    with LocalEngine(EngineSettings(workers)) as engine:
        done = [receipt for receipt in engine.map(made) if isinstance(receipt, Receipt)]
        assert engine.progress() == 200
        assert list(engine.map([])) == []
    assert sorted(receipt.task for receipt in done) == [job.task.id for job in made]
    assert all(receipt.task == receipt.counts["extra"]["id"] for receipt in done)
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == 20
    assert len(list((tmp_path / "receipts/test").iterdir())) == 20
    processes = {receipt.counts["extra"]["pid"] for receipt in done}
    assert len(processes - {os.getpid()}) <= workers
    assert (processes == {os.getpid()}) == (workers == 1)


def test_progress_comes_while_a_task_is_running(tmp_path: Path) -> None:
    made = jobs(tmp_path, {"sleep": 0.7}, {"sleep": 0.7})
    with LocalEngine(EngineSettings(2)) as engine:
        assert list(engine.map(made)).count(None) >= 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tasks_exception_arrives_as_it_is_and_ends_the_others(tmp_path: Path, workers: int) -> None:
    made = jobs(tmp_path, {"raise": True}, *[{"sleep": 20}] * 3)
    start = time.perf_counter()
    with (
        LocalEngine(EngineSettings(workers)) as engine,
        pytest.raises(InputError, match=r"The third record is bad\."),
    ):
        list(engine.map(made))
    assert time.perf_counter() - start < 5
    assert workers_left() == []


def test_a_worker_that_dies_takes_only_its_own_task(tmp_path: Path) -> None:
    made = jobs(
        tmp_path, {"die": 9, "reads": "web/é.parquet"}, *[{"sleep": 0.3}] * 4, {"die": 11}, {}, {"die": 0}
    )
    with LocalEngine(EngineSettings(2)) as engine:
        ended = list(engine.map(made))
        lost = {one.job.task.id: one for one in ended if isinstance(one, Lost)}
        done = {one.task for one in ended if isinstance(one, Receipt)}
        assert any(isinstance(one, Receipt) for one in engine.map(made[1:2])), "the engine goes on working"
    assert sorted(lost) == ["000000", "000005", "000007"]
    assert done == {job.task.id for job in made} - set(lost)
    assert lost["000000"].reason.startswith("its worker was killed while it read web/é.parquet")
    assert "SIGSEGV" in lost["000005"].reason
    assert "Segmentation fault" in lost["000005"].log, "where it crashed"
    assert "test_local.py" in lost["000005"].log
    assert re.fullmatch(
        r"its worker ended( while it held [0-9,]+ MB)? with exit code 3", lost["000007"].reason
    )
    assert workers_left() == []


def test_a_worker_that_is_killed_while_idle_is_replaced(tmp_path: Path) -> None:
    made = jobs(tmp_path, *[{"sleep": 0.1}] * 4)
    with LocalEngine(EngineSettings(2)) as engine:
        list(engine.map(made))
        for worker in workers_left()[0].children():
            worker.kill()
        time.sleep(0.1)
        ended = [one for one in engine.map(made) if one is not None]
    assert len(ended) == 4
    assert all(isinstance(one, Receipt) for one in ended)


def test_the_death_of_the_process_that_starts_workers_is_said_plainly(tmp_path: Path) -> None:
    with LocalEngine(EngineSettings(2)) as engine:
        engine.start()
        for child in workers_left():
            child.kill()
        time.sleep(0.2)
        with pytest.raises(
            BtlmError, match=r"The process that starts worker processes was killed.*continues from here"
        ):
            list(engine.map(jobs(tmp_path, {}, {}, {})))
    assert workers_left() == []


def test_a_lost_task_says_how_much_memory_its_worker_held(tmp_path: Path) -> None:
    with LocalEngine(EngineSettings(2)) as engine:
        [lost] = [one for one in engine.map(jobs(tmp_path, {"sleep": 0.5, "die": 9})) if one is not None]
    assert isinstance(lost, Lost)
    assert re.search(r"while it held [0-9,]+ MB", lost.reason)


def test_leaving_early_ends_the_workers(tmp_path: Path) -> None:
    made = jobs(tmp_path, {}, *[{"sleep": 20}] * 3)
    with LocalEngine(EngineSettings(2)) as engine:
        for result in engine.map(made):
            if result is not None:
                break
    assert workers_left() == []


_DRIVER = """
import sys; sys.path.insert(0, sys.argv[1])
import importlib.util
spec = importlib.util.spec_from_file_location("test_local", sys.argv[2]); module = importlib.util.module_from_spec(spec)
sys.modules["test_local"] = module; spec.loader.exec_module(module)
made = module.jobs(module.Path(sys.argv[3]), *[{"sleep": 30}] * 4)
with module.LocalEngine(module.EngineSettings(2)) as engine:
    engine.start()
    print("started", flush=True)
    list(engine.map(made))
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, None), (signal.SIGTERM, -15)]
)
def test_a_driver_that_is_stopped_leaves_no_workers(tmp_path: Path, number: int, code: int | None) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(ROOT), __file__, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"started\n"
    driver, start = psutil.Process(run.pid), time.perf_counter()
    while (
        len(workers := driver.children(recursive=True)) < 3
    ):  # two workers, and the process that starts them
        assert time.perf_counter() - start < 30
        time.sleep(0.05)
    time.sleep(0.3)
    start = time.perf_counter()
    run.send_signal(number)  # to the driver alone
    run.communicate(timeout=20)
    gone, alive = psutil.wait_procs(workers, timeout=2)
    assert time.perf_counter() - start < 3
    assert (len(gone), alive) == (3, [])
    assert code is None or run.returncode == code
    assert list(tmp_path.iterdir()) == []
