"""SIGKILL at any moment of `btlm-data forget`: the dataset is the old one or the new one, never a mix of both."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from btlm_data.inspection import verify
from tests.lineage.corpora import prepared, records

KILLS = 50  # of each way


def content(root: Path) -> dict[str, str]:
    """SHA-256 of every shard and table."""
    paths = [*root.glob("train/*"), root / "dropped.parquet"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["mask", "remove"])
def test_a_killed_forget_leaves_the_old_dataset_or_the_new(tmp_path: Path, how: str) -> None:
    base = prepared(tmp_path / "made", records(400, 5), seq_len=32, shards__samples_per_file=20).root
    shutil.rmtree(base / ".work")

    def started(root: Path) -> subprocess.Popen[bytes]:
        command = ["forget", str(root), "--id", "doc-3", "--id", "doc-40", "--how", how]
        # No pipes: one that nobody closes is a warning, which ends the test when all of it has passed.
        arguments = [sys.executable, "-m", "btlm_data", *command]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    whole = tmp_path / "whole"
    shutil.copytree(base, whole)
    begin = time.monotonic()
    assert started(whole).wait() == 0
    seconds = time.monotonic() - begin
    old, new = content(base), content(whole)
    assert old != new
    chance, killed, seen = random.Random(7), 0, {"old": 0, "new": 0}
    while killed < KILLS:
        root = tmp_path / "killed"
        shutil.copytree(base, root)
        process = started(root)
        try:  # imports take half of it, and there is nothing to break
            process.wait(seconds * chance.uniform(0.4, 1.1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        found = content(root)
        assert found in (old, new)
        seen["old" if found == old else "new"] += 1
        if killed % 10 == 0:
            assert verify.passed(verify.verify(root, lambda _: None))
        begin = time.monotonic()
        assert started(root).wait() == 0  # the same command again, whatever the other left
        if found == old:  # all of it was to be done: so long it takes on this machine now
            seconds = time.monotonic() - begin
        assert content(root) == new
        left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".killed")]
        assert [name for name in left if name.endswith("btlm-tmp")] == []
        shutil.rmtree(root)
    assert seen["old"] > 0
