"""What a run really takes, step by step, to hold the estimates against (tests/test_estimate.py, tests/benchmarks/rates.py).

    python -m tests.costs SOURCE OUT [KEY=VALUE ...]      (a VALUE that begins with [ or { is JSON)

prepares in this process with one worker and prints JSON: `plan`, what `--plan` says before; `steps`: name -> tasks, CPU
seconds (user and system), bytes that the receipts say were written to the work folder and elsewhere; `peak_work_bytes`:
the most that lay in the work folder at the end of a step; `peak_memory_bytes`; `cpu_seconds` of the whole process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent


def measure(source: Path | str, out: Path, *assignments: str, **environment: str) -> dict[str, Any]:
    """Run this module in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.costs", str(source), str(out), *assignments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    costs: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return costs


def main(source: str, out: str, *assignments: str) -> None:
    from btlm_data import input_checks, pipeline, planning
    from btlm_data.engine import receipts
    from btlm_data.recipe.load import load
    from btlm_data.recipe.models import Run
    from btlm_data.storage import open_store
    from btlm_data.task import Step, Task

    def accept(run: Run) -> None:
        """Of any memory: small corpora go the ways of large ones."""

    input_checks.check_memory = accept
    given: dict[str, object] = {
        "source.name": source,
        "run.out": out,
        "run.workers": 1,
        "run.accept_removal": True,
    }
    for key, _, value in (assignment.partition("=") for assignment in assignments):
        given[key] = json.loads(value) if value[:1] in ("[", "{") else value
    recipe = load(None, {key: (value, "test") for key, value in given.items()})
    work = open_store(pipeline.locations(recipe.run).work)
    steps: dict[str, dict[str, float]] = {}
    peak = 0

    class Events:
        start = 0.0

        def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None:
            self.start = time.process_time()

        def step_moved(self, *_: object) -> None: ...

        def step_finished(self, step: Step, seconds: float, skipped: int) -> None:
            nonlocal peak
            cpu = time.process_time() - self.start
            outputs = [a for r in receipts.read_all(work, step.name).values() for a in r.artifacts]
            steps[step.name] = {
                "tasks": len(step.tasks),
                "cpu_seconds": cpu,
                "work_bytes": sum(a.size for a in outputs if a.store == "work"),
                "out_bytes": sum(a.size for a in outputs if a.store != "work"),
            }
            peak = max(peak, sum(entry.size for entry in work.list("")))

    plan = msgspec.to_builtins(planning.measure(recipe))
    before = time.process_time()
    pipeline.prepare(recipe, Events())
    result = {
        "plan": plan,
        "steps": steps,
        "peak_work_bytes": peak,
        "peak_memory_bytes": _peak_memory_bytes(),
        "cpu_seconds": time.process_time() - before,
    }
    print(json.dumps(result))


def _peak_memory_bytes() -> int:
    """Of this program alone: ru_maxrss would begin with what the process that started it held."""
    [line] = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
