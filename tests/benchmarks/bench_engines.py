"""What an engine costs beside `local`: the whole of `prepare` with two workers on each, in turn, start-up apart.

A run counts from the moment in which its first task begins, as receipts tell, to the end of the command: an engine's start is the
same for a corpus of any size. Free workers are started beforehand, as an array job does. Corpus: see bench_prepare.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.bench_prepare import ROUNDS, corpus, touch_memory

BUDGETS = {"workers": "", "parsl": "<= 1.15", "ray": "<= 1.25"}


class Timed(NamedTuple):
    """Of one run, in seconds. tasks: from the beginning of the first task to the end of the command."""

    whole: float
    tasks: float


def prepare(source: Path, out: Path, *options: str, helpers: int = 0) -> Timed:
    """One run from nothing. helpers: free workers."""
    shutil.rmtree(out, ignore_errors=True)
    touch_memory()
    program = [sys.executable, "-m", "btlm_data", "-q"]
    command = [*program, "prepare", "--source", str(source), "--seq-len", "2048", "--out", str(out)]
    command += ["--accept-removal", "--workers", "2", "--memory", "2GB", *options]
    with contextlib.ExitStack() as stack:
        for number in range(helpers):
            helper = [*program, "worker", str(out / ".work"), "--rank", str(number), "--world", str(helpers)]
            worker = stack.enter_context(subprocess.Popen([*helper, "--idle", "60"]))
            stack.callback(worker.kill)
        begun = time.time()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ended = time.time()
    receipts = list((out / ".work/receipts").rglob("*.json"))
    first = min(
        path.stat().st_mtime - json.loads(path.read_bytes())["receipt"]["seconds"] for path in receipts
    )
    return Timed(ended - begun, ended - first)


def run() -> list[dict[str, Any]]:
    """A row for each engine that is installed."""
    source = corpus()
    engines = [name for name in BUDGETS if name == "workers" or importlib.util.find_spec(name) is not None]
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as folder:
        site, out = Path(folder) / "site.yaml", Path(folder) / "out"
        site.write_text("nodes: 1\nworkers_per_node: 2\n")
        times: dict[str, list[Timed]] = {name: [] for name in ("local", *engines)}
        prepare(source, out, "--limit", "100")  # compile once
        for _ in range(ROUNDS):
            for name, runs in times.items():
                options = ["--cluster", str(site)] if name == "parsl" else []
                helpers = 2 if name == "workers" else 0
                runs.append(prepare(source, out, "--engine", name, *options, helpers=helpers))
    return [_row(name, times[name], times["local"]) for name in engines]


def _row(engine: str, theirs: list[Timed], local: list[Timed]) -> dict[str, Any]:
    ratio = statistics.median(one.tasks / two.tasks for one, two in zip(theirs, local, strict=True))
    start = statistics.median(one.whole - one.tasks for one in theirs)
    return {
        "name": f"prepare on {engine} against local, 2 workers each (start apart: {start:.1f} s)",
        "ours": statistics.median(one.tasks for one in theirs),
        "theirs": statistics.median(one.tasks for one in local),
        "ratio": ratio,
        "unit": "s",
        "budget": BUDGETS[engine],
    }


if __name__ == "__main__":
    for row in run():
        print(row)
