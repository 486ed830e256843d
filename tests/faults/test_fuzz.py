"""The fuzzer over everything read from outside, and single bits of a work folder: for seconds here, for an hour in `make stress`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.kill_runs import ROOT

QUICK = ("records", "manifest", "parameters", "tokenizer", "hdf5-shards", "hdf5-checkpoints")


def driver(name: str, folder: Path, *more: str) -> str:
    """Run a driver in a process of its own: it forks. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{name}", "--folder", str(folder), *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def test_damaged_files_of_some_kinds_end_in_words(tmp_path: Path) -> None:
    chosen = [word for reader in QUICK for word in ("--reader", reader)]
    told = driver("fuzz", tmp_path, "--seconds", "6", "--seed", "1", *chosen)
    assert all(f"= {reader}: " in told for reader in QUICK)


def test_the_watch_sees_what_is_touched_outside(tmp_path: Path) -> None:
    """A file written, a file of `secret/` opened, and one removed; its own folder is free."""
    script = """
import os, sys
from pathlib import Path
from tests.faults.fuzz import Watch
folder, other = Path(sys.argv[1]) / "case", Path(sys.argv[1]) / "other"
watch = Watch(folder, folder / "secret")
watch.is_on = True
(folder / "mine").write_text("x")
(other / "theirs").write_text("x")
(folder / "secret/key").read_text()
(folder / "link/theirs").unlink()
watch.is_on = False
print(*(Path(touched).name for touched in watch.touched))
print(watch.secret_opened(), watch.secret_opened())
import h5py
try:
    h5py.File(folder / "secret/key")
except OSError:
    print(watch.secret_opened()[:1])
"""
    for name in ("case/secret", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "case/secret/key").write_text("secret")
    (tmp_path / "case/link").symlink_to(tmp_path / "other")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    touched, opened, by_the_library = done.stdout.splitlines()
    assert touched.split() == ["theirs", "key", "theirs"]
    assert opened == "['opened secret/key'] []"
    assert by_the_library == "['opened secret/key']"


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_an_hour_of_damage_ends_in_words(tmp_path: Path) -> None:
    driver("fuzz", tmp_path, "--seconds", "3600", "--seed", "1")


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_an_hour_of_damaged_hdf5_files_ends_in_words(tmp_path: Path) -> None:
    readers = ("--reader", "hdf5-shards", "--reader", "hdf5-checkpoints")
    driver("fuzz", tmp_path, "--seconds", "3600", "--seed", "1", *readers)


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_two_hundred_flips_of_every_work_file_are_noticed_or_without_effect(tmp_path: Path) -> None:
    driver("flip_runs", tmp_path, "--flips", "200")
