"""Damage everything that is read from outside, for as long as asked, and see that nothing worse happens than an error in words.

    python -m tests.faults.fuzz --seconds 3600
    python -m tests.faults.fuzz --reader tokenizer --case 17:1/tokenizer/230      # one case again

Each case is drawn from its own name ("SEED/READER/NUMBER"), so it can be had again. Readers (fuzz_readers.py) run in forked
processes. What counts as wrong: an exception that is not one of errors.py, exit code 70, a control character or invalid JSON
in the output, the death of the process, more than SECONDS of CPU for one case, more megabytes than its reader may take,
a file opened for writing, removed or renamed outside the case's folder, or any file of `secret/`, which lies beside it, opened
(by a C library too: the kernel tells). What C libraries write elsewhere is not seen from inside: run the whole under
`strace -f -e trace=file` for that, and read its log with --strace-log LOG.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 10.0  # of CPU for one case
WALL_SECONDS = 600.0  # for one case that waits
ADDRESS_SPACE = 24 << 30  # torch and numba reserve much more than they use
SLICE_SECONDS = 12.0  # of one reader, before the next has its turn
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_IN_OPEN = 0x20
_WRITES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown",
           "shutil.rmtree", "shutil.move", "os.utime"}  # fmt: skip
_HARMLESS = ("/dev/null", "/dev/shm/", "/proc/self/", "/dev/tty")


class Watch:
    """An audit hook that notes every file touched outside `folder`, while `is_on`; and what the kernel says of `secret`."""

    def __init__(self, folder: Path, secret: Path) -> None:
        self.folder, self.secret = str(folder), str(secret)
        self.touched: list[str] = []
        self.is_on = False
        self._notices = _notices_of(secret)
        sys.addaudithook(self._hear)

    def secret_opened(self) -> list[str]:
        """Files of `secret` that were opened since this was asked last, by whichever part of the process."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._notices, 4096):
                while data:
                    (length,) = struct.unpack_from("=I", data, 12)
                    name = data[16 : 16 + length].rstrip(bytes(1)).decode()
                    if name:  # not the folder itself, which whoever looks through the disk lists
                        found.append(f"opened secret/{name}")
                    data = data[16 + length :]
        return found

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "open":
            path, _, flags = arguments
            writes = bool(isinstance(flags, int) and flags & _WRITE_FLAGS)
            self._note(event, path, writes=writes)
        elif event in _WRITES:
            for path in arguments[: 2 if event in ("os.rename", "os.link", "shutil.move") else 1]:
                self._note(event, path, writes=True)
        elif event in ("os.system", "os.exec", "pty.spawn"):
            self.touched.append(f"{event} {arguments[:1]}")

    def _note(self, event: str, path: Any, *, writes: bool) -> None:
        if isinstance(path, int) or path is None:
            return
        self.is_on = False
        try:
            absolute = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
            absolute = os.path.join(absolute, os.path.basename(os.fsdecode(path)))
        except ValueError:
            return
        finally:
            self.is_on = True
        if "__pycache__" in absolute:  # compiled kernels
            return
        inside = absolute == self.folder or absolute.startswith(self.folder + os.sep)
        if absolute.startswith(self.secret) or (writes and not inside and not absolute.startswith(_HARMLESS)):
            self.touched.append(f"{event} {absolute}")


def _notices_of(folder: Path) -> int:
    """A descriptor from which the kernel's notices of files opened in `folder` are read (inotify, see `man 7 inotify`)."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = int(library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0 or library.inotify_add_watch(descriptor, os.fsencode(folder), _IN_OPEN) < 0:
        raise OSError(ctypes.get_errno(), "no inotify")
    return descriptor


class Shared:
    """What a child tells its parent: the case's number, when it began, its CPU seconds then, and cases done."""

    _LAYOUT = struct.Struct("=qddq")

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, self._LAYOUT.size)

    def tell(self, number: int, done: int) -> None:
        """A case begins now."""
        self._map[:] = self._LAYOUT.pack(number, time.monotonic(), _cpu(os.getpid()), done)

    def heard(self) -> tuple[int, float, float, int]:
        """(number, began, CPU seconds then, cases done)."""
        return self._LAYOUT.unpack(self._map[:])


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_megabytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) // 1024 if found else 0


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run_case(reader: Any, name: str, seed: Path, folder: Path, watch: Watch) -> str | None:
    """One case in `folder`; what was wrong, or None."""
    from btlm_data.errors import BtlmError

    case = folder / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(seed, case, symlinks=True)
    os.chdir(case)
    chance = random.Random(name)
    reader.damage(chance, case)
    _reset_peak()
    before = _peak_megabytes()
    watch.touched.clear()
    watch.is_on = True
    try:
        reader.read(chance, case)
    except BtlmError as error:
        if not str(error):
            return "an error without words"
    except BaseException:
        watch.is_on = False
        return traceback.format_exc()[-3000:]
    finally:
        watch.is_on = False
        os.chdir(folder)
    watch.touched += watch.secret_opened()
    if watch.touched:
        return f"touched outside: {sorted(set(watch.touched))[:5]}"
    grown = _peak_megabytes() - before
    return f"{grown} MB of memory" if grown > reader.megabytes else None


def _child(
    reader: Any, seed_name: str, first: int, seed: Path, folder: Path, shared: Shared, seconds: float
) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        sink = os.open(folder / "words.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.dont_write_bytecode = True
        temporary = folder / "case-tmp"
        temporary.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        os.environ["XDG_CACHE_HOME"] = str(folder / "case-cache")
        watch = Watch(folder, folder / "secret")
        with reader.around(folder) if reader.around else contextlib.nullcontext():
            end, number = time.monotonic() + seconds, first
            while time.monotonic() < end:
                shared.tell(number, number - first)
                wrong = run_case(reader, f"{seed_name}/{reader.name}/{number}", seed, folder, watch)
                if wrong is not None:
                    (folder / f"wrong-{number}.txt").write_text(wrong, errors="backslashreplace")
                number += 1
        shared.tell(number, number - first)
        code = 0
    except BaseException:
        (folder / "broken.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def run_slice(
    reader: Any, seed_name: str, first: int, seed: Path, folder: Path, seconds: float
) -> tuple[int, list[str]]:
    """Fork, watch until the slice is over; (cases done, what was wrong with which)."""
    shared = Shared()
    shared.tell(first, 0)
    pid = os.fork()
    if pid == 0:
        _child(reader, seed_name, first, seed, folder, shared, seconds)
    problems: list[str] = []
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        number, began, cpu, done = shared.heard()
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        if _cpu(pid) - cpu > SECONDS or time.monotonic() - began > WALL_SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            problems.append(f"{seed_name}/{reader.name}/{number}: does not end")
            return done + 1, problems
        time.sleep(0.1)
    if code < 0:
        problems.append(f"{seed_name}/{reader.name}/{number}: died of {signal.Signals(-code).name}")
        done += 1
    elif code:
        problems.append(f"{seed_name}/{reader.name}/{number}: {(folder / 'broken.txt').read_text()}")
    for path in sorted(folder.glob("wrong-*.txt")):
        wrong = path.read_text()
        problems.append(f"{seed_name}/{reader.name}/{path.stem.partition('-')[2]}: {wrong}")
        path.unlink()
    return done, problems


def fuzz(
    names: list[str], seconds: float, seed: int, folder: Path, tell: Callable[[str], None]
) -> dict[str, int]:
    """Give every reader its turns until the time is over; the number of cases of each. Problems are told as they come."""
    from tests.faults import fuzz_readers

    readers = [reader for reader in fuzz_readers.READERS if not names or reader.name in names]
    fuzz_readers.load_programs()
    seeds: dict[str, Path] = {}
    cases: collections.Counter[str] = collections.Counter()
    problems: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for reader in readers:
            work = folder / reader.name
            if reader.name not in seeds:
                work.mkdir(parents=True)
                (work / "secret").mkdir()
                (work / "secret/key").write_text("root:x:0:0:a secret of this machine\n")
                seeds[reader.name] = work / "seed"
                seeds[reader.name].mkdir()
                reader.make(seeds[reader.name])
            left = end - time.monotonic()
            if left <= 0 and cases[reader.name]:
                break
            share = max(0.5, min(SLICE_SECONDS, seconds / len(readers)))
            done, wrong = run_slice(reader, str(seed), cases[reader.name], seeds[reader.name], work, share)
            cases[reader.name] += done
            problems[reader.name] += len(wrong)
            for problem in wrong:
                tell(problem)
    for name, count in cases.items():
        tell(f"= {name}: {count:,} cases, {problems[name]} wrong")
    return dict(problems)


def outside(log: Path, folder: Path) -> list[str]:
    """Of a log of `strace -f -e trace=file`: paths outside `folder` that were opened for writing, removed, renamed or made."""
    writing = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
    changing = re.compile(r"^\s*(?:\[pid +\d+\] |\d+ +)?(unlink|unlinkat|rename|renameat2?|mkdir|mkdirat|rmdir|symlink|link|"
                          r"linkat|symlinkat|truncate|chmod|fchmodat|chown|utimensat|mknod)\(")  # fmt: skip
    found: collections.Counter[str] = collections.Counter()
    with log.open(errors="replace") as lines:
        for line in lines:
            if " = -1 " in line or not (changing.match(line) or ("open" in line and writing.search(line))):
                continue
            for path in re.findall(r'"(/[^"]*)"', line):
                if not path.startswith((str(folder), *_HARMLESS)) and "__pycache__" not in path:
                    found[path] += 1
    return [f"{path} ({count} times)" for path, count in found.most_common()]


def main() -> None:
    """Command line."""
    from tests.faults.fuzz_readers import READERS

    names = [reader.name for reader in READERS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--reader", action="append", choices=names, help="only this one; repeatable")
    parser.add_argument(
        "--case", type=int, help="run this one case of the --reader, in this process, and show what is wrong"
    )
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument(
        "--strace-log", type=Path, help="read this log of strace instead, of a run in --folder"
    )
    given = parser.parse_args()
    if given.strace_log:
        print("\n".join(outside(given.strace_log, given.folder.resolve())) or "Nothing outside was touched.")
        return
    folder = Path(tempfile.mkdtemp(prefix="btlm-fuzz-", dir=given.folder)).resolve()
    tempfile.tempdir = str(folder)
    if given.case is not None:
        print(_one(given.reader[0], given.seed, given.case, folder) or "nothing wrong", folder)
        return
    wrong = 0

    def tell(line: str) -> None:
        nonlocal wrong
        wrong += not line.startswith("=")
        print(line, flush=True)

    fuzz(given.reader or [], given.seconds, given.seed, folder, tell)
    shutil.rmtree(folder)
    sys.exit(bool(wrong))


def _one(name: str, seed: int, case: int, folder: Path) -> str | None:
    from tests.faults import fuzz_readers

    reader = next(reader for reader in fuzz_readers.READERS if reader.name == name)
    fuzz_readers.load_programs()
    (folder / "seed").mkdir()
    (folder / "secret").mkdir()
    reader.make(folder / "seed")
    with reader.around(folder) if reader.around else contextlib.nullcontext():
        return run_case(
            reader, f"{seed}/{name}/{case}", folder / "seed", folder, Watch(folder, folder / "secret")
        )


if __name__ == "__main__":
    main()
