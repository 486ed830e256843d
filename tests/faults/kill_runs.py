"""Kill a command at random moments, run it again each time, and compare what it leaves with an undisturbed run.

    python -m tests.faults.kill_runs --target sample --target corpus --kills 500

Each kill is SIGKILL to one worker process, to the parent alone, or to the whole group, drawn by chance. After some kills
(a drawn number) the command is left to end; what it leaves must equal, byte for byte, what the undisturbed one left
(kill_targets.py says what), with no temporary file and no process left over, and a fresh folder begins. Commands run in
forks of this process, so that a kill hits their work and not the imports; --fresh N runs every Nth in an interpreter of
its own. Exit code 1 on any difference.
"""

from __future__ import annotations

import argparse
import atexit
import collections
import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

from btlm_data import by_group, witness
from btlm_data.dedupe import groups
from btlm_data.lineage import key_index, text_index
from btlm_data.stages import file_ranges
from tests.faults.commands import command, spare_work
from tests.faults.kill_targets import TARGETS, Target, write_corpus

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("worker", "parent", "group")
PATIENCE = 120.0  # seconds in which a command has to end by itself after a worker's death
WORKER_DIED = (1, 5)  # exit codes of a command whose workers were killed too often, or what makes them


class Run(NamedTuple):
    """A command in a process group of its own; its words go to `log`."""

    pid: int
    log: Path
    began: float

    def wait(self, seconds: float) -> int | None:
        """Its exit code (negative: the signal that ended it), or None if it still runs after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= end:
                return None
            time.sleep(0.002)

    def words(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")


def shrink() -> None:
    """Cut a few kilobytes into several groups of components, and move what belongs to them, and indexes into several parts,
    as it is with terabytes.
    """
    groups.GROUP_BYTES, file_ranges.GROUP_FILES = 6000, 1
    key_index._PART_ENTRIES, text_index._PART_ENTRIES, text_index._BLOCK_TOKENS = 200, 1000, 1000
    by_group.MOST_FILES, by_group.PIECE_BYTES, by_group._LEAST_FILE = 2, 2000, 8000


def load_programs(targets: list[Target]) -> None:
    """Import and compile what the commands need, so that forks have it: by having each kind of command run once."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from btlm_data.kernels import load_numba, want_numba_alone

    want_numba_alone()
    load_numba()
    spare_work()
    shrink()
    with tempfile.TemporaryDirectory() as folder:
        corpus, out, index = Path(folder) / "corpus", Path(folder) / "out", Path(folder) / "index"
        write_corpus(corpus, 2, 8, 1)
        words = [
            "--seq-len",
            "16",
            "--seq-len",
            "32",
            "--workers",
            "1",
            "--memory",
            "40KB",
            "--dedupe-index",
            index,
        ]
        for _ in range(2):  # the second finds what the first left in the index
            ended = command(
                "prepare", "--source", corpus, "--out", out, *words, "--overwrite", "--accept-removal"
            )
            assert ended.code == 0, ended.words
        command("index", out)
        command("export", out, "--to", "npy", "--out", Path(folder) / "exported")
    if any(target.program == "btlm_train" for target in targets):
        importlib.import_module("btlm_train.sessions")
        for module in ("torch._dynamo", "torch.utils.tensorboard"):
            importlib.import_module(module)
        importlib.import_module("torch").set_num_threads(1)


def begin(program: str, arguments: list[str], log: Path, *, fresh: bool) -> Run:
    """Start a command; fresh: in an interpreter of its own."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become(program, arguments, log, fresh=fresh)
    return Run(pid, log, began)


def _become(program: str, arguments: list[str], log: Path, *, fresh: bool) -> NoReturn:
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["PYTHONPATH"] = str(ROOT)
        if fresh:
            script = (
                f"from tests.faults.kill_runs import shrink; shrink(); from {program}.cli import main; main()"
            )
            os.execv(sys.executable, [sys.executable, "-c", script, *arguments])
        sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115
        from btlm_data import entry

        atexit._clear()  # what the process that kills has registered is not the command's to do
        sys.argv[1:] = arguments
        entry.run(importlib.import_module(f"{program}.cli").cli)
    finally:
        os._exit(70)


def run_command(program: str, arguments: list[str]) -> float:
    """Run a command to its end, which must be good; seconds it took."""
    with tempfile.NamedTemporaryFile() as log:
        run = begin(program, arguments, Path(log.name), fresh=False)
        code = run.wait(1800)
        assert code == 0, f"exit code {code}: {run.words()[-2000:]}"
        return time.monotonic() - run.began


def members(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def kill(run: Run, kind: str, chance: random.Random) -> str:
    """SIGKILL as drawn; which kind it became: a command without workers has only a parent."""
    workers = [pid for pid in members(run.pid) if pid != run.pid and not _is_witness(pid)]
    if kind == "worker" and workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
        return "worker"
    if kind == "group":
        with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
            os.killpg(run.pid, signal.SIGKILL)
            return "group"
    os.kill(run.pid, signal.SIGKILL)
    return "parent"


def _is_witness(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == witness.NAME
    return True


class Killer:
    """Kills one target's command again and again in `folder`."""

    def __init__(self, target: Target, folder: Path, seed: int, fresh_every: int) -> None:
        self.target, self.folder, self.fresh_every = target, folder, fresh_every
        self.chance = random.Random(seed)
        self.inputs = folder / "inputs"
        self.inputs.mkdir(parents=True)
        self.kinds: collections.Counter[str] = collections.Counter()
        self.reached: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.runs = 0
        target.inputs(self.inputs)
        self.expected = self._undisturbed("first")
        begun = time.monotonic()
        assert self._undisturbed("second") == self.expected
        self.seconds = time.monotonic() - begun

    def _undisturbed(self, name: str) -> dict[str, str]:
        folder = self.folder / name
        folder.mkdir()
        self.target.start(self.inputs, folder)
        run_command(self.target.program, self._arguments(folder))
        contents = self.target.contents(folder)
        assert contents
        shutil.rmtree(folder)
        return contents

    def _arguments(self, folder: Path) -> list[str]:
        arguments = self.target.arguments(self.inputs, folder)
        if arguments[0] in ("prepare", "add"):
            arguments += ["--workers", str(self.chance.choice([1, 2, 2]))]
        return arguments

    def _begin(self, folder: Path) -> Run:
        self.runs += 1
        fresh = self.fresh_every > 0 and self.runs % self.fresh_every == 0
        return begin(self.target.program, self._arguments(folder), folder.with_suffix(".log"), fresh=fresh)

    def run(self, kills: int, most_in_a_row: int = 4) -> list[str]:
        """Kill `kills` times in all; what went wrong, empty if nothing did."""
        done = rounds = told = 0
        while done < kills:
            folder = self.folder / f"round-{rounds}"
            folder.mkdir()
            rounds += 1
            self.target.start(self.inputs, folder)
            ended = False
            for _ in range(min(kills - done, self.chance.randint(1, most_in_a_row))):
                ended = not self._kill_one(folder)
                if ended:
                    break
                done += 1
                if done % 50 == 0:
                    print(
                        f"{done} kills, {len(self.problems)} problems",
                        *self.problems[told:],
                        sep="\n",
                        flush=True,
                    )
                    told = len(self.problems)
            if not ended:
                ended = self._end(folder)
            if ended and self._is_right(folder):
                shutil.rmtree(folder)
        return self.problems

    def _kill_one(self, folder: Path) -> bool:
        """Kill the command once; False if it had ended before."""
        run = self._begin(folder)
        time.sleep(self.chance.uniform(0, 1) * self.seconds)
        if (code := run.wait(0)) is not None:  # the machine has become faster: only what was cut short counts
            self.seconds *= 0.9
            self._check_code(folder, run, code, (0,))
            return False
        kind = kill(run, self.chance.choice(KINDS), self.chance)
        code = run.wait(PATIENCE)
        if code is None:
            self.problems.append(f"{folder}: does not end {PATIENCE:.0f} s after the death of a worker")
            os.killpg(run.pid, signal.SIGKILL)
            run.wait(PATIENCE)
        elif kind == "worker":
            self._check_code(folder, run, code, (0, *WORKER_DIED))
            if code in WORKER_DIED and "killed" not in run.words():
                self.problems.append(f"{folder}: no word of the worker's death: {run.words()[-500:]}")
        self.kinds[kind] += 1
        self.reached[self.target.reached(folder)] += 1
        self._check_orphans(folder, run)
        if wrong := self.target.between(self.inputs, folder, self.expected):
            self.problems.append(f"{folder}: neither old nor new after a kill: {', '.join(wrong[:5])}")
        return True

    def _end(self, folder: Path) -> bool:
        run = self._begin(folder)
        code = run.wait(1800)
        if code is None:
            os.killpg(run.pid, signal.SIGKILL)
        self.seconds += 0.2 * max(0.0, time.monotonic() - run.began - self.seconds)
        self._check_orphans(folder, run)
        return self._check_code(folder, run, code, (0,))

    def _check_code(self, folder: Path, run: Run, code: int | None, expected: tuple[int, ...]) -> bool:
        words = run.words()
        if self.target.done is not None and self.target.done in words:
            code = 0
        if code not in expected or "Traceback" in words:
            self.problems.append(f"{folder}: exit code {code}: {words[-2000:]}")
            return False
        return True

    def _check_orphans(self, folder: Path, run: Run) -> None:
        end = time.monotonic() + 10
        while left := members(run.pid):
            if time.monotonic() > end:
                self.problems.append(f"{folder}: processes {left} live on")
                os.killpg(run.pid, signal.SIGKILL)
                return
            time.sleep(0.005)

    def _is_right(self, folder: Path) -> bool:
        contents = self.target.contents(folder)
        unequal = sorted(
            name for name in {*contents, *self.expected} if contents.get(name) != self.expected.get(name)
        )
        if unequal:
            self.problems.append(f"{folder}: differs in {', '.join(unequal[:5])}")
        leftover = [str(path) for path in folder.rglob(".*tmp*")]
        if leftover:
            self.problems.append(f"{folder}: left {leftover}")
        return not unequal and not leftover


def kill_and_resume(name: str, kills: int, seed: int, folder: Path, fresh_every: int = 0) -> Killer:
    """Kill the command of a target `kills` times; `.problems` of what comes back is empty if nothing went wrong. Its program
    is loaded (`load_programs`).
    """
    killer = Killer(TARGETS[name], folder, seed, fresh_every)
    killer.run(kills)
    return killer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--target", action="append", choices=sorted(TARGETS), help="default: sample and corpus"
    )
    parser.add_argument(
        "--kills", type=int, action="append", help="of each target, or once for each; default: 500"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fresh", type=int, default=20, help="every Nth command in its own interpreter")
    parser.add_argument("--folder", type=Path, help="where to work, kept if anything is wrong")
    given = parser.parse_args()
    wrong = False
    names = given.target or ["sample", "corpus"]
    all_kills = given.kills or [500]
    all_kills = all_kills * len(names) if len(all_kills) == 1 else all_kills
    load_programs([TARGETS[name] for name in names])
    for name, kills in zip(names, all_kills, strict=True):
        folder = Path(tempfile.mkdtemp(prefix="btlm-kill-", dir=given.folder))
        start = time.monotonic()
        killer = kill_and_resume(name, kills, given.seed, folder, given.fresh)
        print("\n".join(killer.problems))
        print(
            f"{name}: {kills} kills in {time.monotonic() - start:.0f} s ({dict(killer.kinds)}; stage reached: "
            f"{dict(killer.reached)}): {len(killer.problems)} problems",
            flush=True,
        )
        wrong = wrong or bool(killer.problems)
        if not killer.problems:
            shutil.rmtree(folder)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
