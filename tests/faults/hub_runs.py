"""`prepare --source slimpajama` from a hub on loopback against `prepare --source FOLDER`: undisturbed, under
every fault, killed and run again.

    python tests/faults/hub_runs.py --corpus CORPUS --kills 50 --seed 1

CORPUS is a folder in SlimPajama's layout (`tools/build_corpus.py DIR --mb 400` makes one of real text;
without it the packaged sample is taken). The command line is the real one, near-duplicate removal and
2,048-token shards included. Whatever happens, shards, documents.parquet and clusters.parquet must equal the
folder's byte for byte, and the files of the cache, half-fetched ones included, never take more than
--cache-size: a thread adds them up all the time. Exit code 1 on any difference.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.faults.kill_targets import hashes  # noqa: E402
from tests.hub import Fault, Hub  # noqa: E402

REPOSITORY = "cerebras/SlimPajama-627B"
RECORDS = {
    "dataset.json",
    "provenance.json",
    "report.md",
    "report.html",
    "README.md",
    "croissant.json",
}  # they name where the corpus came from


def faults(largest: int) -> dict[str, list[Fault]]:
    """Every way the hub misbehaves, by name. largest: bytes of the largest file."""
    return {
        "429 with Retry-After": [
            Fault("info", status=429, retry_after="1"),
            Fault("resolve", status=429, retry_after="1", times=5),
        ],
        "5xx": [
            Fault("info", status=503),
            Fault("tree", status=500),
            Fault("resolve", status=500, times=4),
            Fault("body", status=502, times=4),
        ],
        "cut in mid-file": [
            Fault("body", cut_at=largest // 3, times=4),
            Fault("body", cut_at=2 * largest // 3, times=4),
        ],
        "corrupted body": [
            Fault("body", name, corrupt_at=largest // 2) for name in ("train_0", "train_1", "holdout_0")
        ],
        "slow trickle": [Fault("body", trickle=300, times=2)],
        "silence": [Fault("body", stall=4, times=2)],
        "no ranges": [Fault("body", cut_at=largest // 2, times=3), Fault("body", ignore_range=True, times=3)],
        "too long": [Fault("body", extra=100, times=2)],
    }


REFUSALS = {
    "401": Fault("info", status=401, times=None),
    "404": Fault("info", status=404, error_code="RepoNotFound", times=None),
    "404 of a file": Fault("resolve", "example_train_1", status=404, error_code="EntryNotFound", times=None),
    "always corrupted": Fault("body", "example_train_1", corrupt_at=9, times=None),
}


@dataclass
class Runs:
    """One corpus, its expected dataset, and a folder to work in; `problems` fills with whatever went wrong."""

    corpus: Path
    folder: Path
    cache_size: int
    endpoint: str
    problems: list[str] = field(default_factory=list)
    most_cached: int = 0

    def command(self, source: str, out: Path, *options: str) -> list[str]:
        """`prepare` as a user types it, with pauses short enough for a test."""
        base = [
            sys.executable,
            "-m",
            "btlm_data.cli",
            "prepare",
            "--source",
            source,
            "--seq-len",
            "2048",
            "--out",
            str(out),
        ]
        base += ["--set", "run.retry_pause=0.02", "--set", "run.timeout=2"]
        return [
            *base,
            "--cache-dir",
            str(self.folder / "cache"),
            "--cache-size",
            str(self.cache_size),
            *options,
        ]

    @property
    def environment(self) -> dict[str, str]:
        """This checkout first on the path, and the hub on loopback."""
        known = {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.folder / "hf")}
        return {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | known

    def run(self, source: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """One run to its end, at most ten minutes."""
        return subprocess.run(
            self.command(source, out, *options),
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=600,
            check=False,
        )

    def _unequal(self, out: Path) -> list[str]:
        ours, theirs = hashes(self.folder / "expected"), hashes(out)
        return sorted(
            name
            for name in {*ours, *theirs}
            if ours.get(name) != theirs.get(name) and Path(name).name not in RECORDS
        )

    def check(self, out: Path, what: str, ended: subprocess.CompletedProcess[str]) -> None:
        """Note what is wrong with a run that should have succeeded, and clear it away."""
        if ended.returncode:
            self.problems.append(f"{what}: exit code {ended.returncode}: {ended.stderr[-1500:]}")
        elif found := self._unequal(out):
            self.problems.append(f"{what}: differs in {', '.join(found[:5])}")
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Add up the cache's files all the time; more than its size is a problem."""
        end = threading.Event()

        def watch() -> None:
            while not end.wait(0.01):
                self.most_cached = max(self.most_cached, cache_bytes(self.folder / "cache"))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            if self.most_cached > self.cache_size:
                self.problems.append(
                    f"the cache held {self.most_cached:,} bytes, its size is {self.cache_size:,}"
                )


def cache_bytes(cache: Path) -> int:
    """Bytes of the files that a cache folder holds, whole and half-downloaded, of all runs; one of two names counts once."""
    sizes = {}
    with contextlib.suppress(FileNotFoundError):  # the folder, too, may be removed meanwhile
        for path in cache.glob("*/*"):
            with contextlib.suppress(OSError):
                sizes[path.stat().st_ino] = path.stat().st_size
    return sum(sizes.values())


def run_all(corpus: Path, folder: Path, kills: int, seed: int, kinds: Sequence[str] | None = None) -> Runs:
    """Everything; kinds: names of `faults` to inject, None for all of them and the refusals."""
    paths = sorted(corpus.rglob("*.jsonl.zst"))
    sizes = [path.stat().st_size for path in paths]
    with Hub() as hub:
        runs = Runs(corpus, folder, max(3 * max(sizes), sum(sizes) // 4), hub.url)
        ended = runs.run(str(corpus), folder / "expected")
        if ended.returncode:
            raise SystemExit(ended.stderr)
        hub.add(REPOSITORY, {path.relative_to(corpus).as_posix(): path.read_bytes() for path in paths})
        with runs.watched():
            disturb(runs, hub, max(sizes), kills, seed, kinds)
    return runs


def disturb(runs: Runs, hub: Hub, largest: int, kills: int, seed: int, kinds: Sequence[str] | None) -> None:
    """Run undisturbed, under each fault, refused, and killed."""
    out = runs.folder / "out"
    start = time.perf_counter()
    runs.check(out, "undisturbed", runs.run("slimpajama", out))
    seconds = time.perf_counter() - start
    for kind, found in faults(largest).items():
        if kinds is not None and kind not in kinds:
            continue
        hub.faults = copy.deepcopy(found)
        ended = runs.run("slimpajama", out)
        if hub.faults and all(
            fault.times == before.times for fault, before in zip(hub.faults, found, strict=True)
        ):
            runs.problems.append(f"{kind}: the fault never struck")
        runs.check(out, kind, ended)
        print(
            f"  {kind}: {'as expected' if not runs.problems else runs.problems[-1]}",
            file=sys.stderr,
            flush=True,
        )
    hub.faults = []
    if kinds is None:
        refuse(runs, hub, out)
    kill(runs, out, kills, seed, seconds)


def refuse(runs: Runs, hub: Hub, out: Path) -> None:
    """What cannot be downloaded ends in a plain error without a dataset; when it can be again, the same command
    gives the right one.
    """
    for kind, fault in REFUSALS.items():
        hub.faults = [copy.deepcopy(fault)]
        ended = runs.run("slimpajama", out, "--set", "run.retries=2")
        if (
            ended.returncode not in (1, 2, 3)
            or "Traceback" in ended.stderr
            or (out / "dataset.json").exists()
        ):
            runs.problems.append(f"{kind}: exit code {ended.returncode}: {ended.stderr[-1500:]}")
        hub.faults = []
        runs.check(out, f"after {kind}", runs.run("slimpajama", out))
        print(
            f"  {kind}: {'as expected' if not runs.problems else runs.problems[-1]}",
            file=sys.stderr,
            flush=True,
        )


def kill(runs: Runs, out: Path, kills: int, seed: int, seconds: float) -> None:
    """SIGKILL to the process group at random moments; now and then the run is left to end, compared, and
    begun anew.
    """
    chance = random.Random(seed)
    done = rounds = 0
    while done < kills:
        rounds += 1
        for _ in range(min(kills - done, chance.randint(1, 6))):
            workers = str(chance.randint(1, 2))
            process = subprocess.Popen(
                runs.command("slimpajama", out, "--workers", workers),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=runs.environment,
            )
            time.sleep(chance.uniform(0.05, 1.0) * seconds)
            if process.poll() is None:  # only what was cut short counts
                os.killpg(process.pid, signal.SIGKILL)
                done += 1
            process.wait()
        runs.check(
            out,
            f"killed, round {rounds}",
            runs.run("slimpajama", out, "--workers", str(chance.randint(1, 2))),
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=Path(str(files("btlm_data") / "data/sample")))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="btlm-hub-") as folder:
        runs = run_all(given.corpus, Path(folder), given.kills, given.seed)
    outcome = (
        f"the folder's shards every time; cache at most {runs.most_cached:,} of {runs.cache_size:,} bytes"
    )
    print(
        "\n".join(runs.problems)
        or f"{len(faults(1)) + len(REFUSALS)} faults, {given.kills} kills, {time.perf_counter() - start:.0f} s: {outcome}."
    )
    sys.exit(bool(runs.problems))


if __name__ == "__main__":
    main()
