from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.kill_runs import ROOT
from tests.faults.kill_targets import TARGETS


def kill(tmp_path: Path, target: str, kills: int, seed: int) -> None:
    """In a process of its own: it forks, and must have no other thread."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kill_runs", "--target", target, "--kills", str(kills)]
        + ["--seed", str(seed), "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("target", "kills"), [("corpus", 5), ("export-npy", 2), ("index", 2), ("add", 2), ("forget-remove", 2)]
)
def test_a_few_kills_change_no_byte(tmp_path: Path, target: str, kills: int) -> None:
    kill(tmp_path, target, kills, 7)


@pytest.mark.stress
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", TARGETS)
def test_many_kills_change_no_byte(tmp_path: Path, target: str) -> None:
    kill(
        tmp_path,
        target,
        {"sample": 500, "corpus": 500, "forget": 100, "forget-remove": 100}.get(target, 50),
        1,
    )
