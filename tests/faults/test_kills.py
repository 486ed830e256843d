from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.kill_runs import ROOT
from tests.faults.kill_targets import TARGETS


def kill(tmp_path: Path, kills: dict[str, int], seed: int) -> None:
    """Of each target so many, in a process of its own: it forks, and must have no other thread."""
    chosen = [word for name, count in kills.items() for word in ("--target", name, "--kills", str(count))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kill_runs", *chosen]
        + ["--seed", str(seed), "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{name}: {count} kills in " in done.stdout for name, count in kills.items())


def test_a_few_kills_change_no_byte(tmp_path: Path) -> None:
    kill(tmp_path, {"corpus": 5, "export-npy": 2, "index": 2, "add": 2, "forget-remove": 2}, 7)


@pytest.mark.stress
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", TARGETS)
def test_many_kills_change_no_byte(tmp_path: Path, target: str) -> None:
    count = {"sample": 500, "corpus": 500, "forget": 100, "forget-remove": 100}.get(target, 50)
    kill(tmp_path, {target: count}, 1)
