"""The whole `prepare`: CPU against merely decompressing and parsing, scaling with workers and input, memory, start-up.

Corpus: BTLM_BENCH_CORPUS, a folder in SlimPajama's layout; `python tools/build_corpus.py DIR --mb 400` makes one of real text.
Every figure is of whole processes: CPU is user + system time of the command and its workers, memory the largest process's
peak. Ratios pair runs made next to each other, so a machine that is busy in bursts disturbs both sides.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zstandard

ROUNDS = int(os.environ.get("BTLM_BENCH_ROUNDS", "3"))


class _Meta(msgspec.Struct, gc=False):
    redpajama_set_name: str


class _Record(msgspec.Struct, gc=False):
    text: str
    meta: _Meta


@dataclass(frozen=True)
class Usage:
    """Of one command and the processes it started. Seconds, bytes. peak_rss: most memory of one process, with pages of files that it
    maps. peak_own: most memory of one process that is no page of a file, as seen every twentieth of a second.
    """

    wall: float
    cpu: float
    peak_rss: int
    peak_own: int


# Runs a command in a process that has no other children, so that what the kernel adds up is this command's alone.
_MEASURE = """
import os, resource, subprocess, sys, threading, time

def own_memory(process):
    largest = 0
    try:
        with open(f"/proc/{process}/status") as file:
            lines = dict(line.split(":", 1) for line in file if line.startswith(("RssAnon", "RssShmem")))
        largest = sum(int(value.split()[0]) for value in lines.values()) * 1024
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/children") as file:
                largest = max([largest, *map(own_memory, file.read().split())])
    except OSError:
        pass
    return largest

begin = time.perf_counter()
command = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
peak, ended = 0, threading.Event()

def watch():
    global peak
    while not ended.wait(0.05):
        peak = max(peak, own_memory(command.pid))

watcher = threading.Thread(target=watch)
watcher.start()
errors = command.stderr.read()
command.wait()
wall = time.perf_counter() - begin
ended.set()
watcher.join()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
if command.returncode:
    sys.stderr.buffer.write(errors)
print(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, peak)
sys.exit(command.returncode)
"""


def measure(command: Sequence[str]) -> Usage:
    """Run a command."""
    # As installed: pip compiles what it installs.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    wall, cpu, rss, own = done.stdout.split()
    return Usage(float(wall), float(cpu), int(rss), int(own))


# The system clears a page when it is first used; where it is a guest, its host first has to find one, which takes ten times as
# long, and takes back what is free. So a run would pay for what the one before left it.
_TOUCH = """
import mmap
memory = mmap.mmap(-1, {size})
ones = b"1" * 2**20
for at in range(0, {size}, 2**20):
    memory[at : at + 2**20] = ones
"""


def touch_memory() -> None:
    """Have the system own as much memory as a run takes."""
    size = min(3 * 2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 2**21 * 2**20)
    subprocess.run([sys.executable, "-c", _TOUCH.format(size=size)], check=True)


def floor(files: Sequence[Path]) -> float:
    """CPU seconds of decompressing the files and parsing every line into text and source name, in this process."""
    decoder = msgspec.json.Decoder(_Record)
    start = time.process_time()
    for path in files:
        with path.open("rb") as raw:
            data = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True).read()
        decoder.decode_lines(data)
    return time.process_time() - start


def prepare(source: Path, out: Path, *options: str) -> Usage:
    """One undisturbed run from nothing."""
    shutil.rmtree(out, ignore_errors=True)
    touch_memory()
    command = [
        sys.executable,
        "-m",
        "btlm_data",
        "prepare",
        "--source",
        str(source),
        "--seq-len",
        "2048",
        "--out",
        str(out),
        "--accept-removal",  # Debian's packages repeat licences and templates
        *options,
    ]
    return measure(command)


def corpus() -> Path:
    """The benchmark corpus. Raises SystemExit, saying how to make one, if there is none."""
    name = os.environ.get("BTLM_BENCH_CORPUS")
    if not name:
        raise SystemExit(
            "Set BTLM_BENCH_CORPUS to a corpus folder; `python tools/build_corpus.py DIR --mb 400` makes one."
        )
    return Path(name)


def run() -> list[dict[str, Any]]:
    source = corpus()
    files = sorted(source.rglob("*.jsonl.zst"))
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as folder:
        out = Path(folder) / "shards"
        prepare(source, out, "--workers", "1", "--limit", "100")  # compile once
        floors, ones, twos, published = [], [], [], []
        for _ in range(ROUNDS):
            floors.append(floor(files))
            ones.append(prepare(source, out, "--workers", "1"))
            twos.append(prepare(source, out, "--workers", "2"))
            published.append(prepare(source, out, "--workers", "1", "--set", "dedupe.preset=slimpajama"))
        rows: list[dict[str, Any]] = [
            _row(
                "whole prepare, CPU against decompress + parse",
                statistics.median(u.cpu for u in ones),
                statistics.median(floors),
                statistics.median(u.cpu / f for u, f in zip(ones, floors, strict=True)),
                "s CPU",
                "<= 10, aim 8",
            ),
            _row(
                "the same with SlimPajama's published rule (no text is compared)",
                statistics.median(u.cpu for u in published),
                statistics.median(floors),
                statistics.median(u.cpu / f for u, f in zip(published, floors, strict=True)),
                "s CPU",
                "<= 10, aim 8",
            ),
            _row(
                "2 workers against 1, wall time, 0.4 GB (1.9 s of start-up are serial)",
                statistics.median(u.wall for u in twos),
                statistics.median(u.wall for u in ones),
                statistics.median(one.wall / two.wall for one, two in zip(ones, twos, strict=True)),
                "s",
                ">= 1.8 at 2 GB: see scale",
            ),
            _row(
                "peak memory of a worker",
                max(u.peak_rss for u in [*ones, *twos]) / 1e9,
                None,
                None,
                "GB",
                "<= 1",
            ),
        ]
        tenth = _tenth(source, Path(folder) / "tenth")
        small = [prepare(tenth, out, "--workers", "1") for _ in range(ROUNDS)]
        share = sum(f.stat().st_size for f in tenth.rglob("*.zst")) / sum(f.stat().st_size for f in files)
        scale = statistics.median(u.cpu for u in ones) / statistics.median(u.cpu for u in small)
        rows.append(
            _row(f"CPU of {1 / share:.1f}x the input", scale, 1 / share, scale * share, "x", "<= 1.05")
        )
        start = [measure([sys.executable, "-m", "btlm_data", "--help"]).wall for _ in range(5)]
        rows.append(_row("btlm-data --help", statistics.median(start), None, None, "s", "< 0.3"))
        rows.append(
            _row(
                "prepare --source sample, first run (compiles)",
                _first_run(Path(folder)),
                None,
                None,
                "s",
                "< 15",
            )
        )
    return rows


def _tenth(source: Path, to: Path) -> Path:
    """The first tenth of the train files, as links."""
    files = sorted((source / "train").rglob("*.zst"))
    for path in files[: max(1, len(files) // 10)]:
        target = to / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())
    return to


def _first_run(folder: Path) -> float:
    """Wall seconds of the sample's preparation with an empty kernel cache."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "numba")}
    command = [
        sys.executable,
        "-m",
        "btlm_data",
        "prepare",
        "--source",
        "sample",
        "--out",
        str(folder / "first"),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def _row(
    name: str, ours: float, theirs: float | None, ratio: float | None, unit: str, budget: str
) -> dict[str, Any]:
    return {"name": name, "ours": ours, "theirs": theirs, "ratio": ratio, "unit": unit, "budget": budget}


if __name__ == "__main__":
    for row in run():
        print(row)
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
