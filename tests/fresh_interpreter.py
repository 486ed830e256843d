"""Does jobs in a fresh interpreter, from another folder, with nothing inherited; and an engine made of such runs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from btlm_data.engine.base import EngineSettings
from btlm_data.engine.execute import Job, execute
from btlm_data.engine.receipts import Receipt, read_all
from btlm_data.storage import open_store

ROOT = Path(__file__).resolve().parents[1]


def do(*jobs: Job, paths: Sequence[Path] = ()) -> None:
    """Run `execute(job)` of each job in one new process whose folder is an empty one. paths: more folders to import from."""
    with tempfile.TemporaryDirectory(prefix="btlm-elsewhere-") as elsewhere:
        file = Path(elsewhere, "job")
        file.write_bytes(pickle.dumps(jobs))
        kept = {key: value for key, value in os.environ.items() if key.startswith(("AWS_", "HF_", "NUMBA_"))}
        environment = kept | {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, *paths])), "PATH": os.defpath}
        subprocess.run(
            [sys.executable, "-m", "tests.fresh_interpreter", str(file)],
            check=True,
            cwd=elsewhere,
            env=environment,
        )


class FreshEngine:
    """An engine that does the jobs of each step in an interpreter of its own."""

    def __init__(self, settings: EngineSettings) -> None:
        self.num_jobs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self) -> None: ...

    def progress(self) -> int:
        return 0

    def map(self, jobs: Sequence[Job]) -> Iterator[Receipt | None]:
        do(*jobs)
        for job in jobs:
            self.num_jobs += 1
            yield read_all(open_store(job.locations.work), job.step)[job.task.id]


if __name__ == "__main__":
    for job in pickle.loads(Path(sys.argv[1]).read_bytes()):
        execute(job)
    # Once in thousands of processes a thread of pyarrow outlives the interpreter and aborts it; the task is done by then.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
