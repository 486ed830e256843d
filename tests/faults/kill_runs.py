"""Kill a run of `prepare --source sample` at random moments, run it again each time, and compare with an undisturbed run.

    python tests/faults/kill_runs.py --kills 200 --seed 1

Each kill is SIGKILL to the whole process group; after some kills (a drawn number) the run is left to end, its dataset must
equal the undisturbed one byte for byte (provenance.json apart), and a fresh one begins. Exit code 1 on any difference.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNEQUAL = {"provenance.json"}


def command(out: Path, *options: str) -> list[str]:
    """A run that goes through every stage, with several shards a split."""
    base = [
        sys.executable,
        "-m",
        "btlm_data.cli",
        "prepare",
        "--source",
        "sample",
        "--seq-len",
        "512",
        "--samples-per-file",
        "700",
    ]
    return [*base, "--out", str(out), *options]


def environment() -> dict[str, str]:
    """This checkout first on the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def differences(first: Path, second: Path) -> list[str]:
    """Relative paths that one dataset folder has and the other lacks or holds otherwise; the work folder is left out."""
    names = [
        {
            p.relative_to(root)
            for p in root.rglob("*")
            if p.is_file() and ".work" not in p.parts and p.name not in UNEQUAL
        }
        for root in (first, second)
    ]
    unequal = {
        name for name in names[0] & names[1] if not filecmp.cmp(first / name, second / name, shallow=False)
    }
    return sorted(map(str, (names[0] ^ names[1]) | unequal))


def undisturbed(out: Path, *options: str) -> float:
    """Run to the end; seconds it took."""
    start = time.perf_counter()
    subprocess.run(command(out, *options), check=True, capture_output=True, env=environment())
    return time.perf_counter() - start


def kill_and_resume(kills: int, seed: int, folder: Path, *options: str, most_in_a_row: int = 4) -> list[str]:
    """Kill `kills` times in all; what went wrong, empty if nothing did."""
    chance = random.Random(seed)
    expected = folder / "expected"
    undisturbed(folder / "first", *options)  # compiles
    seconds = undisturbed(expected, *options)
    problems: list[str] = []
    done = rounds = 0
    while done < kills:
        out = folder / f"round-{rounds}"
        rounds += 1
        for _ in range(min(kills - done, chance.randint(1, most_in_a_row))):
            workers = str(chance.randint(1, 2))
            run = subprocess.Popen(
                [*command(out, *options), "--workers", workers],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=environment(),
            )
            time.sleep(chance.uniform(0.1, 1.0) * seconds)
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                done += 1
            else:  # the machine has become faster: only what was cut short counts
                seconds *= 0.95
            run.wait()
        end = subprocess.run(
            [*command(out, *options), "--workers", str(chance.randint(1, 2))],
            capture_output=True,
            text=True,
            env=environment(),
        )
        if end.returncode:
            problems.append(f"{out.name}: exit code {end.returncode}: {end.stderr[-2000:]}")
        elif found := differences(expected, out):
            problems.append(f"{out.name}: differs in {', '.join(found[:5])}")
        leftover = [path.name for path in out.rglob(".*.tmp")]
        if leftover:
            problems.append(f"{out.name}: left {leftover}")
        if not problems:
            shutil.rmtree(out)
    return problems


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("options", nargs="*", help="more options of prepare, behind --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        problems = kill_and_resume(given.kills, given.seed, Path(folder), *given.options)
    print(
        "\n".join(problems)
        or f"{given.kills} kills in {time.perf_counter() - start:.0f} s: every dataset equals the undisturbed one."
    )
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
