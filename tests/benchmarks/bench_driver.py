"""What the driver spends on each task: many tasks that do next to nothing, on each engine that is installed, and a second
run that finds all of them done.

Only the driver's own processor time counts; what workers take is theirs. The larger number of tasks shows whether anything
grows faster than the tasks. Plans reckon with `cluster_plan.DRIVER_SECONDS`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from btlm_data.cluster_plan import DRIVER_SECONDS
from btlm_data.engine.base import EngineSettings, open_engine
from btlm_data.engine.runner import Runner
from btlm_data.engine.status import StatusFile
from btlm_data.locations import Locations
from btlm_data.stages import holdout
from btlm_data.task import Step, Task
from tests.benchmarks.bench_linear import Silent

TASKS = int(os.environ.get("BTLM_BENCH_TASKS", "2000"))
WORKERS = 2
MEMORY = 300_000_000


def step_of(num_tasks: int) -> Step:
    """Tasks that each put nothing together, with as much to name as a task of `read` has."""
    tasks = [
        Task(
            f"{number:06d}",
            args={"products": dict.fromkeys(("docs", "sketch", "tokens"), "0" * 64)},
            inputs=[f"train/chunk1/file-{number}.jsonl.zst|100000|0|None|None"],
            reads={"parts": []},
            outputs=[("work", f"holdout/hashes/{number:06d}.cols")],
            title=f"file-{number}.jsonl.zst",
        )
        for number in range(num_tasks)
    ]
    return Step("holdout.hashes", 1, holdout.merge_hashes, tasks, None, "bench", "task")


@contextlib.contextmanager
def free_workers(work: str) -> Iterator[None]:
    """`btlm-data worker` processes beside a run."""
    command = [sys.executable, "-m", "btlm_data", "-q", "worker", work, "--idle", "60"]
    workers = [subprocess.Popen(command) for _ in range(WORKERS)]
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def driver_seconds(engine_name: str, num_tasks: int, cluster: str | None) -> tuple[float, float]:
    """The driver's CPU seconds for each task: of a run, and of a second one. The engine's start is apart."""
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as folder:
        locations = Locations(f"{folder}/work", f"{folder}/out")
        stores = locations.open()
        helped = free_workers(locations.work) if engine_name == "workers" else contextlib.nullcontext()
        with helped, open_engine(engine_name, EngineSettings(WORKERS, MEMORY, cluster)) as engine:
            engine.start()
            runner = Runner(locations, stores, engine, Silent(), status=StatusFile(stores.work, engine_name))
            runner.run(step_of(2 * WORKERS))  # workers are started by their first tasks
            spent = []
            for _ in range(2):
                begun = time.process_time()
                runner.run(step_of(num_tasks))
                spent.append((time.process_time() - begun) / num_tasks)
    return spent[0], spent[1]


def run() -> list[dict[str, Any]]:
    """A row for each engine and number of tasks."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as folder:
        site = Path(folder) / "site.yaml"
        site.write_text(f"nodes: 1\nworkers_per_node: {WORKERS}\n")
        for engine in ("local", "workers", "parsl", "ray"):
            if engine in ("parsl", "ray") and importlib.util.find_spec(engine) is None:
                continue
            for num_tasks in (TASKS, 4 * TASKS) if engine in ("local", "workers") else (TASKS,):
                first, again = driver_seconds(engine, num_tasks, str(site) if engine == "parsl" else None)
                rows += [
                    _row(f"driver, CPU a task, {num_tasks:,} tasks, {engine}", first, DRIVER_SECONDS[engine]),
                    _row(f"the same, all tasks done before, {engine}", again, DRIVER_SECONDS["workers"]),
                ]
    return rows


def _row(name: str, seconds: float, budget: float) -> dict[str, Any]:
    row = {"name": name, "ours": seconds * 1e3, "theirs": None, "ratio": None, "unit": "ms"}
    return row | {"budget": f"<= {budget * 1e3:g}"}
